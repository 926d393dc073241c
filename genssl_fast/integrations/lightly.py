"""lightly's losses on kernels of this library, without matrices of pairs or features; as in version 1.6.

Same signatures, defaults, memory banks and errors. Losses are in fp32 (fp64 for fp64), whatever the dtype of
the projections. With ``gather_distributed`` the contrastive losses gather nothing: blocks travel a ring
(:mod:`genssl_fast.ops.ring`), and processes may hold different numbers of samples. lightly is not imported.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from genssl_fast._checks import check, check_shape
from genssl_fast.ops.contrast_checks import checked_ids, checked_matrix, checked_number
from genssl_fast.ops.contrastive import nt_xent_rows, view_logits, with_positive
from genssl_fast.ops.decorrelation import barlow_twins, vicreg
from genssl_fast.ops.fixed_sums import mean, times, total
from genssl_fast.ops.ring import Ring
from genssl_fast.ops.similarity import pair_logsumexp
from genssl_fast.ops.sinkhorn import sinkhorn
from genssl_fast.ops.soft_cross_entropy import soft_cross_entropy
from genssl_fast.reference.integrate import compute_dtype

__all__ = [
    "BarlowTwinsLoss",
    "DCLLoss",
    "DCLWLoss",
    "MemoryBankModule",
    "NTXentLoss",
    "SwaVLoss",
    "VICRegLoss",
    "negative_mises_fisher_weights",
]


class MemoryBankModule(nn.Module):
    """``lightly.models.modules.memory_bank.MemoryBankModule``: the projections of earlier batches.

    Arguments:
        size: (number of projections, their length), or 0 for no bank.
        gather_distributed: enqueue the batches of all processes.
        feature_dim_first: return the bank transposed.
    """

    def __init__(
        self, size: int | Sequence[int], gather_distributed: bool = False, feature_dim_first: bool = True
    ):
        super().__init__()
        shape = (size,) if isinstance(size, int) else tuple(size)
        if any(n < 0 for n in shape):
            raise ValueError(f"size: Illegal memory bank size {size}, all entries must be non-negative.")
        check(shape == (0,) or len(shape) == 2, "size", "(num_features, dim), or 0 for no memory bank", size)
        self.size, self.gather_distributed, self.feature_dim_first = (
            shape,
            gather_distributed,
            feature_dim_first,
        )
        bank = functional.normalize(torch.randn(shape), dim=-1) if len(shape) == 2 else torch.empty(shape)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and a copy of the bank as it was before it got the output, or None without one."""
        if self.size[0] == 0:
            return output, None
        bank = self.bank.clone()
        if update:
            self._enqueue(output.detach())
        return output, bank.T if self.feature_dim_first else bank

    @torch.no_grad()
    def _enqueue(self, batch: Tensor) -> None:
        if self.gather_distributed and _world_size() > 1:
            parts = [torch.empty_like(batch) for _ in range(_world_size())]
            dist.all_gather(parts, batch.contiguous())
            batch = torch.cat(parts)
        begin = int(self.bank_ptr)
        end = min(begin + len(batch), self.size[0])
        self.bank[begin:end] = batch[: end - begin]
        self.bank_ptr[0] = end % self.size[0]


class NTXentLoss(nn.Module):
    """``lightly.loss.NTXentLoss``: SimCLR's loss, or MoCo's with a memory bank.

    Arguments:
        temperature: of any sign, not 0.
        memory_bank_size: (number of projections, their length), or 0 for SimCLR.
        gather_distributed: negatives, and what the bank gets, are those of all processes. The value is that
            of this process's rows.

    Example:
        >>> from genssl_fast.integrations.lightly import NTXentLoss
        >>> NTXentLoss()(torch.eye(4), torch.eye(4))
        tensor(0.5944)
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ):
        super().__init__()
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.eps = 1e-8
        check(abs(temperature) >= self.eps, "temperature", "a number of at least 1e-8, or -1e-8", temperature)
        _check_available("gather_distributed", gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss [] of two views [N, D]; the bank gets ``out1`` where ``out0`` requires a gradient."""
        first, second, scale = _ready(out0, out1, self.temperature)
        _, bank = self.memory_bank(second, update=out0.requires_grad)
        if bank is None:
            return _mean_of_views(
                self,
                first,
                second,
                scale,
                lambda ids, ring: nt_xent_rows(first, second, scale, ids, 0.0, ring),
            )
        negatives = bank.T.to(first)
        check(negatives.shape[1] == first.shape[1], "out0", f"D = {negatives.shape[1]} of the memory bank",
              first.shape[1])  # fmt: skip
        positive = times(scale, (first * second).sum(1))
        log_sum, _ = pair_logsumexp(first, negatives, scale, None, None, None, None, False)
        return mean(with_positive(log_sum - positive))


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """Weights [N] of positives that are small for those that are alike already."""
    similarity = (out0.detach() * out1.detach()).sum(1) / sigma
    return 2 - len(out0) * similarity.softmax(0)


