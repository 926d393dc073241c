"""Sinkhorn's balanced assignment of samples to prototypes, in the log domain."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import forbid_derivatives
from genssl_fast._checks import check, check_count, check_dtype, values_are_checked
from genssl_fast._library import define, implement_triton
from genssl_fast.ops.ring import checked_group

__all__ = ["sinkhorn"]


def _like_columns(logits: Tensor) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape[1], dtype=dtype)


raw_sinkhorn = define(
    "_sinkhorn(Tensor logits, float epsilon, int iterations) -> Tensor",
    reference=reference.contrast.sinkhorn,
    fake=lambda logits, *args: logits.new_empty(logits.shape),
)
raw_sinkhorn_maxima = define(
    "_sinkhorn_maxima(Tensor logits, float epsilon) -> (Tensor, Tensor)",
    reference=reference.contrast.sinkhorn_maxima,
    fake=lambda logits, *args: (_like_columns(logits), _like_columns(logits)),
)
raw_sinkhorn_sums = define(
    "_sinkhorn_sums(Tensor logits, Tensor maximum, Tensor offset, float epsilon) -> Tensor",
    reference=reference.contrast.sinkhorn_sums,
    fake=lambda logits, *args: _like_columns(logits),
)
raw_sinkhorn_codes = define(
    "_sinkhorn_codes(Tensor logits, Tensor maximum, Tensor offset, float epsilon) -> Tensor",
    reference=reference.contrast.sinkhorn_codes,
    fake=lambda logits, *args: logits.new_empty(logits.shape),
)
for _name in ("sinkhorn", "sinkhorn_maxima", "sinkhorn_sums", "sinkhorn_codes"):
    implement_triton(f"_{_name}", "contrast.sinkhorn", _name)
for _op in (raw_sinkhorn, raw_sinkhorn_maxima, raw_sinkhorn_sums, raw_sinkhorn_codes):
    forbid_derivatives(_op, "codes are targets; call genssl_fast.sinkhorn, which detaches the logits")


@torch.no_grad()
def sinkhorn(
    logits: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""Soft codes that use all prototypes equally, by a fixed number of Sinkhorn's iterations (SwAV).

    .. math::
        Q_{bk} = e^{l_{bk} / \epsilon + u_k + v_b}, \qquad
        u_k = -\log \sum_b e^{l_{bk} / \epsilon + v_b}, \quad
        v_b = -\log \sum_k e^{l_{bk} / \epsilon + u_k}

    with u and v computed in turn, ``iterations`` times, from v = 0. This is SwAV's normalisation of rows and
    then columns of the transposed matrix, whose constants cancel: the rows of Q sum to 1. Only u and v are
    kept, in the log domain, so every finite input has finite codes, where exponentials of the logits
    overflow, or vanish for whole samples.

    Codes are targets: like SwAV's, they have no derivatives, and logits that require some are detached.

    Arguments:
        logits: similarities of samples and prototypes [B, K], fp32, fp64, bf16 or fp16; codes of 16-bit
            logits are computed in fp32 and rounded to 16 bits. An entry of -inf has the code 0.
        epsilon: weight of the entropy, positive.
        iterations: at least 1.
        group: a group of ``torch.distributed``, or True for the default one, whose processes each hold some
            of the samples, any number of them: columns are those of all samples. All its processes must call
            this together. None for the samples at hand alone.

    Returns:
        Q [B, K] in the dtype of ``logits``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or range, or processes whose K differ (on
            CUDA under ``GENSSL_CHECK=1``); the message names it.

    References:
        Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments,
        https://arxiv.org/abs/2006.09882; Cuturi, Sinkhorn Distances, https://arxiv.org/abs/1306.0895

    Example:
        >>> logits = torch.tensor([[9.0, 8.0], [9.0, 2.0]])
        >>> genssl_fast.sinkhorn(logits, epsilon=0.5, iterations=10).round(decimals=2)
        tensor([[0.0500, 0.9500],
                [1.0000, 0.0000]])
    """
    check_dtype("logits", logits)
    check(logits.ndim == 2, "logits", "shape [B, K]", list(logits.shape))
    check(logits.shape[1] > 0, "logits", "at least one prototype", list(logits.shape))
    check(0 < epsilon < math.inf, "epsilon", "a positive number", epsilon)
    check_count("iterations", iterations, 1)
    logits = logits.detach()
    if group is None:
        return raw_sinkhorn(logits, float(epsilon), iterations)
    return _sinkhorn_of_group(logits, float(epsilon), iterations, checked_group(group))


def _sinkhorn_of_group(logits: Tensor, epsilon: float, iterations: int, group) -> Tensor:
    """The same passes, with the sums of columns added over the processes: K numbers an iteration."""
    _check_columns(logits, group)
    own, sums = raw_sinkhorn_maxima(logits, epsilon)
    maximum = own.clone()
    dist.all_reduce(maximum, dist.ReduceOp.MAX, group=group)
    sums = sums * torch.exp((own - maximum) / epsilon)
    dist.all_reduce(sums, group=group)
    offset = -torch.log2(sums)
    for _ in range(1, iterations):
        sums = raw_sinkhorn_sums(logits, maximum, offset, epsilon)
        dist.all_reduce(sums, group=group)
        offset = offset - torch.log2(sums / sums.mean())  # the mean cancels, and keeps them from drifting
    return raw_sinkhorn_codes(logits, maximum, offset, epsilon)


def _check_columns(logits: Tensor, group) -> None:
    """All processes must have as many prototypes: sums of different lengths would hang or mix."""
    if not values_are_checked(logits):
        return
    columns = logits.shape[1]
    extremes = torch.tensor([columns, -columns], device=logits.device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    most, least = extremes[0].item(), -extremes[1].item()
    expected = "the same number of prototypes K in every process of the group"
    check(most == least, "logits", expected, f"from {least} to {most}, {columns} in this one")
