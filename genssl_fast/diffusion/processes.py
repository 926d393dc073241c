r"""Forward noising processes :math:`x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon`.

Times are process times: a number in [0, 1] for the stochastic differential equations, a step index
for :class:`DDPMSchedule`. Every function of time takes a tensor and answers in its shape and dtype.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from genssl_fast._checks import check, check_choice
from genssl_fast._random import Stream, step_counter
from genssl_fast.ops.random import random_normal

__all__ = ["VESDE", "VPSDE", "DDPMSchedule", "GaussianProcess", "SubVPSDE", "per_sample"]


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Values ([] or [B]) in the shape that multiplies ``x`` [B, ...] sample by sample."""
    fits = values.ndim == 0 or values.shape == x.shape[:1]
    check(fits, "t", f"a scalar or one value per sample [{len(x)}]", list(values.shape))
    return values.reshape(-1, *(1,) * (x.ndim - 1))


class GaussianProcess(ABC):
    r"""A linear diffusion :math:`dx = f(t)\, x\, dt + g(t)\, dw` with Gaussian marginals.

    .. math:: p(x_t \mid x_0) = \mathcal{N}(\alpha(t)\, x_0, \sigma(t)^2 I)

    Samplers and objectives need nothing but :meth:`log_alpha`, :meth:`sigma`, :meth:`drift` (f),
    :meth:`diffusion` (g) and :meth:`time_at_log_snr`, so a new process is a subclass with these
    five.

    Attributes:
        min_time: The time at which samplers stop.
        max_time: The time at which they start.
        clean_time: The time that stands for data without noise.
        spacings: The names of the spacings that :meth:`times` knows, the default first.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456
    """

    min_time: float
    max_time: float = 1.0
    clean_time: float = 0.0
    spacings: tuple[str, ...] = ("uniform", "quadratic", "log_snr", "karras")

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        r"""Logarithm of the scale of the signal, :math:`\log \alpha(t)`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        r"""Standard deviation of the noise, :math:`\sigma(t)`."""

    @abstractmethod
    def drift(self, t: Tensor) -> Tensor:
        r"""Drift per unit of state, :math:`f(t) = \frac{d}{dt} \log \alpha(t)`."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        r"""Diffusion :math:`g(t)`, with :math:`g^2 = \frac{d}{dt} \sigma^2 - 2 f \sigma^2`."""

    @abstractmethod
    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`."""

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior, the distribution that sampling starts from."""
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:
        r"""Scale of the signal, :math:`\alpha(t)`."""
        return self.log_alpha(t).exp()

    def log_snr(self, t: Tensor) -> Tensor:
        r"""Logarithm of the signal-to-noise ratio, :math:`\log (\alpha(t)^2 / \sigma(t)^2)`."""
        return 2 * (self.log_alpha(t) - self.sigma(t).log())

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift [B, ...] and diffusion (the shape of t) at x [B, ...] and time t ([] or [B])."""
        return (per_sample(self.drift(t), x) * x).to(x.dtype), self.diffusion(t)

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean [B, ...] and standard deviation (the shape of t) of :math:`p(x_t \mid x_0 = x)`.

        Example:
            >>> from genssl_fast.diffusion import VPSDE
            >>> mean, std = VPSDE().marginal_prob(torch.ones(2, 3), torch.tensor([0.0, 1.0]))
            >>> std
            tensor([0.0000, 1.0000])
        """
        return (per_sample(self.alpha(t), x) * x).to(x.dtype), self.sigma(t)

    def prior_sampling(
        self,
        shape: tuple[int, ...],
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws from the prior; a draw depends on the seed and on its sample number alone.

        Arguments:
            shape: The shape [B, ...] of the draws.
            seed: The seed. ``None`` takes one from PyTorch's default generator.
            first_sample: The sample number of the first draw.
            dtype: The data type of the draws.
            device: The device of the draws.

        Example:
            >>> from genssl_fast.diffusion import VPSDE
            >>> VPSDE().prior_sampling((2, 3), seed=0).shape
            torch.Size([2, 3])
        """
        noise = random_normal(
            shape,
            seed=seed,
            step=step_counter(Stream.PRIOR, 0),
            first_sample=first_sample,
            dtype=dtype,
            device=device,
        )
        return noise if self.prior_std == 1 else noise * self.prior_std

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """Log-density [B] of the prior at ``z`` [B, ...], in nats and in fp32 or better.

        Example:
            >>> from genssl_fast.diffusion import VPSDE
            >>> VPSDE().prior_log_prob(torch.zeros(1, 2))
            tensor([-1.8379])
        """
        z = z.flatten(1).to(torch.promote_types(z.dtype, torch.float32)) / self.prior_std
        log_normalizer = z.shape[1] * math.log(math.sqrt(2 * math.pi) * self.prior_std)
        return -0.5 * z.square().sum(dim=1) - log_normalizer

    def uniform_time(self, u: Tensor, min_time: float = 1e-5) -> Tensor:
        """Maps u, uniform on (0, 1], to a time uniform between ``min_time`` and ``max_time``."""
        return min_time + (self.max_time - min_time) * u

    def times(self, steps: int, spacing: str | None = None, *, endpoint: bool = False) -> Tensor:
        r"""The decreasing times at which a sampler evaluates the network.

        Spacings: ``"uniform"`` in t, ``"quadratic"`` (uniform in :math:`\sqrt t`), ``"log_snr"``
            (uniform in
        the log signal-to-noise ratio) and ``"karras"`` (uniform in :math:`(\sigma /
        \alpha)^{1/7}`).

        Arguments:
            steps: The number of evaluations.
            spacing: The name of the spacing, ``"uniform"`` by default.
            endpoint: Whether ``min_time`` follows the evaluations as the end of the last step. It
                is the last evaluation itself otherwise.

        Returns:
            The times [steps] or [steps + 1], in fp64.

        References:
            Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models,
            https://arxiv.org/abs/2206.00364

        Example:
            >>> from genssl_fast.diffusion import VPSDE
            >>> VPSDE(min_time=0.2).times(3)
            tensor([1.0000, 0.6000, 0.2000], dtype=torch.float64)
        """
        spacing = self._check_spacing(steps, spacing)
        ends = torch.tensor([self.max_time, self.min_time], dtype=torch.float64)

        def evenly(values: Tensor) -> Tensor:
            return torch.linspace(*values.tolist(), steps + endpoint, dtype=torch.float64)

        if spacing == "uniform":
            return evenly(ends)
        if spacing == "quadratic":
            return evenly(ends.sqrt()).square()
        if spacing == "log_snr":
            return self.time_at_log_snr(evenly(self.log_snr(ends)))
        root = evenly((self.log_snr(ends) / -14).exp())
        return self.time_at_log_snr(-14 * root.log())

    def _check_spacing(self, steps: int, spacing: str | None) -> str:
        check(steps >= 1, "steps", "at least 1", steps)
        spacing = spacing or self.spacings[0]
        check_choice("spacing", spacing, self.spacings)
        return spacing


