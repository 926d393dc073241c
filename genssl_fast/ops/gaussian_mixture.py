"""The log-density of a mixture of Gaussians."""

import math

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._checks import check, check_dtype, check_same, check_shape, values_are_checked

__all__ = ["component_log_densities", "gaussian_mixture_log_prob"]


def gaussian_mixture_log_prob(
    z: Tensor, means: Tensor, log_scales: Tensor, weights: Tensor | None = None
) -> Tensor:  # fmt: skip
    r"""Log-density :math:`\log \sum_k \pi_k N(z; \mu_k, \mathrm{diag}(\sigma_k^2))` of a Gaussian mixture.

    The squared distances to all means are one matrix product, in fp64 because the expanded square cancels,
    so that no [B, K, D] is made (fp64 input makes it). Of every point, the square is expanded about a mean
    that it is near, so that narrow components lose no digits. A composite of PyTorch.

    Arguments:
        z: points [B, D], fp32, fp64, bf16 or fp16.
        means: μ [K, D], in the dtype of ``z``.
        log_scales: natural logarithms of the standard deviations σ: [] or [K] for isotropic components,
            [K, D] for diagonal ones, in the dtype of ``z``.
        weights: probabilities π [K], positive with sum one, in the dtype of ``z``; None for equal ones.

    Returns:
        Log-density [B] in nats, fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.
            Values of ``weights`` are checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    References:
        Izmailov et al., Semi-Supervised Learning with Normalizing Flows, https://arxiv.org/abs/1912.13025,
        section 3

    Example:
        >>> means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> genssl_fast.gaussian_mixture_log_prob(torch.zeros(1, 2), means, torch.zeros(()))
        tensor([-2.3379])
    """
    check_dtype("z", z)
    check(z.ndim == 2, "z", "shape [B, D]", list(z.shape))
    check_same("means", means, z, "z", shape=False)
    is_table = means.ndim == 2 and means.shape[0] > 0 and means.shape[1] == z.shape[1]
    check(is_table, "means", f"shape [K, D] = [K, {z.shape[1]}], K at least 1", list(means.shape))
    check_same("log_scales", log_scales, z, "z", shape=False)
    shapes = ((), tuple(means.shape[:1]), tuple(means.shape))
    expected = f"shape [], [K] or [K, D] = {list(means.shape)}"
    check(tuple(log_scales.shape) in shapes, "log_scales", expected, list(log_scales.shape))
    weights = _checked_weights(weights, z, means)
    if z.dtype == torch.float64:
        return reference.coupling.gaussian_mixture_log_prob(z, means, log_scales, weights)
    joint = component_log_densities(z, means, log_scales) + weights.double().log()
    return joint.logsumexp(-1).to(torch.float32)


def _checked_weights(weights: Tensor | None, z: Tensor, means: Tensor) -> Tensor:
    if weights is None:
        return torch.full(means.shape[:1], 1 / len(means), dtype=z.dtype, device=z.device)
    check_same("weights", weights, z, "z", shape=False)
    check_shape("weights", weights, means.shape[:1], "[K]")
    if values_are_checked(weights):
        low, total = float(weights.detach().min()), float(weights.detach().double().sum())
        check(low > 0, "weights", "positive probabilities", f"a smallest of {low}")
        rounding = len(means) * torch.finfo(weights.dtype).eps
        check(abs(total - 1) <= rounding, "weights", "probabilities that sum to one", f"a sum of {total}")
    return weights


def component_log_densities(z: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """log N(z_b; μ_k, σ_k) in fp64, from |d|² − 2 d·(μ_k − μ) + |μ_k − μ|². [B, K]

    μ is the mean of a dense component and d = z − μ, so that nothing cancels where densities count.
    """
    z, means, log_scales = z.double(), means.double(), log_scales.double()
    precision = torch.exp(-2 * log_scales)
    origin = means.detach().mean(0)  # near the points, which makes what cancels smaller
    with torch.no_grad():
        distances = _squares(z - origin, means - origin, precision, means.new_zeros(1, z.shape[1]))
        nearest = _log_normal(distances, log_scales, z.shape[1]).argmax(-1)
    centers = means - origin
    between = _squares_between(means, precision)[nearest]
    return _log_normal(
        _squares(z - means[nearest], centers, precision, centers[nearest], between), log_scales, z.shape[1]
    )


def _squares(
    offset: Tensor, means: Tensor, precision: Tensor, center: Tensor, between: Tensor | None = None
) -> Tensor:
    """|offset + center − means|² in units of σ²; ``between`` is that of means and center. [B, K]"""
    if precision.ndim == 2:
        between = (precision * means * means).sum(-1) if between is None else between
        square = torch.addmm(between, offset * offset, precision.mT)
        square = torch.addmm(square, offset, (precision * means).mT, alpha=-2)
        return torch.addmm(square, offset * center, precision.mT, alpha=2)
    between = (means * means).sum(-1) if between is None else between
    square = torch.addmm(between, offset, means.mT, alpha=-2)
    return (square + (offset * (offset + 2 * center)).sum(-1, keepdim=True)) * precision


def _squares_between(means: Tensor, precision: Tensor) -> Tensor:
    """|μ_k − μ_j|², for scales by dimension in units of those of k. [K, K] with k last"""
    differences = means - means[:, None]
    squares = differences * differences
    return (squares * precision if precision.ndim == 2 else squares).sum(-1)


def _log_normal(squares: Tensor, log_scales: Tensor, dim: int) -> Tensor:
    log_volume = log_scales.sum(-1) if log_scales.ndim == 2 else dim * log_scales
    return -0.5 * (squares + dim * math.log(2 * math.pi)) - log_volume
