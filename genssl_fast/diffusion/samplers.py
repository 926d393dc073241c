r"""Samplers as data: each function turns a process into a :class:`genssl_fast.CoefficientTable`.

A table is computed once, in fp64, and :func:`genssl_fast.sampler_step` executes its rows. The
network enters a row only through its denoised prediction :math:`\hat{x}_0`, so one sampler serves
every parameterization, and clipping. Formulas below step from :math:`(t, \alpha, \sigma)` to
:math:`(t', \alpha', \sigma')`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genssl_fast._checks import check, check_choice
from genssl_fast.diffusion.parameterizations import conversion
from genssl_fast.diffusion.processes import GaussianProcess
from genssl_fast.ops.coefficient_table import CoefficientTable

__all__ = [
    "SAMPLERS",
    "TimeGrid",
    "annealed_langevin",
    "ddim",
    "ddpm",
    "euler_maruyama",
    "identity",
    "probability_flow_euler",
    "probability_flow_heun",
    "reverse_diffusion",
    "unit_variance",
]


def unit_variance(alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""The input scale :math:`1 / \sqrt{\alpha^2 + \sigma^2}`, for data of unit variance.

    Example:
        >>> from genssl_fast.diffusion import unit_variance
        >>> unit_variance(torch.tensor(1.0), torch.tensor(50.0))
        tensor(0.0200)
    """
    return (alpha.square() + sigma.square()).rsqrt()