@dataclass(frozen=True)
class _LinearBeta(GaussianProcess):
    r"""Processes of a linear noise rate, :math:`\beta_{min} + t (\beta_{max} - \beta_{min})`."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    min_time: float = 1e-3

    def __post_init__(self) -> None:
        got = f"{self.beta_min} and {self.beta_max}"
        expected = "0 < beta_min <= beta_max"
        check(0 < self.beta_min <= self.beta_max, "beta_min, beta_max", expected, got)
        check(0 <= self.min_time < 1, "min_time", "a time in [0, 1)", self.min_time)

    def beta(self, t: Tensor) -> Tensor:
        r"""The noise rate, :math:`\beta(t)`."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t * (self.beta_min + self.beta(t))

    def drift(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def _time_at_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # The root of the quadratic in the form that does not cancel as t goes to zero.
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 - 4 * slope * log_alpha).sqrt()
        return -4 * log_alpha / (self.beta_min + root)


class VPSDE(_LinearBeta):
    r"""The variance-preserving process, the limit of DDPM in continuous time.

    .. math::
        dx = -\tfrac12 \beta(t)\, x\, dt + \sqrt{\beta(t)}\, dw, \quad
        \log \alpha = -\tfrac12 \int_0^t \beta, \quad \sigma^2 = 1 - \alpha^2

    Arguments:
        beta_min: The noise rate at t = 0.
        beta_max: The noise rate at t = 1.
        min_time: The time at which samplers stop.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456

    Example:
        >>> from genssl_fast.diffusion import VPSDE
        >>> VPSDE().sigma(torch.tensor([0.0, 0.1, 1.0]))
        tensor([0.0000, 0.3221, 1.0000])
    """

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._time_at_log_alpha(0.5 * logsigmoid(log_snr))