class DCLLoss(nn.Module):
    """``lightly.loss.DCLLoss``: the decoupled loss, whose denominators leave the positive out.

    Arguments:
        temperature: of any sign, not 0.
        weight_fn: weights [N] of positives from two views of length 1 [N, D]; called for both orders.
        gather_distributed: negatives are those of all processes. The value is that of this process's rows.

    Example:
        >>> from genssl_fast.integrations.lightly import DCLLoss
        >>> DCLLoss(temperature=0.5)(torch.eye(4), torch.eye(4))
        tensor(-0.2082)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ):
        super().__init__()
        self.temperature, self.weight_fn, self.gather_distributed = temperature, weight_fn, gather_distributed
        _check_available("gather_distributed", gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss [] of two views [N, D]."""
        first, second, scale = _ready(out0, out1, self.temperature)

        def losses(ids, ring):
            positive, negatives = view_logits(first, second, scale, ids, ring)
            positive = positive.repeat(2)
            if self.weight_fn:
                views = ((first, second), (second, first))
                positive = positive * torch.cat([self.weight_fn(*pair) for pair in views])
            return negatives - positive

        return _mean_of_views(self, first, second, scale, losses)


class DCLWLoss(DCLLoss):
    """``lightly.loss.DCLWLoss``: the decoupled loss with :func:`negative_mises_fisher_weights`."""

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False):
        super().__init__(temperature, partial(negative_mises_fisher_weights, sigma=sigma), gather_distributed)


class BarlowTwinsLoss(nn.Module):
    """``lightly.loss.BarlowTwinsLoss``: the correlations of two views' features are drawn to the identity.

    Arguments:
        lambda_param: weight of what is off the diagonal.
        gather_distributed: correlations are the means of those of all processes, each normalised over its own
            batch. That takes the D×D matrix, as there.

    Example:
        >>> from genssl_fast.integrations.lightly import BarlowTwinsLoss
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> BarlowTwinsLoss()(z, z) < 1e-6
        tensor(True)
    """

    def __init__(self, lambda_param: float = 5e-3, gather_distributed: bool = False):
        super().__init__()
        self.lambda_param, self.gather_distributed = lambda_param, gather_distributed
        _check_available("gather_distributed", gather_distributed)

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss [] of two views [N, D]."""
        if not self.gather_distributed or _world_size() == 1:
            return barlow_twins(z_a, z_b, weight=self.lambda_param, scale=1.0)
        first, second = (_batch_norm(z.to(compute_dtype(z.dtype))) for z in (z_a, z_b))
        correlations = _SumOfProcesses.apply(first.T @ second / (len(first) * _world_size()))
        on = (correlations.diagonal() - 1).square().sum()
        return on + self.lambda_param * correlations.fill_diagonal_(0).square().sum()


class VICRegLoss(nn.Module):
    """``lightly.loss.VICRegLoss``: invariance of two views, features of unit deviation without covariance.

    Arguments:
        lambda_param, mu_param, nu_param: weights of invariance, variance and covariance.
        gather_distributed: variances and covariances are those of the batches of all processes, gathered as
            there; they must be of one size.
        eps: added to the variances.

    Example:
        >>> from genssl_fast.integrations.lightly import VICRegLoss
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> VICRegLoss()(z, z)
        tensor(0.)
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
    ):
        super().__init__()
        _check_available("gather_distributed", gather_distributed)
        self.lambda_param, self.mu_param, self.nu_param = lambda_param, mu_param, nu_param
        self.gather_distributed, self.eps = gather_distributed, eps

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss [] of two views [N, ..., D]."""
        if min(len(z_a), len(z_b)) < 2 or z_a.shape != z_b.shape:
            raise AssertionError(
                f"z_a and z_b: expected the same shape [N, ..., D], N at least 2, got {list(z_a.shape)} and "
                f"{list(z_b.shape)}"
            )
        weights = {"variance": self.mu_param, "covariance": self.nu_param, "eps": self.eps}
        weights["convention"] = "lightly"
        if not self.gather_distributed or _world_size() == 1:
            return vicreg(z_a, z_b, invariance=self.lambda_param, **weights)
        pair = [z.to(compute_dtype(z.dtype)) for z in (z_a, z_b)]
        gathered = [_Gathered.apply(z) for z in pair]
        return self.lambda_param * functional.mse_loss(*pair) + vicreg(*gathered, invariance=0.0, **weights)


class SwaVLoss(nn.Module):
    """``lightly.loss.SwaVLoss``: codes of one view are foretold from the others.

    Codes are found in the log domain, so that no similarity is too large. The result has the shape [1].

    Arguments:
        temperature: of the softmax that foretells, greater than 0.
        sinkhorn_iterations, sinkhorn_epsilon: of the codes.
        sinkhorn_gather_distributed: codes use prototypes equally over the samples of all processes.

    Example:
        >>> from genssl_fast.integrations.lightly import SwaVLoss
        >>> SwaVLoss()([torch.zeros(3, 4), torch.zeros(3, 4)], [torch.zeros(3, 4)])
        tensor([1.3863])
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ):
        super().__init__()
        _check_available("sinkhorn_gather_distributed", sinkhorn_gather_distributed)
        self.temperature, self.sinkhorn_iterations = temperature, sinkhorn_iterations
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed

    def subloss(self, z: Tensor, q: Tensor) -> Tensor:
        """−Σ q log softmax(z / T) of similarities z and codes q [N, K], whatever q sums to; its mean []."""
        log_q = q.clamp_min(torch.finfo(q.dtype).tiny).log()
        options = {"student_temperature": self.temperature, "teacher_temperature": 1.0}
        return soft_cross_entropy(z, log_q, weights=q.sum(1), **options)

    def forward(
        self,
        high_resolution_outputs: list[Tensor],
        low_resolution_outputs: list[Tensor],
        queue_outputs: list[Tensor] | None = None,
    ) -> Tensor:
        """The loss [1] of similarities of crops [N, K], and of the queue of each high resolution crop."""
        crops = [*high_resolution_outputs, *low_resolution_outputs]
        counts = len(high_resolution_outputs), len(low_resolution_outputs)
        enough = counts[0] >= 1 and len(crops) >= 2
        check(enough, "high_resolution_outputs", "at least one, and two crops in all", counts)
        losses = []
        for number, outputs in enumerate(high_resolution_outputs):
            q = self._codes(outputs, None if queue_outputs is None else queue_outputs[number])
            losses += [self.subloss(z, q) for other, z in enumerate(crops) if other != number]
        return torch.stack(losses).mean().reshape(1)

    @torch.no_grad()
    def _codes(self, outputs: Tensor, queue: Tensor | None) -> Tensor:
        """Codes [N, K] of a crop, found together with its queue."""
        count = len(outputs)
        if queue is not None:
            outputs = torch.cat([outputs, queue])
        spread = self.sinkhorn_gather_distributed and _world_size() > 1
        if self.sinkhorn_iterations == 0:
            return _shares(outputs / self.sinkhorn_epsilon, spread)[:count]
        options = {"epsilon": self.sinkhorn_epsilon, "iterations": self.sinkhorn_iterations}
        return sinkhorn(outputs, group=dist.group.WORLD if spread else None, **options)[:count]


