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
    so that no [B, K, D] is made (fp64 input makes it). The densest component of every point, which narrow
    components would lose digits of, is taken from differences. A composite of PyTorch.

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
    """log N(z_b; μ_k, σ_k) in fp64. [B, K]"""
    z, means, log_scales = z.double(), means.double(), log_scales.double()
    expanded = _expanded_log_densities(z, means, log_scales)
    densest = expanded.detach().argmax(-1)
    table = log_scales if log_scales.ndim == 2 else log_scales.reshape(-1, 1).expand(len(means), 1)
    scaled = (z - means[densest]) * torch.exp(-table[densest])
    exact = -0.5 * (scaled * scaled + math.log(2 * math.pi)) - table[densest]
    is_densest = torch.arange(len(means), device=z.device) == densest[:, None]
    return torch.where(is_densest, exact.sum(-1, keepdim=True), expanded)


def _expanded_log_densities(z: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """The same from |z|² − 2 z·μ + |μ|², which cancels where |z − μ| / |μ| is small. [B, K]"""
    dim = z.shape[1]
    origin = means.detach().mean(0)  # near the points, which makes the cancellation smaller
    z, means = z - origin, means - origin
    precision = torch.exp(-2 * log_scales)
    if log_scales.ndim == 2:
        square = torch.addmm((precision * means * means).sum(-1), z * z, precision.mT)
        square = torch.addmm(square, z, (precision * means).mT, alpha=-2)
        log_volume = log_scales.sum(-1)
    else:
        square = torch.addmm((means * means).sum(-1), z, means.mT, alpha=-2) + (z * z).sum(-1, keepdim=True)
        square, log_volume = square * precision, dim * log_scales
    return -0.5 * (square + dim * math.log(2 * math.pi)) - log_volume