@dataclass(frozen=True)
class TimeGrid:
    r"""The times of a sampler, and what the network expects and predicts at them.

    Every sampler takes these as keyword options.

    Arguments:
        process: The forward process.
        steps: The number of times in the grid.
        spacing: The name of the spacing, see :meth:`GaussianProcess.times`.
        times: A decreasing grid [M] of one's own, instead of ``steps`` and ``spacing``.
        targets: The time [M] at which the step from each of ``times`` ends, where that is not the
            next time. ``DDIMScheduler`` of diffusers takes ``times - num_steps // steps``. Negative
            ones are clean data, or the time 0 where ``final`` is not ``"denoised"``.
        final: ``"denoised"`` evaluates the network at the last time of the grid and returns its
            denoised prediction; ``"mean"`` ends with a step to the last time that adds no noise;
            ``"end"`` ends with that step as it is. ``"end"`` of a :class:`DDPMSchedule` is the
            ``set_alpha_to_one=False`` of diffusers.
        parameterization: What the network predicts.
        clip_denoised: Bound of the absolute value of the denoised prediction, ``None`` for no
            bound.
        time_scale: The network is given ``time_scale * t``.
        input_scale: For a network that takes ``c * x``, the function c(alpha, sigma), such as
            :func:`unit_variance`. The table then steps the state ``c * x``, so that it needs no
            scaling between rows; the last row returns x. The initial state is to be scaled by the
            caller.

    Example:
        >>> from genssl_fast.diffusion import VPSDE, TimeGrid
        >>> TimeGrid(VPSDE(), steps=3).end
        tensor([0.5005, 0.0010], dtype=torch.float64)
    """

    process: GaussianProcess
    steps: int = 50
    spacing: str | None = None
    times: Sequence[float] | Tensor | None = None
    targets: Sequence[float] | Tensor | None = None
    final: str = "denoised"
    parameterization: str = "noise"
    clip_denoised: float | None = None
    time_scale: float = 1.0
    input_scale: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_choice("final", self.final, ("denoised", "mean", "end"))
        clip = self.clip_denoised
        check(clip is None or clip > 0, "clip_denoised", "a positive bound or None", clip)
        if self.targets is not None:
            check(self.times is not None, "targets", "to come with times", "no times")
            same = len(self.targets) == len(self.times)
            check(same, "targets", f"one per time ({len(self.times)})", len(self.targets))

    @cached_property
    def points(self) -> Tensor:
        """The grid [M], in fp64."""
        if self.times is None:
            endpoint = self.final != "denoised"
            return self.process.times(self.steps, self.spacing, endpoint=endpoint)
        points = torch.as_tensor(self.times, dtype=torch.float64, device="cpu")
        decreasing = points.ndim == 1 and bool((points.diff() <= 0).all())
        check(decreasing, "times", "a decreasing sequence", self.times)
        fewest = 1 if self.final == "denoised" or self.targets is not None else 2
        check(len(points) >= fewest, "times", f"at least {fewest}", self.times)
        inside = points[-1] >= 0 and points[0] <= self.process.max_time
        check(bool(inside), "times", f"numbers in [0, {self.process.max_time}]", self.times)
        return points

    @cached_property
    def start(self) -> Tensor:
        """The times [N] at which the steps start."""
        return self.points[:-1] if self.targets is None else self.points

    @cached_property
    def end(self) -> Tensor:
        """The times [N] at which the steps end."""
        if self.targets is None:
            return self.points[1:]
        targets = torch.as_tensor(self.targets, dtype=torch.float64, device="cpu")
        return targets.clamp(min=self.process.clean_time if self.final == "denoised" else 0)

    @property
    def step_size(self) -> Tensor:
        return self.start - self.end

    @cached_property
    def alpha(self) -> Tensor:
        return self.process.alpha(self.start)

    @cached_property
    def sigma(self) -> Tensor:
        return self.process.sigma(self.start)

    @cached_property
    def next_alpha(self) -> Tensor:
        return self.process.alpha(self.end)

    @cached_property
    def next_sigma(self) -> Tensor:
        return self.process.sigma(self.end)

    @cached_property
    def removed(self) -> Tensor:
        r"""The share [N] of the noise's variance that a step removes,
        :math:`1 - (\alpha \sigma' / \alpha' \sigma)^2`.
        """
        kept = (self.alpha * self.next_sigma) / (self.next_alpha * self.sigma)
        return 1 - kept.square()

    def table(
        self,
        *,
        state: Tensor,
        prediction: Tensor,
        output: Tensor | None = None,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> CoefficientTable:
        """The table whose rows are the given steps, in terms of unscaled states, and the final row.

        Arguments:
            state: The coefficients [N] or [N, S] of the states.
            prediction: The coefficients [N] or [N, M] of the denoised predictions.
            output: The coefficients [N] of the network's output, zero by default.
            noise: The coefficients [N] of the noise, zero by default.
            time: The times [N] of the rows, the starts of the steps by default.
        """
        time = self.start if time is None else time
        zeros = torch.zeros_like(time)
        output, noise = (zeros if column is None else column for column in (output, noise))
        num_states = 1 if state.ndim == 1 else state.shape[1]
        step = torch.column_stack([state, prediction, output, noise])
        if self.final == "denoised" and self.targets is None:
            last_row = step.new_zeros(1, step.shape[1])
            last_row[0, num_states] = 1
            step, time = torch.cat([step, last_row]), torch.cat([time, self.points[-1:]])
        elif self.final == "mean":
            step[-1, -1] = 0
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        denoise = torch.stack(conversion(self.parameterization, "denoised", alpha, sigma), dim=-1)
        if self.input_scale is not None:
            _absorb_scale(self.input_scale(alpha, sigma), step, denoise, num_states)
        clip = torch.full_like(time, math.inf if self.clip_denoised is None else self.clip_denoised)
        columns = torch.column_stack([step, denoise, clip, time * self.time_scale])
        return CoefficientTable(columns, num_states)


def _absorb_scale(scale: Tensor, step: Tensor, denoise: Tensor, num_states: int) -> None:
    """Turns rows for states x into rows for states ``scale * x``; the last one returns x itself."""
    step *= torch.cat([scale[1:], scale.new_ones(1)])[:, None]
    for age in range(num_states):
        step[:, age] /= scale.roll(age)
    denoise[:, 0] /= scale


def ddim(
    process: GaussianProcess,
    steps: int = 50,
    *,
    eta: float = 0.0,
    use_clipped_noise: bool = False,
    **options,
) -> CoefficientTable:
    r"""Denoising diffusion implicit models.

    .. math::
        x' = \alpha' \hat{x}_0 + \sqrt{\sigma'^2 - s^2}\, \hat\varepsilon + s z, \quad
        s = \eta\, \sigma' \sqrt{1 - (\alpha \sigma' / \alpha' \sigma)^2}

    Arguments:
        process: The forward process.
        steps: The number of evaluations of the network.
        eta: The share of noise, from 0, deterministic, to 1, which is :func:`ddpm`.
        use_clipped_noise: Whether the predicted noise follows from the clipped prediction. It is
            the network's own otherwise, as in diffusers.
        options: Those of :class:`TimeGrid`.

    References:
        Song et al., Denoising Diffusion Implicit Models, equations 12 and 16,
        https://arxiv.org/abs/2010.02502

    Example:
        >>> from genssl_fast.diffusion import VPSDE, ddim
        >>> ddim(VPSDE(), steps=20, eta=0.5, clip_denoised=1.0)
        CoefficientTable(rows=20, states=1, predictions=1)
    """
    check(0 <= eta <= 1, "eta", "a number in [0, 1]", eta)
    grid = TimeGrid(process, steps, **options)
    std = eta * grid.next_sigma * grid.removed.sqrt()
    direction = grid.next_sigma * (1 - eta**2 * grid.removed).sqrt()
    if use_clipped_noise:
        direction = direction / grid.sigma
        prediction = grid.next_alpha - direction * grid.alpha
        return grid.table(state=direction, prediction=prediction, noise=std)
    of_x, of_output = conversion(grid.parameterization, "noise", grid.alpha, grid.sigma)
    return grid.table(
        state=direction * of_x,
        prediction=grid.next_alpha,
        output=direction * of_output,
        noise=std,
    )


def ddpm(
    process: GaussianProcess, steps: int = 1000, *, variance: str = "fixed_small", **options
) -> CoefficientTable:
    r"""Ancestral sampling, from the Gaussian :math:`p(x' \mid x, x_0 = \hat{x}_0)`.

    .. math::
        x' = \frac{\alpha \sigma'^2}{\alpha' \sigma^2}\, x + \alpha' \rho\, \hat{x}_0
             + \sqrt{\rho}\, \sigma' z, \quad
        \rho = 1 - \Big( \frac{\alpha \sigma'}{\alpha' \sigma} \Big)^2

    Arguments:
        process: The forward process.
        steps: The number of evaluations of the network.
        variance: ``"fixed_small"`` as above; ``"fixed_large"`` adds noise of variance
            :math:`\rho \sigma^2`, which is :math:`\beta_t` for a :class:`DDPMSchedule`.
        options: Those of :class:`TimeGrid`.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, equation 7,
        https://arxiv.org/abs/2006.11239

    Example:
        >>> from genssl_fast.diffusion import DDPMSchedule, ddpm
        >>> ddpm(DDPMSchedule(), steps=1000, clip_denoised=1.0)
        CoefficientTable(rows=1000, states=1, predictions=1)
    """
    check_choice("variance", variance, ("fixed_small", "fixed_large"))
    grid = TimeGrid(process, steps, **options)
    small = grid.removed.sqrt() * grid.next_sigma
    large = torch.where(grid.next_sigma > 0, grid.removed.sqrt() * grid.sigma, 0.0)
    return grid.table(
        state=(grid.alpha / grid.next_alpha) * (grid.next_sigma / grid.sigma).square(),
        prediction=grid.next_alpha * grid.removed,
        noise=small if variance == "fixed_small" else large,
    )


def euler_maruyama(process: GaussianProcess, steps: int = 1000, **options) -> CoefficientTable:
    r"""The Euler-Maruyama discretisation of the reverse-time equation.

    .. math::
        x' = x - (f x - g^2 s)\, \Delta + g \sqrt{\Delta}\, z, \quad
        s = (\alpha \hat{x}_0 - x) / \sigma^2, \quad \Delta = t - t'

    Arguments:
        process: The forward process.
        steps: The number of evaluations of the network.
        options: Those of :class:`TimeGrid`.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456

    Example:
        >>> from genssl_fast.diffusion import VESDE, euler_maruyama, unit_variance
        >>> euler_maruyama(VESDE(), steps=500, parameterization="score", input_scale=unit_variance)
        CoefficientTable(rows=500, states=1, predictions=1)
    """
    grid = TimeGrid(process, steps, **options)
    of_x, of_prediction = _reverse_drift(process, grid.start, score_weight=1.0)
    noise = process.diffusion(grid.start) * grid.step_size.sqrt()
    return grid.table(
        state=1 - grid.step_size * of_x,
        prediction=-grid.step_size * of_prediction,
        noise=noise,
    )


def reverse_diffusion(process: GaussianProcess, steps: int = 1000, **options) -> CoefficientTable:
    r"""The reverse-diffusion predictor, which discretises backward as the process does forward.

    .. math::
        x' = (2 - \phi)\, x + G^2 s + G z, \quad \phi = \alpha / \alpha', \quad
        G^2 = \sigma^2 - \phi^2 \sigma'^2

    The forward transition :math:`x = \phi x' + G z` is exact here. With a
    :class:`LangevinCorrector` this is predictor-corrector sampling.

    Arguments:
        process: The forward process.
        steps: The number of evaluations of the network.
        options: Those of :class:`TimeGrid`.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456

    Example:
        >>> from genssl_fast.diffusion import VESDE, reverse_diffusion
        >>> reverse_diffusion(VESDE(), steps=500, final="mean")
        CoefficientTable(rows=500, states=1, predictions=1)
    """
    grid = TimeGrid(process, steps, **options)
    return grid.table(
        state=2 - grid.alpha / grid.next_alpha - grid.removed,
        prediction=grid.removed * grid.alpha,
        noise=grid.removed.sqrt() * grid.sigma,
    )


def probability_flow_euler(process: GaussianProcess, steps: int = 50, **options) -> CoefficientTable:
    r"""Euler's method, of order 1, on the probability-flow equation.

    .. math:: x' = x - F(x, t)\, \Delta, \quad F(x, t) = f x - \tfrac12 g^2 s

    Arguments:
        process: The forward process.
        steps: The number of evaluations of the network.
        options: Those of :class:`TimeGrid`.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456

    Example:
        >>> from genssl_fast.diffusion import VPSDE, probability_flow_euler
        >>> probability_flow_euler(VPSDE(), steps=100, spacing="log_snr")
        CoefficientTable(rows=100, states=1, predictions=1)
    """
    grid = TimeGrid(process, steps, **options)
    of_x, of_prediction = _reverse_drift(process, grid.start, score_weight=0.5)
    return grid.table(state=1 - grid.step_size * of_x, prediction=-grid.step_size * of_prediction)


def probability_flow_heun(process: GaussianProcess, steps: int = 25, **options) -> CoefficientTable:
    r"""Heun's method, of order 2, on the probability-flow equation: two rows for a step.

    .. math::
        \tilde{x} = x - F(x, t)\, \Delta, \quad
        x' = x - \tfrac12 \big( F(x, t) + F(\tilde{x}, t') \big)\, \Delta

    Arguments:
        process: The forward process.
        steps: The number of times in the grid; the network is evaluated ``2 * steps - 1`` times, or
            ``2 * steps`` times where ``final`` is not ``"denoised"``.
        options: Those of :class:`TimeGrid`.

    References:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models,
        https://arxiv.org/abs/2206.00364

    Example:
        >>> from genssl_fast.diffusion import VPSDE, probability_flow_heun
        >>> probability_flow_heun(VPSDE(), steps=18, spacing="karras")
        CoefficientTable(rows=35, states=2, predictions=2)
    """
    grid = TimeGrid(process, steps, **options)
    of_x, of_prediction = _reverse_drift(process, grid.start, score_weight=0.5)
    next_of_x, next_of_prediction = _reverse_drift(process, grid.end, score_weight=0.5)
    size, zero = grid.step_size, torch.zeros_like(grid.step_size)

    def interleave(predictor: list[Tensor], corrector: list[Tensor]) -> Tensor:
        return torch.stack([torch.stack(predictor, -1), torch.stack(corrector, -1)], 1).flatten(0, 1)

    return grid.table(
        state=interleave([1 - size * of_x, zero], [-size / 2 * next_of_x, 1 - size / 2 * of_x]),
        prediction=interleave(
            [-size * of_prediction, zero],
            [-size / 2 * next_of_prediction, -size / 2 * of_prediction],
        ),
        time=torch.stack([grid.start, grid.end], -1).flatten(),
    )


def annealed_langevin(
    process: GaussianProcess,
    steps: int = 10,
    *,
    steps_per_level: int = 100,
    snr: float = 0.16,
    **options,
) -> CoefficientTable:
    r"""Langevin dynamics at a sequence of decreasing noise levels.

    .. math::
        x' = x + \epsilon s + \sqrt{2 \epsilon}\, z, \quad \epsilon = 2 (\mathrm{snr}\, \sigma)^2

    Every row is a :func:`genssl_fast.langevin_step` whose step size is known beforehand.

    Arguments:
        process: The forward process.
        steps: The number of noise levels.
        steps_per_level: The number of Langevin steps at each level.
        snr: The signal-to-noise ratio of a step. NCSN's step length :math:`\epsilon_0` is
            :math:`4 (\mathrm{snr}\, \sigma_{min})^2`.
        options: Those of :class:`TimeGrid`. The levels are all times of the grid.

    References:
        Song and Ermon, Generative Modeling by Estimating Gradients of the Data Distribution,
        https://arxiv.org/abs/1907.05600

    Example:
        >>> from genssl_fast.diffusion import VESDE, annealed_langevin
        >>> annealed_langevin(VESDE(sigma_max=1.0), steps=10, steps_per_level=100)
        CoefficientTable(rows=1001, states=1, predictions=1)
    """
    check(steps_per_level >= 1, "steps_per_level", "at least 1", steps_per_level)
    check(snr > 0, "snr", "a positive number", snr)
    grid = TimeGrid(process, steps, **options)
    time = grid.points.repeat_interleave(steps_per_level)
    alpha, sigma = process.alpha(time), process.sigma(time)
    strength = 2 * snr**2
    return grid.table(
        state=torch.full_like(time, 1 - strength),
        prediction=strength * alpha,
        noise=math.sqrt(2 * strength) * sigma,
        time=time,
    )


def identity(process: GaussianProcess, steps: int = 50, **options) -> CoefficientTable:
    """Rows that leave the state as it is, for a :class:`LangevinCorrector` to do all the work.

    Together they are annealed Langevin dynamics whose step sizes follow the norms of each sample, where
    those of :func:`annealed_langevin` are known beforehand.

    Arguments:
        process: The forward process.
        steps: The number of noise levels.
        options: Those of :class:`TimeGrid`.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456

    Example:
        >>> from genssl_fast.diffusion import VESDE, identity
        >>> identity(VESDE(), steps=10)
        CoefficientTable(rows=10, states=1, predictions=1)
    """
    grid = TimeGrid(process, steps, **options)
    return grid.table(state=torch.ones_like(grid.start), prediction=torch.zeros_like(grid.start))


def _reverse_drift(process: GaussianProcess, t: Tensor, score_weight: float) -> tuple[Tensor, Tensor]:
    r"""Coefficients of x and :math:`\hat{x}_0` in :math:`f x - w g^2 s`, w the score's weight."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    weight = score_weight * (process.diffusion(t) / sigma).square()
    return process.drift(t) + weight, -weight * alpha


SAMPLERS: dict[str, Callable[..., CoefficientTable]] = {
    sampler.__name__: sampler
    for sampler in (
        annealed_langevin,
        ddim,
        ddpm,
        euler_maruyama,
        identity,
        probability_flow_euler,
        probability_flow_heun,
        reverse_diffusion,
    )
}
