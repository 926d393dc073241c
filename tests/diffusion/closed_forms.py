"""Problems whose scores and flows are known exactly."""

import math

import torch
from torch import Tensor

from genssl_fast import CoefficientTable, sampler_step
from genssl_fast.diffusion import GaussianProcess, convert
from genssl_fast.diffusion.processes import per_sample


class GaussianData:
    """Data N(mean, std² I): every prediction of a network is known at every time."""

    def __init__(self, process: GaussianProcess, mean: float = 0.7, std: float = 0.4) -> None:
        self.process, self.mean, self.std = process, mean, std

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_t."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return alpha * self.mean, ((alpha * self.std).square() + sigma.square()).sqrt()

    def predict(self, x: Tensor, t: Tensor, parameterization: str = "noise") -> Tensor:
        mean, std = (per_sample(values, x) for values in self.marginal(t))
        score = -(x - mean) / std.square()
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return convert(score, x, alpha, sigma, source="score", to=parameterization)

    def flow(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The probability-flow solution at time ``end`` from ``x`` at time ``start``."""
        (mean, std), (end_mean, end_std) = self.marginal(start), self.marginal(end)
        return end_mean + (x - mean) * end_std / std


class MixtureData:
    """Data of a mixture of Gaussians of one standard deviation and equal weights."""

    def __init__(self, process: GaussianProcess, means: Tensor, std: float) -> None:
        self.process, self.means, self.std = process, means, std

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.process.alpha(t)[:, None], self.process.sigma(t)[:, None]
        variance = (alpha * self.std).square() + sigma.square()
        offsets = x[:, None] - alpha[:, None] * self.means
        weights = (-0.5 * offsets.square().sum(-1) / variance).softmax(-1)
        return sigma / variance * (weights[..., None] * offsets).sum(1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(self.means), (count,), generator=generator)
        spread = torch.randn(count, self.means.shape[1], generator=generator)
        return self.means[which] + self.std * spread


def run(table: CoefficientTable, predict, x: Tensor, noise: Tensor | None = None) -> Tensor:
    """All rows of a table, for ``predict(x, t)`` with t []; ``noise`` is [N, B, ...]."""
    predictions, states = (), ()
    for row, t in enumerate(table.time):
        injected = None if noise is None else noise[row]
        history = (predictions, states)
        x_next, prediction = sampler_step(
            x, predict(x, t), table, row, history=history, seed=0, step=row, noise=injected
        )
        predictions = (prediction, *predictions)[: max(table.num_predictions - 1, 0)]
        states = (x, *states)[: table.num_states - 1]
        x = x_next
    return x


def convergence_order(errors: list[float], steps: list[int]) -> float:
    """The order between the last two grids."""
    return math.log(errors[-2] / errors[-1]) / math.log(steps[-1] / steps[-2])


def mean_discrepancy(x: Tensor, y: Tensor, bandwidths=(0.2, 0.5, 1.0)) -> float:
    """The unbiased squared maximum mean discrepancy with a sum of Gaussian kernels."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        square = torch.cdist(a, b).square()
        return sum((-square / (2 * width**2)).exp() for width in bandwidths)

    def within(a: Tensor) -> Tensor:
        return (kernel(a, a).sum() - len(a) * len(bandwidths)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
