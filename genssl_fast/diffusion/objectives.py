r"""Training objectives: denoising score matching, and the loss of DDPM.

Both draw times and noise on the counter-based generator. ``seed=None`` takes a fresh seed from
PyTorch's default generator, so ``torch.manual_seed`` makes a training run reproducible; a given
seed makes the draws of sample number ``first_sample + b`` at training step ``step`` independent of
the batch around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast._checks import check, check_choice
from genssl_fast._random import Stream, step_counter
from genssl_fast.diffusion.parameterizations import convert, target
from genssl_fast.diffusion.processes import DDPMSchedule, GaussianProcess, per_sample
from genssl_fast.ops.random import random_normal, random_uniform

__all__ = ["ddpm_loss", "denoising_score_matching", "log_snr_time"]


class _Noised(NamedTuple):
    """Data at a random time: the state x [B, ...], its noise, and the levels [B] at the times t."""

    x: Tensor
    noise: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


def log_snr_time(process: GaussianProcess, u: Tensor, min_time: float = 1e-5) -> Tensor:
    r"""Maps u, uniform on (0, 1], to times of density proportional to :math:`g(t)^2 / \sigma(t)^2`.

    For every linear process :math:`g^2 / \sigma^2` is the rate at which the log signal-to-noise
    ratio falls, so these times are those at which that ratio is uniform.

    Arguments:
        process: The forward process, in continuous time.
        u: Numbers in (0, 1], of any shape.
        min_time: The smallest time.

    References:
        Song et al., Maximum Likelihood Training of Score-Based Diffusion Models,
        https://arxiv.org/abs/2101.09258

    Example:
        >>> from genssl_fast.diffusion import VESDE, log_snr_time
        >>> log_snr_time(VESDE(), torch.tensor([0.5, 1.0]))
        tensor([0.5000, 1.0000])
    """
    first, last = _log_snr_ends(process, min_time)
    return process.time_at_log_snr(first + (last - first) * u)


def denoising_score_matching(
    model: Callable[..., Tensor],
    process: GaussianProcess,
    x0: Tensor,
    *,
    weighting: str = "simple",
    importance_sampling: bool = True,
    parameterization: str = "noise",
    labels: Tensor | None = None,
    min_time: float = 1e-5,
    time_scale: float = 1.0,
    input_scale: Callable[[Tensor, Tensor], Tensor] | None = None,
    reduction: str = "mean",
    seed: int | Tensor | None = None,
    step: int = 0,
    first_sample: int = 0,
) -> Tensor:
    r"""Denoising score matching in continuous time.

    .. math::
        \mathbb{E}_{t, \varepsilon} \Big[ \lambda(t)\, \tfrac{1}{D}
        \big\| s_\theta(x_t, t) + \varepsilon / \sigma(t) \big\|^2 \Big], \quad
        x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon

    Weightings: ``"simple"`` is :math:`\lambda = \sigma(t)^2`, the plain error of the predicted
    noise; ``"likelihood"`` is :math:`\lambda = g(t)^2`, whose expectation, times half the
    dimension D, bounds the negative log-likelihood up to a constant.

    Arguments:
        model: The network, called as ``model(x, t)`` or ``model(x, t, labels)`` with t [B].
        process: The forward process, in continuous time.
        x0: The data [B, ...].
        weighting: The name of the weighting.
        importance_sampling: Whether the likelihood weighting draws its times in proportion to
            :math:`g^2 / \sigma^2`, see :func:`log_snr_time`. The expectation is the same and the
            variance much smaller.
        parameterization: What the network predicts.
        labels: Class labels [B], int64.
        min_time: The smallest time.
        time_scale: The network is given ``time_scale * t``.
        input_scale: The network is given ``input_scale(alpha, sigma) * x``.
        reduction: ``"mean"`` for a scalar, ``"none"`` for one loss per sample [B].
        seed: The seed of times and noise.
        step: The training step, below 2^23.
        first_sample: The number of the first sample.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456;
        Song et al., Maximum Likelihood Training of Score-Based Diffusion Models,
        https://arxiv.org/abs/2101.09258

    Example:
        >>> from genssl_fast.diffusion import VPSDE, denoising_score_matching
        >>> def model(x, t):
        ...     return torch.zeros_like(x)
        >>> loss = denoising_score_matching(model, VPSDE(), torch.randn(8, 2), seed=0)
        >>> loss.shape
        torch.Size([])
    """
    check_choice("weighting", weighting, ("simple", "likelihood"))
    if isinstance(process, DDPMSchedule):
        raise TypeError("process: expected continuous time, got a DDPMSchedule; call ddpm_loss")
    by_importance = weighting == "likelihood" and importance_sampling
    time = log_snr_time if by_importance else type(process).uniform_time

    noised = _noised(process, x0, lambda u: time(process, u, min_time), seed, step, first_sample)
    output = _evaluate(model, noised, labels, time_scale, input_scale)
    predicted = convert(output, noised.x, noised.alpha, noised.sigma, source=parameterization, to="noise")
    error = (predicted - noised.noise).square().flatten(1).mean(dim=1)
    if by_importance:
        first, last = _log_snr_ends(process, min_time)
        error = error * ((first - last) / (process.max_time - min_time))
    elif weighting == "likelihood":
        error = error * (process.diffusion(noised.t) / noised.sigma).square()
    return _reduce(error, reduction)


def ddpm_loss(
    model: Callable[..., Tensor],
    process: GaussianProcess,
    x0: Tensor,
    *,
    parameterization: str = "noise",
    labels: Tensor | None = None,
    time_scale: float = 1.0,
    input_scale: Callable[[Tensor, Tensor], Tensor] | None = None,
    reduction: str = "mean",
    seed: int | Tensor | None = None,
    step: int = 0,
    first_sample: int = 0,
) -> Tensor:
    r"""The simple loss of DDPM, the error of what the network predicts at uniform times.

    .. math::
        \mathbb{E}_{t, \varepsilon} \Big[ \tfrac{1}{D}
        \big\| \mathrm{model}(x_t, t) - \mathrm{target}(x_0, \varepsilon, t) \big\|^2 \Big], \quad
        x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon

    The target is :math:`\varepsilon` itself for ``"noise"``; the other parameterizations weigh the
    times otherwise.

    Arguments:
        model: The network, called as ``model(x, t)`` or ``model(x, t, labels)`` with t [B].
        process: The forward process, a :class:`DDPMSchedule` or one in continuous time.
        x0: The data [B, ...].
        parameterization: What the network predicts.
        labels: Class labels [B], int64.
        time_scale: The network is given ``time_scale * t``.
        input_scale: The network is given ``input_scale(alpha, sigma) * x``.
        reduction: ``"mean"`` for a scalar, ``"none"`` for one loss per sample [B].
        seed: The seed of times and noise.
        step: The training step, below 2^23.
        first_sample: The number of the first sample.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, equation 14,
        https://arxiv.org/abs/2006.11239

    Example:
        >>> from genssl_fast.diffusion import DDPMSchedule, ddpm_loss
        >>> def model(x, t):
        ...     return torch.zeros_like(x)
        >>> ddpm_loss(model, DDPMSchedule(), torch.randn(8, 2), reduction="none", seed=0).shape
        torch.Size([8])
    """
    noised = _noised(process, x0, process.uniform_time, seed, step, first_sample)
    output = _evaluate(model, noised, labels, time_scale, input_scale)
    wanted = target(x0.to(output.dtype), noised.noise, noised.alpha, noised.sigma, parameterization)
    return _reduce((output - wanted).square().flatten(1).mean(dim=1), reduction)


def _log_snr_ends(process: GaussianProcess, min_time: float) -> list[float]:
    ends = torch.tensor([min_time, process.max_time], dtype=torch.float64)
    return process.log_snr(ends).tolist()


def _noised(process, x0: Tensor, time: Callable, seed, step: int, first_sample: int) -> _Noised:
    """Noises data at the times to which ``time`` maps uniform numbers [B]."""
    check(x0.ndim >= 2, "x0", "shape [B, ...]", list(x0.shape))
    seed = torch.randint(2**63 - 1, (), device=x0.device) if seed is None else seed
    draw = {"seed": seed, "first_sample": first_sample, "device": x0.device}
    counter = step_counter(Stream.DATA, 2 * step)
    dtype = torch.promote_types(x0.dtype, torch.float32)
    noise = random_normal(x0.shape, step=counter, dtype=dtype, **draw)
    t = time(random_uniform((len(x0), 1), step=counter + 1, dtype=dtype, **draw).squeeze(1))
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * noise
    return _Noised(x.to(x0.dtype), noise, t, alpha, sigma)


def _evaluate(model: Callable, noised: _Noised, labels, time_scale: float, input_scale) -> Tensor:
    x = noised.x
    if input_scale is not None:
        x = (per_sample(input_scale(noised.alpha, noised.sigma), x) * x).to(x.dtype)
    conditions = () if labels is None else (labels,)
    output = model(x, time_scale * noised.t, *conditions)
    check(output.shape == x.shape, "model", f"an output {list(x.shape)}", list(output.shape))
    return output.to(noised.noise.dtype)


def _reduce(error: Tensor, reduction: str) -> Tensor:
    check_choice("reduction", reduction, ("mean", "none"))
    return error.mean() if reduction == "mean" else error
