"""What happens to data before a flow sees them, and to samples after it."""

import math

import torch
from torch import Tensor, nn

from genssl_fast._checks import check
from genssl_fast._random import Stream, step_counter
from genssl_fast.ops.random import random_uniform

__all__ = ["Preprocessing"]


class Preprocessing(nn.Module):
    r"""Maps data [B, *shape] in [-1, 1] to unbounded, standardized values, and back.

    Discrete data, levels :math:`v` from 0 to L - 1, are first spread by uniform noise :math:`u` in [0, 1):

    .. math:: y = \operatorname{logit}(\alpha + (1 - 2\alpha)\,(v + u) / L)

    Then every entry has its mean over the training data taken off and is divided by its standard deviation.
    With the log-determinant, the log-density of y becomes a lower bound of log P(v), exact on average over
    u for a density that is constant within a level.

    Arguments:
        shape: Of a sample.
        num_levels: L; None for continuous data.
        alpha: Keeps the logit finite, 0 < alpha < 0.5.

    References:
        Papamakarios et al., Masked Autoregressive Flow for Density Estimation,
        https://arxiv.org/abs/1705.07057, section 4.3

    Example:
        >>> from genssl_fast.data import load_digits
        >>> digits, _ = load_digits()
        >>> preprocessing = Preprocessing((1, 8, 8), digits.num_levels)
        >>> preprocessing.fit(digits.samples, seed=0)
        >>> y, log_abs_det = preprocessing(digits.samples[:5], seed=1)
        >>> torch.equal(preprocessing.inverse(y), digits.samples[:5])
        True
    """

    def __init__(self, shape: tuple[int, ...], num_levels: int | None = None, alpha: float = 0.05) -> None:
        super().__init__()
        check(num_levels is None or num_levels >= 2, "num_levels", "at least 2 or None", num_levels)
        check(0 < alpha < 0.5, "alpha", "a number between 0 and 0.5", alpha)
        self.num_levels, self.alpha = num_levels, alpha
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    @torch.no_grad()
    def fit(self, x: Tensor, *, seed: int) -> None:
        """Takes mean and standard deviation from data [N, *shape]; an entry that never varies keeps 1.

        What varies by no more than the rounding of its largest value does not vary.
        """
        values = self._unbounded(x, seed, 0, 0)[0] if self.num_levels else x
        std, mean = torch.std_mean(values.double(), dim=0, correction=0)
        varies = std > torch.finfo(x.dtype).eps * values.abs().amax(0)
        self.std = torch.where(varies, std, 1.0).to(x.dtype)
        self.mean = mean.to(x.dtype)

    def forward(self, x: Tensor, *, seed: int, step: int = 0, first_sample: int = 0) -> tuple[Tensor, Tensor]:
        """Values like ``x``, and the log-determinant [B] of the map from levels, or from ``x``, to them.

        Arguments:
            x: Data [B, *shape] in [-1, 1]. Discrete data are rounded to the nearest level.
            seed: Of the noise.
            step: Counts the uses of a seed.
            first_sample: The number of the first sample; noise depends on (seed, step, number) alone.
        """
        log_abs_det = 0.0
        if self.num_levels:
            x, log_abs_det = self._unbounded(x, seed, step, first_sample)
        return (x - self.mean) / self.std, (log_abs_det - self.std.log().sum()).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Data [B, *shape] in [-1, 1] at values ``y``; discrete data are levels exactly."""
        values = y * self.std + self.mean
        if not self.num_levels:
            return values
        # By comparison: a sigmoid of PyTorch's rounds by where a value is in its tensor.
        levels = torch.bucketize(values, self._thresholds(values), right=True).to(values.dtype)
        return torch.where(values.isnan(), values, levels * (2 / (self.num_levels - 1)) - 1)

    def _thresholds(self, values: Tensor) -> Tensor:
        """Where levels 1 to L - 1 begin [L - 1], like ``values`` in dtype and device."""
        levels = torch.arange(1, self.num_levels, dtype=torch.float64, device=values.device)
        return (self.alpha + (1 - 2 * self.alpha) / self.num_levels * levels).logit().to(values.dtype)

    def _unbounded(self, x: Tensor, seed: int, step: int, first_sample: int) -> tuple[Tensor, Tensor]:
        counter = step_counter(Stream.DEQUANTISATION, step)
        noise = random_uniform(
            x.shape, seed=seed, step=counter, first_sample=first_sample, dtype=x.dtype, device=x.device
        )
        highest = self.num_levels - 1
        levels = ((x + 1) * (highest / 2)).round().clamp(0, highest)
        unit = self.alpha + (1 - 2 * self.alpha) / self.num_levels * (levels + noise)
        log_unit, log_rest = unit.log(), torch.log1p(-unit)
        slope = math.log((1 - 2 * self.alpha) / self.num_levels)
        return log_unit - log_rest, (slope - log_unit - log_rest).flatten(1).sum(1)