class SubVPSDE(_LinearBeta):
    r"""The sub-variance-preserving process: the drift of :class:`VPSDE` with less noise.

    .. math::
        dx = -\tfrac12 \beta(t)\, x\, dt + \sqrt{\beta(t) (1 - \alpha^4)}\, dw, \quad
        \log \alpha = -\tfrac12 \int_0^t \beta, \quad \sigma = 1 - \alpha^2

    Arguments:
        beta_min: The noise rate at t = 0.
        beta_max: The noise rate at t = 1.
        min_time: The time at which samplers stop.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456

    Example:
        >>> from genssl_fast.diffusion import SubVPSDE
        >>> SubVPSDE().sigma(torch.tensor([0.0, 0.1, 1.0]))
        tensor([0.0000, 0.1037, 1.0000])
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def diffusion(self, t: Tensor) -> Tensor:
        return (-self.beta(t) * torch.expm1(4 * self.log_alpha(t))).sqrt()

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        # sigma / alpha = 1 / alpha - alpha = -2 sinh(log alpha).
        return self._time_at_log_alpha(-torch.asinh(0.5 * (-0.5 * log_snr).exp()))


@dataclass(frozen=True)
class VESDE(GaussianProcess):
    r"""The variance-exploding process, the limit of NCSN in continuous time.

    .. math::
        dx = \sigma(t) \sqrt{2 \log (\sigma_{max} / \sigma_{min})}\, dw, \quad
        \sigma(t) = \sigma_{min} (\sigma_{max} / \sigma_{min})^t, \quad \alpha = 1

    Arguments:
        sigma_min: The noise level at t = 0.
        sigma_max: The noise level at t = 1, about the largest distance between two data.
        min_time: The time at which samplers stop.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456

    Example:
        >>> from genssl_fast.diffusion import VESDE
        >>> VESDE(sigma_min=0.01, sigma_max=100.0).sigma(torch.tensor([0.0, 0.5, 1.0]))
        tensor([1.0000e-02, 1.0000e+00, 1.0000e+02])
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    min_time: float = 1e-5

    def __post_init__(self) -> None:
        got = f"{self.sigma_min} and {self.sigma_max}"
        expected = "0 < sigma_min < sigma_max"
        check(0 < self.sigma_min < self.sigma_max, "sigma_min, sigma_max", expected, got)
        check(0 <= self.min_time < 1, "min_time", "a time in [0, 1)", self.min_time)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (t * self._log_ratio).exp()

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class DDPMSchedule(GaussianProcess):
    r"""The process of DDPM in discrete time: times are the step indices 0, ..., ``num_steps`` - 1.

    .. math::
        \alpha(t)^2 = \bar\alpha_t = \prod_{i \le t} (1 - \beta_i), \quad \sigma(t)^2 = 1 -
        \bar\alpha_t

    The time -1 stands for clean data. :meth:`drift` and :meth:`diffusion` are rates per step index,
    :math:`-\frac12 \beta_t` and :math:`\sqrt{\beta_t}`. Everything is accumulated in fp64.

    Arguments:
        schedule: ``"linear"`` betas, or the ``"cosine"`` signal level with betas of at most 0.999.
        num_steps: The number of steps that the network is trained with.
        beta_start: The first beta of the linear schedule.
        beta_end: The last beta of the linear schedule.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models,
        https://arxiv.org/abs/2006.11239;
        Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models,
        https://arxiv.org/abs/2102.09672

    Example:
        >>> from genssl_fast.diffusion import DDPMSchedule
        >>> DDPMSchedule().alpha(torch.tensor([-1, 0, 999])).square()
        tensor([1.0000e+00, 9.9990e-01, 4.0358e-05], dtype=torch.float64)
    """

    schedule: str = "linear"
    num_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    min_time = 0.0
    clean_time = -1.0
    spacings = ("leading", "linspace", "trailing")

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, ("linear", "cosine"))
        check(self.num_steps >= 1, "num_steps", "at least 1", self.num_steps)
        got = f"{self.beta_start} and {self.beta_end}"
        expected = "0 < beta_start <= beta_end < 1"
        check(0 < self.beta_start <= self.beta_end < 1, "beta_start, beta_end", expected, got)

    @property
    def max_time(self) -> float:
        return self.num_steps - 1.0

    @cached_property
    def betas(self) -> Tensor:
        """The betas [num_steps], in fp64 on the CPU."""
        if self.schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, self.num_steps, dtype=torch.float64)
        phase = torch.arange(self.num_steps + 1, dtype=torch.float64) / self.num_steps
        signal = torch.cos((phase + 0.008) / 1.008 * (math.pi / 2)).square()
        return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        r"""The squared signal levels :math:`\bar\alpha` [num_steps], in fp64 on the CPU."""
        return (2 * self._log_alphas).exp()

    @cached_property
    def _log_alphas(self) -> Tensor:
        return 0.5 * torch.log1p(-self.betas).cumsum(0)

    @cached_property
    def _copies(self) -> dict[tuple[str, torch.device], Tensor]:
        return {}

    def _at(self, name: str, t: Tensor) -> Tensor:
        """Entries of a table, 0 at time -1; a table is copied to every device once."""
        key = (name, t.device)
        if key not in self._copies:
            table = getattr(self, name)
            self._copies[key] = torch.cat([table.new_zeros(1), table]).to(t.device)
        values = self._copies[key][t.round().long() + 1]
        return values.to(t.dtype) if t.is_floating_point() else values

    def beta(self, t: Tensor) -> Tensor:
        r"""The noise rate, :math:`\beta_t`."""
        return self._at("betas", t)

    def log_alpha(self, t: Tensor) -> Tensor:
        return self._at("_log_alphas", t)

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def drift(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """The step index whose log signal-to-noise ratio is nearest."""
        index = torch.arange(self.num_steps, device=log_snr.device)
        distance = (log_snr.unsqueeze(-1) - self.log_snr(index)).abs()
        return distance.argmin(dim=-1).to(log_snr.dtype)

    def uniform_time(self, u: Tensor, min_time: float = 0) -> Tensor:
        """Maps u, uniform on (0, 1], to a step index uniform from ``min_time`` on."""
        index = min_time + (u * (self.num_steps - min_time)).floor()
        return index.clamp(max=self.max_time)

    def times(self, steps: int, spacing: str | None = None, *, endpoint: bool = False) -> Tensor:
        """The decreasing step indices at which a sampler evaluates the network.

        Spacings, with n = ``steps`` and T = ``num_steps``: ``"leading"`` takes multiples of T // n,
        ``"linspace"`` n rounded values from T - 1 to 0, ``"trailing"`` every (T / n)-th index,
        rounded, counted from the end.

        Arguments:
            steps: The number of evaluations, at most ``num_steps``.
            spacing: The name of the spacing, ``"leading"`` by default.
            endpoint: Whether index 0 follows the evaluations as the end of the last step.

        Returns:
            The step indices [steps] or [steps + 1], in fp64.

        References:
            Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, table 2,
            https://arxiv.org/abs/2305.08891

        Example:
            >>> from genssl_fast.diffusion import DDPMSchedule
            >>> DDPMSchedule().times(4, "trailing")
            tensor([999., 749., 499., 249.], dtype=torch.float64)
        """
        spacing = self._check_spacing(steps, spacing)
        check(steps <= self.num_steps, "steps", f"at most num_steps = {self.num_steps}", steps)
        count = torch.arange(steps, dtype=torch.float64)
        if spacing == "leading":
            times = count.flip(0) * (self.num_steps // steps)
        elif spacing == "linspace":
            times = torch.linspace(0, self.max_time, steps, dtype=torch.float64).round().flip(0)
        else:
            times = (self.num_steps - count * (self.num_steps / steps)).round() - 1
        return torch.cat([times, times.new_zeros(1)]) if endpoint else times
