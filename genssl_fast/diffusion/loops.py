"""Loops over the rows of a table: in Python for any network, compiled for a known one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genssl_fast._checks import check
from genssl_fast._random import Stream, step_counter
from genssl_fast.diffusion.parameterizations import conversion
from genssl_fast.diffusion.processes import GaussianProcess
from genssl_fast.nn import FilmMLP
from genssl_fast.ops.coefficient_table import CoefficientTable
from genssl_fast.ops.film_mlp_sample import film_mlp_sample
from genssl_fast.ops.integrate import langevin_step, sampler_step

__all__ = ["CompiledLoop", "EagerLoop", "LangevinCorrector", "NonFiniteError"]

Report = Callable[[int, Tensor], None]


class NonFiniteError(ArithmeticError):
    """NaN or infinity appeared while sampling.

    Attributes:
        row: The row of the sampler's table.
        time: What the network was given as time.
        samples: The numbers of the samples in the batch, a range.
    """

    def __init__(self, what: str, table: CoefficientTable, row: int, samples: range) -> None:
        self.row, self.time, self.samples = row, float(table.time[row]), samples
        super().__init__(
            f"{what} is not finite at step {row + 1} of {len(table)} (row {row}, time "
            f"{self.time:.6g}) for samples {samples.start} to {samples.stop - 1}"
        )


@dataclass(frozen=True)
class LangevinCorrector:
    r"""Langevin steps before every step of a sampler, at the noise level that step starts from.

    .. math::
        x' = x + \epsilon s + \sqrt{2 \epsilon}\, z, \quad
        \epsilon = 2 (\alpha_i / \alpha_{i+1})^2 (\mathrm{snr}\, \|z\| / \|s\|)^2

    The norms are those of each sample, not averages over the batch, so that a sample does not
    depend on its neighbours.

    Arguments:
        snr: The signal-to-noise ratio of a step.
        steps: The number of Langevin steps at each noise level.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        algorithms 4 and 5, https://arxiv.org/abs/2011.13456

    Example:
        >>> from genssl_fast.diffusion import LangevinCorrector
        >>> LangevinCorrector(snr=0.16, steps=2)
        LangevinCorrector(snr=0.16, steps=2)
    """

    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        check(self.snr > 0, "snr", "a positive number", self.snr)
        check(self.steps >= 1, "steps", "at least 1", self.steps)

    def rows(
        self,
        process: GaussianProcess,
        table: CoefficientTable,
        *,
        parameterization: str,
        time_scale: float,
        input_scale: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> list[tuple[float, ...]]:
        """Per row: the input's scale, the score's coefficients of x and output, the factor."""
        check(table.num_states == 1, "corrector", "a sampler with one state", f"{table.num_states}")
        time = table.time / time_scale
        alpha, sigma = process.alpha(time), process.sigma(time)
        scale = torch.ones_like(time) if input_scale is None else input_scale(alpha, sigma)
        of_x, of_output = conversion(parameterization, "score", alpha, sigma)
        factor = (alpha / torch.cat([alpha[1:], alpha[-1:]])).square()
        return torch.stack([scale, of_x, of_output, factor], dim=1).tolist()


@dataclass(frozen=True, kw_only=True)
class EagerLoop:
    """Runs a table row by row around any network; called with a batch of initial states."""

    model: Callable[..., Tensor]
    table: CoefficientTable
    seed: int
    clip_denoised: float | None = None
    corrector: LangevinCorrector | None = None
    corrector_rows: list[tuple[float, ...]] | None = None
    check_finite: bool = False

    def __call__(self, x: Tensor, labels: Tensor | None, first_sample: int, report: Report) -> Tensor:
        table, predictions, states = self.table, (), ()
        for row in range(len(table)):
            if self.corrector is not None:
                x = self._correct(x, row, labels, first_sample)
            x_next, prediction = sampler_step(
                x,
                self._evaluate(x, row, labels, first_sample),
                table,
                row,
                history=(predictions, states),
                clip_denoised=self.clip_denoised,
                seed=self.seed,
                step=step_counter(Stream.STEP, row),
                first_sample=first_sample,
            )
            predictions = (prediction, *predictions)[: max(table.num_predictions - 1, 0)]
            states = (x, *states)[: table.num_states - 1]
            x = x_next
            report(1, x)
        self._check_finite(x, "the state", len(table) - 1, first_sample)
        return x

    def _evaluate(self, x: Tensor, row: int, labels: Tensor | None, first_sample: int) -> Tensor:
        t = float(self.table.time[row])
        if not isinstance(self.model, FilmMLP):  # which embeds one time for the whole batch once
            dtype = torch.promote_types(x.dtype, torch.float32)
            t = torch.full((len(x),), t, dtype=dtype, device=x.device)
        output = self.model(x, t) if labels is None else self.model(x, t, labels)
        self._check_finite(output, "the network's output", row, first_sample)
        return output.to(x.dtype)  # under autocast it may be another

    def _correct(self, x: Tensor, row: int, labels: Tensor | None, first_sample: int) -> Tensor:
        scale, of_x, of_output, factor = self.corrector_rows[row]
        for repeat in range(self.corrector.steps):
            output = self._evaluate(x, row, labels, first_sample)
            unscaled = x / scale
            x = scale * langevin_step(
                unscaled,
                of_x * unscaled + of_output * output,
                snr=self.corrector.snr,
                alpha=factor,
                seed=self.seed,
                step=step_counter(Stream.CORRECTOR, row * self.corrector.steps + repeat),
                first_sample=first_sample,
            )
        return x

    def _check_finite(self, values: Tensor, what: str, row: int, first_sample: int) -> None:
        if self.check_finite and not bool(values.isfinite().all()):
            samples = range(first_sample, first_sample + len(values))
            raise NonFiniteError(what, self.table, row, samples)


class CompiledLoop(EagerLoop):
    """Runs all rows of a table around a :class:`genssl_fast.nn.FilmMLP` as one operation."""

    def __call__(self, x: Tensor, labels: Tensor | None, first_sample: int, report: Report) -> Tensor:
        samples = film_mlp_sample(
            x.flatten(1),
            self.model.weights(),
            self._table_of_scaled_times,
            labels=labels,
            convention=self.model.convention,
            clip_denoised=self.clip_denoised,
            seed=self.seed,
            step=step_counter(Stream.STEP, 0),
            first_sample=first_sample,
        ).view_as(x)
        if self.check_finite and not bool(samples.isfinite().all()):
            # The loop in Python computes the same and says at which step it happened.
            return super().__call__(x, labels, first_sample, report)
        report(len(self.table), samples)
        return samples

    @cached_property
    def _table_of_scaled_times(self) -> CoefficientTable:
        coefficients = self.table.coefficients.clone()
        coefficients[:, -1] *= self.model.time_scale
        return CoefficientTable(coefficients, self.table.num_states)
