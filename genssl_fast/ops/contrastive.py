"""Contrastive losses in memory O(N D), forward and backward, where N is the number of rows.

**Memory.** The matrix of similarities is not stored. On a CPU the forward pass keeps it for the backward pass
where it is small beside the rows, at most 4 (N + M) D numbers for N and M rows (N ≤ 8 D for a square one). It
saves a product of the backward pass; above the limit nothing is kept.

**Many processes.** With ``group``, a group of ``torch.distributed`` (True for the default one), the samples
are spread over its W processes, in parts of one or more, and the loss is that of all of them. Every process
gets its value. Gradients are W times those of the loss by what a process holds, so that their mean over the
processes, which ``DistributedDataParallel`` takes, is the gradient of the loss. ``reduction="none"`` gives
the losses of a process's own rows, and gradients are then those of what all processes make of theirs. Blocks
of rows travel a ring: a process stores O(N D) for its own N. All processes call a loss and its backward pass
together, with ids and labels that mean the same on all of them. First derivatives alone.
"""

import math

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional

from genssl_fast._autocast import without_autocast
from genssl_fast._checks import check, check_number, check_shape
from genssl_fast.ops import ring as rings
from genssl_fast.ops.contrast_checks import (
    checked_ids,
    checked_matrix,
    checked_number,
    inverse_temperature,
    reduced,
    unit_rows,
)
from genssl_fast.ops.fixed_sums import times
from genssl_fast.ops.nearest_code import class_sums
from genssl_fast.ops.ring import Ring
from genssl_fast.ops.similarity import gram_logsumexp, pair_logsumexp, sigmoid_pairs
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["clip_loss", "info_nce", "moco_loss", "nt_xent", "siglip_loss", "sup_con", "with_positive"]


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    epsilon: float = 1.0,
    ids: Tensor | None = None,
    reduction: str = "mean",
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""The normalised temperature-scaled cross-entropy of SimCLR, over two views of N samples.

    Each of the 2N rows is to find its other view i' among all rows but itself:

    .. math::
        \ell_i = -\log \frac{e^{s_{ii'}}}{\epsilon \, e^{s_{ii'}} + \sum_{j \ne i, i'} e^{s_{ij}}},
        \qquad s_{ij} = z_i \cdot z_j / T

    The matrix of s is symmetric: its tiles above the diagonal serve rows and columns, 4 (2N)² D operations
    forward and backward (3 on a CPU where 2N ≤ 8 D) where plain PyTorch takes 6. Memory is O(N D).

    Arguments:
        z1, z2: the views [N, D], fp32, fp64, bf16 or fp16 (computed in fp32).
        temperature: T > 0, a number, a tensor [], or one for each sample [N], learnable.
        normalize: bring the rows to length 1 first; then none may be zero.
        epsilon: weight of the positive in the denominator: 1 is NT-Xent, 0 the decoupled loss (DCL), which of
            a row without negatives is −∞.
        ids: integers of 32 bits [N]; samples with equal ids are no negatives of each other.
        reduction: ``"mean"`` over the 2N rows, ``"sum"``, or ``"none"`` for all of them, of ``z1`` first.
        group: processes over which the samples are spread; see :mod:`genssl_fast.ops.contrastive`.

    Returns:
        The loss [], or [2N], in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.
            Values of tensors are checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    References:
        Chen et al., A Simple Framework for Contrastive Learning, https://arxiv.org/abs/2002.05709; Yeh et
        al., Decoupled Contrastive Learning, https://arxiv.org/abs/2110.06848

    Example:
        >>> z = torch.eye(4)
        >>> genssl_fast.nt_xent(z, z, 0.5)
        tensor(0.5944)
    """
    checked_matrix("z1", z1)
    checked_matrix("z2", z2, z1, "z1")
    check_shape("z2", z2, z1.shape, "that of z1")
    scale = inverse_temperature(temperature, z1)
    log_epsilon = checked_log_epsilon(epsilon)
    same = {"normalize": normalize, "epsilon": epsilon, "ids": ids is not None, "reduction": reduction}
    ring = _ring(group, "nt_xent", {"rows": (z1, z2)}, scale, same)
    scale = _scale_of_rows(scale, len(z1), ring)
    ids = checked_ids("ids", ids, len(z1), z1.device, _first_id(ring))
    first, second = unit_rows("z1", z1, normalize), unit_rows("z2", z2, normalize)
    losses = nt_xent_rows(first, second, scale, ids, log_epsilon, ring)
    return reduced(losses, reduction, ring)


def nt_xent_rows(
    first: Tensor,
    second: Tensor,
    scale: Tensor,
    ids: Tensor,
    log_epsilon: float,
    ring: Ring | None = None,
) -> Tensor:
    """The losses [2N] of views that are ready, for a scale [] or [N] of any sign."""
    positive, negatives = view_logits(first, second, scale, ids, ring)
    return with_positive(negatives - positive.repeat(2), log_epsilon)


def view_logits(
    first: Tensor, second: Tensor, scale: Tensor, ids: Tensor, ring: Ring | None = None
) -> tuple[Tensor, Tensor]:
    """Logits of the positives [N], and log-sum-exps of the others [2N], of ``first`` first."""
    positive = times(scale, products_of_rows(first, second))
    z, ids = torch.cat([first, second]), ids.repeat(2)
    if scale.ndim:
        scaled = z * scale.repeat(2)[:, None]
        negatives, _ = _pair_logsumexp(scaled, z, scale.new_ones(()), ids, ids, False, ring)
    else:
        negatives = _gram_logsumexp(z, scale, ids, ring)
    return positive, negatives


def _ring(group, loss: str, blocks: dict, scale: Tensor, same: dict, *others: Tensor) -> Ring | None:
    """The processes of a group, all of which call the same loss in the same way."""
    if group is None:
        return None
    return Ring(group, blocks, (scale, *others), {"loss": loss} | same, scale.ndim > 0)


def _scale_of_rows(scale: Tensor, count: int, ring: Ring | None) -> Tensor:
    """A number for each row where another process has such: of one row, no shape tells which it is."""
    return scale.expand(count) if ring is not None and ring.per_row else scale


def _first_id(ring: Ring | None, name: str = "rows") -> int:
    """Of the rows at hand, where users number none."""
    return 0 if ring is None else ring.offset(name)


def _pair_logsumexp(x, y, scale, row_ids, column_ids, columns, ring, name="rows") -> tuple[Tensor, Tensor]:
    """Over the rows at hand, or with a ring over those of all processes."""
    pairs = (x, y, scale, None, None, row_ids, column_ids, columns)
    return pair_logsumexp(*pairs) if ring is None else rings.pair_logsumexp(*pairs, ring, name)


def _gram_logsumexp(z, scale, ids, ring) -> Tensor:
    """Over the rows at hand but each itself, or with a ring over those of all processes."""
    if ring is None:
        return gram_logsumexp(z, scale, None, ids)
    if ids is None:
        ids = checked_ids("ids", None, len(z), z.device, ring.offset("rows"))
    return rings.gram_logsumexp(z, scale, None, ids, ring)


def checked_log_epsilon(epsilon: float) -> float:
    """The logarithm of the weight of a positive in its denominator."""
    check_number("epsilon", epsilon)
    check(0 <= epsilon < math.inf, "epsilon", "a finite number, at least 0", epsilon)
    return math.log(epsilon) if epsilon else -math.inf


def with_positive(difference: Tensor, log_epsilon: float = 0.0) -> Tensor:
    """log(ε + e^difference), which keeps the digits of a loss near 0."""
    if log_epsilon == -math.inf:
        return difference
    return log_epsilon - functional.logsigmoid(log_epsilon - difference)


def products_of_rows(x: Tensor, y: Tensor) -> Tensor:
    dtype = compute_dtype(x.dtype)
    return (x.to(dtype) * y.to(dtype)).sum(-1)


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    negatives: Tensor | None = None,
    in_batch: bool | None = None,
    symmetric: bool = False,
    normalize: bool = True,
    ids: Tensor | None = None,
    reduction: str = "mean",
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""InfoNCE: each query is to find its key among the keys of the others, or among given negatives.

    .. math::
        \ell_i = -\log \frac{e^{q_i \cdot k_i / T}}{e^{q_i \cdot k_i / T} + \sum_n e^{q_i \cdot n / T}}

    Arguments:
        query, key: [N, D], fp32, fp64, bf16 or fp16 (computed in fp32).
        temperature: T > 0, a number, a tensor [], or one for each query [N], learnable.
        negatives: [M, D] shared by all queries, or [N, M, D], for each query its own.
        in_batch: whether the other keys are negatives; by default only without ``negatives``.
        symmetric: the mean of this and of the loss that finds the query for each key, in one pass.
        normalize: bring the rows to length 1 first; then none may be zero.
        ids: integers of 32 bits [N]; pairs with equal ids are no negatives of each other.
        reduction: ``"mean"`` over the queries, ``"sum"``, or ``"none"`` for all of them.
        group: processes over which queries, keys and shared negatives are spread; see
            :mod:`genssl_fast.ops.contrastive`.

    Returns:
        The loss [], or [N], in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.
            Values of tensors are checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    References:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding,
        https://arxiv.org/abs/1807.03748

    Example:
        >>> x = torch.eye(4)
        >>> genssl_fast.info_nce(x, x, 1.0)
        tensor(0.7437)
    """
    checked_matrix("query", query)
    checked_matrix("key", key, query, "query")
    check_shape("key", key, query.shape, "that of query")
    scale = inverse_temperature(temperature, query)
    in_batch = negatives is None if in_batch is None else in_batch
    check(in_batch or negatives is not None, "in_batch", "True without negatives", in_batch)
    check(in_batch or not symmetric, "symmetric", "False without negatives in the batch", symmetric)
    same = {"in_batch": in_batch, "symmetric": symmetric, "normalize": normalize, "reduction": reduction}
    same |= {"ids": ids is not None, "shape of negatives": getattr(negatives, "ndim", None)}
    shared = {"negatives": (negatives,)} if getattr(negatives, "ndim", None) == 2 else {}
    given = (query,) if negatives is None else (query, negatives)
    ring = _ring(group, "info_nce", {"rows": (key,)} | shared, scale, same, *given)
    scale = _scale_of_rows(scale, len(query), ring)
    ids = checked_ids("ids", ids, len(query), query.device, _first_id(ring))
    query, key = unit_rows("query", query, normalize), unit_rows("key", key, normalize)
    positive = times(scale, products_of_rows(query, key))
    sums = []
    if in_batch:
        rows, columns = _in_batch_sums(query, key, scale, ids, symmetric, ring)
        sums.append(rows)
    if negatives is not None:
        sums.append(_negative_sums(query, negatives, scale, normalize, ring))
    log_sum = sums[0] if len(sums) == 1 else torch.logaddexp(*sums)
    losses = with_positive(log_sum - positive)
    if symmetric:
        losses = (losses + with_positive(columns - positive)) / 2
    return reduced(losses, reduction, ring)


def _in_batch_sums(query, key, scale, ids, symmetric, ring) -> tuple[Tensor, Tensor]:
    """log Σ over other keys [N] and, if ``symmetric``, over other queries [N]."""
    if scale.ndim:
        query, scale = query * scale[:, None], scale.new_ones(())
    return _pair_logsumexp(query, key.to(query.dtype), scale, ids, ids, symmetric, ring)


def _negative_sums(query, negatives, scale, normalize, ring) -> Tensor:
    """log Σ over negatives [N]."""
    shared = negatives.ndim == 2
    if shared:
        checked_matrix("negatives", negatives)
    else:
        count = negatives.shape[1] if negatives.ndim == 3 else 1
        check_shape("negatives", negatives, (len(query), count, query.shape[1]), "[M, D] or [N, M, D]")
        check(count > 0, "negatives", "at least one", count)
    check(negatives.shape[-1] == query.shape[1], "negatives", f"D = {query.shape[1]}", negatives.shape[-1])
    negatives = unit_rows("negatives", negatives, normalize).to(query.dtype)
    if not shared:
        return times(scale, _products_with_own(query, negatives)).logsumexp(1)
    if scale.ndim:
        query, scale = query * scale[:, None], scale.new_ones(())
    negatives = negatives.to(query.dtype)
    return _pair_logsumexp(query, negatives, scale, None, None, False, ring, "negatives")[0]


@without_autocast
def _products_with_own(query: Tensor, negatives: Tensor) -> Tensor:
    """⟨q_n, negative_nm⟩ [N, M] of each query with negatives [N, M, D] of its own."""
    dtype = compute_dtype(query.dtype)
    return torch.einsum("nd,nmd->nm", query.to(dtype), negatives.to(dtype))


def moco_loss(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""The loss of MoCo: each query is to find its key among the keys of earlier batches.

    The queue is read where it lies, whatever its order, and nothing is stored for each pair. Gradients go
    to ``query`` (and ``temperature``) alone.

    Arguments:
        query, key: [N, D], fp32, fp64, bf16 or fp16 (computed in fp32).
        queue: earlier keys [K, D], K at least N, of length 1 already where ``normalize`` is.
        temperature: T > 0, a number, a tensor [], or one for each query [N], learnable.
        normalize: bring ``query`` and ``key`` to length 1 first; then no row may be zero.
        reduction: ``"mean"`` over the queries, ``"sum"``, or ``"none"`` for all of them.
        group: processes over which queries and keys are spread; see :mod:`genssl_fast.ops.contrastive`. The
            queue is the same on all of them.

    Returns:
        The loss [], or [N], in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.

    References:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning,
        https://arxiv.org/abs/1911.05722

    Example:
        >>> x = torch.eye(4)
        >>> genssl_fast.moco_loss(x[:2], x[:2], x[2:], temperature=1.0)
        tensor(0.5514)
    """
    checked_matrix("query", query)
    checked_matrix("key", key, query, "query")
    check_shape("key", key, query.shape, "that of query")
    checked_matrix("queue", queue, query, "query")
    check(len(queue) >= len(query), "queue", f"at least the {len(query)} rows of a batch", len(queue))
    scale = inverse_temperature(temperature, query)
    same = {"normalize": normalize, "reduction": reduction}
    ring = _ring(group, "moco_loss", {"rows": (query,)}, scale, same)
    query, key = unit_rows("query", query, normalize), unit_rows("key", key.detach(), normalize)
    negatives = _negative_sums(query, queue.detach(), scale, False, None)
    losses = with_positive(negatives - times(scale, products_of_rows(query, key)))
    return reduced(losses, reduction, ring)


def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    bias: float | Tensor | None = None,
    *,
    normalize: bool = False,
    ids: Tensor | None = None,
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""The loss of CLIP: each image is to find its text and each text its image, in one pass over the pairs.

    .. math::
        L = \frac{1}{2N} \sum_i \Big( \log \sum_j e^{s_{ij}} + \log \sum_j e^{s_{ji}} - 2 s_{ii} \Big),
        \qquad s_{ij} = \mathrm{logit\_scale} \; x_i \cdot y_j + \mathrm{bias}

    8 N² D operations forward and backward, 6 on a CPU where N ≤ 8 D: one product of all pairs serves rows and
    columns, and one exponential a pair the gradients of both.

    Arguments:
        image, text: x and y [N, D], fp32, fp64, bf16 or fp16 (16-bit computed in fp32), of length 1 already.
        logit_scale: the scale itself (open_clip's ``logit_scale.exp()``), a number or a tensor [], learnable.
        bias: a number or a tensor []; the loss does not depend on it, and its gradient is exactly 0.
        normalize: bring the rows to length 1 first; then none may be zero.
        ids: integers of 32 bits [N]; pairs with equal ids are no negatives of each other.
        group: processes over which the samples are spread; see :mod:`genssl_fast.ops.contrastive`.

    Returns:
        The loss [] in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.

    References:
        Radford et al., Learning Transferable Visual Models, https://arxiv.org/abs/2103.00020; the symmetric
        loss of open_clip's ``ClipLoss``

    Example:
        >>> x = torch.eye(4)
        >>> genssl_fast.clip_loss(x, x, logit_scale=1.0)
        tensor(0.7437)
    """
    checked_matrix("image", image)
    checked_matrix("text", text, image, "image")
    check_shape("text", text, image.shape, "that of image")
    scale = checked_number("logit_scale", logit_scale, image)
    same = {"normalize": normalize, "ids": ids is not None}
    ring = _ring(group, "clip_loss", {"rows": (text,)}, scale, same, image)
    ids = checked_ids("ids", ids, len(image), image.device, _first_id(ring))
    image, text = unit_rows("image", image, normalize), unit_rows("text", text, normalize)
    rows, columns = clip_rows(image, text, scale, ids, ring)
    loss = (reduced(rows, "mean", ring) + reduced(columns, "mean", ring)) / 2
    return loss if bias is None else loss + 0 * checked_number("bias", bias, image)


def clip_rows(
    image: Tensor, text: Tensor, scale: Tensor, ids: Tensor, ring: Ring | None
) -> tuple[Tensor, Tensor]:
    """The losses of images [N] and of texts [N]."""
    positive = times(scale, products_of_rows(image, text))
    rows, columns = _pair_logsumexp(image, text, scale, ids, ids, True, ring)
    return with_positive(rows - positive), with_positive(columns - positive)


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    bias: float | Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    normalize: bool = False,
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""The sigmoid loss of SigLIP: every pair of an image and a text is classified by itself.

    .. math::
        L = \frac{1}{N} \sum_{ij} \log(1 + e^{-y_{ij} s_{ij}}), \qquad
        s_{ij} = \mathrm{logit\_scale} \; x_i \cdot y_j + \mathrm{bias}

    with y = 1 for pairs that belong together and −1 for others. There is no sum to normalise by, so the
    gradients are found with the loss, 6 N² D operations in all; without gradients 2 N² D.

    Arguments:
        image: x [N, D], fp32, fp64, bf16 or fp16 (16-bit computed in fp32), of length 1 already.
        text: y [M, D]; M = N without ids.
        logit_scale: the scale itself (open_clip's ``logit_scale.exp()``), a number or a tensor [], learnable.
        bias: a number or a tensor [], learnable; SigLIP begins at −10.
        image_ids, text_ids: integers of 32 bits [N] and [M]; those with equal ids belong together. Without
            them image i and text i do. With ``text_ids`` None the texts have the ids of the images.
        normalize: bring the rows to length 1 first; then none may be zero.
        group: processes over which the samples are spread; see :mod:`genssl_fast.ops.contrastive`.

    Returns:
        The loss [] in fp32 (fp64 for fp64), the sum over all pairs divided by N.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.

    References:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, https://arxiv.org/abs/2303.15343

    Example:
        >>> x = torch.eye(4)
        >>> genssl_fast.siglip_loss(x, x, logit_scale=10.0, bias=-10.0)
        tensor(0.6933)
    """
    checked_matrix("image", image)
    checked_matrix("text", text, image, "image")
    scale, bias = checked_number("logit_scale", logit_scale, image), checked_number("bias", bias, image)
    if text_ids is None:
        check(len(text) == len(image), "text", f"the {len(image)} rows of image without text_ids", len(text))
        text_ids = image_ids
    check(image_ids is not None or text_ids is None, "image_ids", "ids beside text_ids", image_ids)
    same = {"normalize": normalize, "ids": image_ids is not None}
    blocks = {"rows": (image,), "texts": (text,)}
    ring = _ring(group, "siglip_loss", blocks, scale, same, bias)
    image_ids = checked_ids("image_ids", image_ids, len(image), image.device, _first_id(ring))
    text_ids = checked_ids("text_ids", text_ids, len(text), text.device, _first_id(ring))
    image, text = unit_rows("image", image, normalize), unit_rows("text", text, normalize)
    pairs = (image, text, scale, bias, image_ids, text_ids)
    if ring is None:
        return sigmoid_pairs(*pairs) / len(image)
    return ring.total(rings.sigmoid_pairs(*pairs, ring, "texts")) / ring.count


def sup_con(
    z: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    base_temperature: float | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""The supervised contrastive loss: each row is to find the others of its class P(i) among all rows.

    .. math::
        \ell_i = \frac{T}{T_0} \Big( \log \sum_{j \ne i} e^{s_{ij}}
        - \frac{1}{|P(i)|} \sum_{p \in P(i)} s_{ip} \Big), \qquad s_{ij} = z_i \cdot z_j / T

    The sum over positives is one product with the sum of the class, so that 4 N² D operations remain.

    Arguments:
        z: [N, D], fp32, fp64, bf16 or fp16 (computed in fp32); views of a sample share its label.
        labels: integers of 32 bits [N].
        temperature: T > 0, a number or a tensor [], learnable.
        base_temperature: T₀, by which SupContrast scales the loss (0.07 there); None for T itself.
        normalize: bring the rows to length 1 first; then none may be zero.
        reduction: ``"mean"`` over all rows, ``"sum"``, or ``"none"`` for all of them. A row without positives
            has the loss 0.
        group: processes over which the samples are spread; see :mod:`genssl_fast.ops.contrastive`.

    Returns:
        The loss [], or [N], in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.

    References:
        Khosla et al., Supervised Contrastive Learning, https://arxiv.org/abs/2004.11362

    Example:
        >>> z = torch.eye(4)
        >>> genssl_fast.sup_con(z, torch.tensor([0, 0, 1, 1]), temperature=1.0)
        tensor(1.0986)
    """
    checked_matrix("z", z)
    labels = checked_ids("labels", labels, len(z), z.device)
    scale = inverse_temperature(temperature, z)
    check(scale.ndim == 0, "temperature", "one for all rows", list(scale.shape))
    same = {"normalize": normalize, "base_temperature": base_temperature, "reduction": reduction}
    ring = _ring(group, "sup_con", {"rows": (z,)}, scale, same)
    z = unit_rows("z", z, normalize)
    log_sum = _gram_logsumexp(z, scale, None, ring)
    others, count = _sums_of_class(z.to(scale.dtype), labels, ring)
    positive = times(scale, products_of_rows(z, others)) / count.clamp_min(1)
    losses = torch.where(count > 0, log_sum - positive, 0.0)
    if base_temperature is not None:
        losses = times(1 / (scale * base_temperature), losses)
    return reduced(losses, reduction, ring)


def _sums_of_class(z: Tensor, labels: Tensor, ring: Ring | None) -> tuple[Tensor, Tensor]:
    """For every row the sum of the others of its class [N, D] and their number [N], by a sort."""
    if ring is not None:
        sums = rings.class_sums(functional.pad(z, (0, 1), value=1.0), labels, ring)
        return sums[:, :-1] - z, sums[:, -1] - 1
    order = labels.argsort(stable=True)
    begins = functional.pad(labels[order].diff() != 0, (1, 0))
    place = torch.empty_like(order).scatter_(0, order, begins.cumsum(0))
    counts = z.new_zeros(len(z)).index_add(0, place, z.new_ones(len(z)))
    return class_sums(z, place) - z, counts[place] - 1
