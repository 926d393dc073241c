"""A normalizing flow together with all that training, sampling and likelihoods need to know about it."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genssl_fast._checks import check, check_choice, values_are_checked
from genssl_fast.checkpointed_model import CheckpointedModel
from genssl_fast.data import Scale
from genssl_fast.flows import FLOWS
from genssl_fast.preprocessing import Preprocessing

__all__ = ["FlowModel", "FlowModelConfig"]

# How far from a level, in levels, a value may lie and still be that level, rounded.
LEVEL_ROUNDING = 1e-3


@dataclass(frozen=True)
class FlowModelConfig:
    """What defines a :class:`FlowModel` apart from its weights.

    Arguments:
        shape: The shape of a sample.
        flow: The class, one of :data:`genssl_fast.flows.FLOWS`.
        options: Its arguments after the shape.
        num_levels: How many values discrete data can take, spread evenly over [-1, 1]; None for
            continuous data.
        alpha: See :class:`genssl_fast.preprocessing.Preprocessing`.
        scale: The range of the data that the model sees as [-1, 1]: one, or for continuous data one for
            each entry.
    """

    shape: tuple[int, ...]
    flow: str = "realnvp"
    options: dict[str, Any] = field(default_factory=dict)
    num_levels: int | None = None
    alpha: float = 0.05
    scale: Scale = field(default=Scale(-1.0, 1.0))

    def __post_init__(self) -> None:
        check_choice("flow", self.flow, FLOWS)
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "scale", Scale.of(*self.scale))
        fits = self.scale.shape in ((), self.shape if self.num_levels is None else ())
        expected = f"one range, or ranges of shape {list(self.shape)} for continuous data"
        check(fits, "scale", expected, f"shape {list(self.scale.shape)}")


class FlowModel(CheckpointedModel):
    """A flow on preprocessed data: log-likelihoods and samples are in units of the data.

    Arguments:
        config: What defines the model apart from its weights.

    Example:
        >>> from genssl_fast.data import Scale
        >>> config = FlowModelConfig((1, 8, 8), num_levels=17, scale=Scale(0, 16))
        >>> model = FlowModel(config).eval()
        >>> model.bits_per_dim(model.sample(3, seed=0)).shape
        torch.Size([3])
    """

    KIND = "flow_model"
    CONFIG = FlowModelConfig

    def __init__(self, config: FlowModelConfig) -> None:
        super().__init__(config)
        self.preprocessing = Preprocessing(config.shape, config.num_levels, config.alpha)
        self.flow = FLOWS[config.flow](config.shape, **config.options)
        self._log_volume = config.scale.log_volume(config.shape)

    @torch.no_grad()
    def fit(self, samples: Tensor, *, seed: int) -> None:
        """Sets what depends on data alone, from samples [N, *shape] in [-1, 1], before the first step."""
        self.preprocessing.fit(samples, seed=seed)
        # In training, activation normalization takes its scales from the first batch it sees.
        self.flow.train().transform(self.preprocessing(samples, seed=seed)[0])

    @property
    def unit(self) -> str:
        """The unit that a loss is reported in: bits per dimension of discrete data, nats of continuous."""
        return "nats" if self.config.num_levels is None else "bits per dimension"

    def in_unit(self, loss: float) -> float:
        """A :meth:`loss` in :attr:`unit`."""
        return loss * self._nats_per_bit_per_dim if self.config.num_levels is None else loss

    def loss(self, samples: Tensor, *, seed: int, step: int) -> Tensor:
        """The training objective at samples [B, *shape] in [-1, 1]: mean negative log2-likelihood per entry.

        Densities are those in units of the data, as in :meth:`log_prob`.

        Arguments:
            samples: The data.
            seed: The seed of the noise that dequantizes.
            step: The training step.
        """
        return -self._log_prob(samples, seed=seed, step=step).mean() / self._nats_per_bit_per_dim

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, seed: int = 0, first_sample: int = 0) -> Tensor:
        """Log-likelihood [B] of data [B, *shape] in nats: of a level's probability, or a density.

        Arguments:
            x: In units of the data, fp32 or fp64. Discrete values are levels up to rounding.
            seed: The seed of the noise that dequantizes; the result is a lower bound whatever it is.
            first_sample: The number of the first sample, which chooses its noise.

        Raises:
            ValueError: Values that are none of a discrete model's levels (on a GPU under `GENSSL_CHECK=1`).
        """
        if values_are_checked(x):
            self.check_levels(x)
        samples = self.config.scale.normalize(x.double()).to(self.preprocessing.mean.dtype)
        return self._log_prob(samples, seed=seed, first_sample=first_sample)

    def check_levels(self, x: Tensor) -> None:
        """Refuses data that a discrete model gives no probability; all are right for a continuous one.

        Raises:
            ValueError: A value that is not one of the levels.
        """
        count, scale = self.config.num_levels, self.config.scale
        if count is None:
            return
        levels = (scale.normalize(x.double()) + 1) * ((count - 1) / 2)
        is_level = (levels - levels.round().clamp(0, count - 1)).abs() <= LEVEL_ROUNDING
        if not is_level.all():
            expected = f"one of {count} levels from {scale.low:g} to {scale.high:g} in every entry"
            check(False, "x", expected, f"{float(x[~is_level][0]):g}")

    def bits_per_dim(self, x: Tensor, *, seed: int = 0, first_sample: int = 0) -> Tensor:
        """Negative log2-likelihood per entry [B]; arguments as for :meth:`log_prob`."""
        return -self.log_prob(x, seed=seed, first_sample=first_sample) / self._nats_per_bit_per_dim

    @torch.no_grad()
    def sample(self, count: int, *, seed: int | None = None, first_sample: int = 0) -> Tensor:
        """Samples [count, *shape] in units of the data; discrete ones are levels.

        In fp32, or in fp64 where every entry has its scale.

        Arguments:
            count: The number of samples.
            seed: Of the noise; None draws one from PyTorch's default generator.
            first_sample: The number of the first sample.
        """
        values = self.flow.sample(count, seed=seed, first_sample=first_sample)
        return self.config.scale.restore(self.preprocessing.inverse(values))

    @property
    def samples_are_exact(self) -> bool:
        """Whether samples are the same bit for bit however a draw is split into batches.

        Those of compiled plans are. Other flows may call libraries whose products round differently for
        batches of different size.
        """
        with torch.no_grad():
            return self.flow._plan() is not None

    def _log_prob(self, samples: Tensor, **noise: int) -> Tensor:
        """Log-likelihood [B] of samples [B, *shape] in [-1, 1]; densities are per unit of the data."""
        values, log_abs_det = self.preprocessing(samples, **noise)
        if self.config.num_levels is None:
            log_abs_det = log_abs_det - self._log_volume
        return self.flow.log_prob(values) + log_abs_det

    @property
    def _nats_per_bit_per_dim(self) -> float:
        return math.prod(self.config.shape) * math.log(2)