def _shares(logits: Tensor, spread: bool) -> Tensor:
    """Exponentials that sum to the number of rows, of all processes if ``spread``: no iteration at all."""
    log_sum = logits.logsumexp((0, 1))
    if not spread:
        return len(logits) * torch.exp(logits - log_sum)
    sums = _Gathered.apply(log_sum.reshape(1))
    return len(logits) * len(sums) * torch.exp(logits - sums.logsumexp(0))


class _SumOfProcesses(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return _SumOfProcesses.apply(grad)


class _Gathered(torch.autograd.Function):
    """The rows of all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        return _SumOfProcesses.apply(grad).chunk(_world_size())[dist.get_rank()]


def _batch_norm(z: Tensor) -> Tensor:
    """Features normalised over the batch."""
    return functional.batch_norm(z, None, None, training=True)


def _ready(out0: Tensor, out1: Tensor, temperature) -> tuple[Tensor, Tensor, Tensor]:
    """Views of length 1, but for rows of zeros, in the precision that they are computed in; 1 / T."""
    checked_matrix("out0", out0)
    checked_matrix("out1", out1, out0, "out0")
    check_shape("out1", out1, out0.shape, "that of out0")
    views = (functional.normalize(out.to(compute_dtype(out.dtype)), dim=1) for out in (out0, out1))
    return *views, 1 / checked_number("temperature", temperature, out0)


def _mean_of_views(module, first: Tensor, second: Tensor, scale: Tensor, losses: Callable) -> Tensor:
    """The mean over this process's rows; with W processes, such that means of gradients are those of all."""
    ring = None
    if module.gather_distributed and _world_size() > 1:
        ring = Ring(True, {"rows": (first, second)}, (scale,), {"loss": type(module).__name__})
    start = 0 if ring is None else ring.offset("rows")
    found = losses(checked_ids("ids", None, len(first), first.device, start), ring)
    return mean(found) if ring is None else total(found) * (ring.size / ring.count)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _check_available(name: str, wanted: bool) -> None:
    check(not wanted or dist.is_available(), name, "False where torch.distributed is not available", wanted)
