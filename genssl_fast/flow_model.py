"""A normalizing flow together with all that training, sampling and likelihoods need to know about it."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genssl_fast._checks import check_choice
from genssl_fast.checkpointed_model import CheckpointedModel
from genssl_fast.data import Scale
from genssl_fast.flows import FLOWS
from genssl_fast.preprocessing import Preprocessing

__all__ = ["FlowModel", "FlowModelConfig"]


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
        scale: The range of the data that the model sees as [-1, 1].
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
        object.__setattr__(self, "scale", Scale(*self.scale))


class FlowModel(CheckpointedModel):
    """A flow on preprocessed data: log-likelihoods and samples are in units of the data.

    Arguments:
        config: What defines the model apart from its weights.

    Example:
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

    @torch.no_grad()
    def fit(self, samples: Tensor, *, seed: int) -> None:
        """Sets what depends on data alone, from samples [N, *shape] in [-1, 1], before the first step."""
        self.preprocessing.fit(samples, seed=seed)
        # In training, activation normalization takes its scales from the first batch it sees.
        self.flow.train().transform(self.preprocessing(samples, seed=seed)[0])

    def loss(self, samples: Tensor, *, seed: int, step: int) -> Tensor:
        """The training objective at samples [B, *shape] in [-1, 1]: mean negative log2-likelihood per entry.

        Arguments:
            samples: The data.
            seed: The seed of the noise that dequantizes.
            step: The training step.
        """
        values, log_abs_det = self.preprocessing(samples, seed=seed, step=step)
        return -(self.flow.log_prob(values) + log_abs_det).mean() / self._nats_per_bit_per_dim

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, seed: int = 0, first_sample: int = 0) -> Tensor:
        """Log-likelihood [B] of data [B, *shape] in nats: of a level's probability, or a density.

        Arguments:
            x: In units of the data. Discrete values are rounded to the nearest level.
            seed: The seed of the noise that dequantizes; the result is a lower bound whatever it is.
            first_sample: The number of the first sample, which chooses its noise.
        """
        samples = self.config.scale.normalize(x)
        values, log_abs_det = self.preprocessing(samples, seed=seed, first_sample=first_sample)
        if self.config.num_levels is None:
            low, high = self.config.scale
            log_abs_det = log_abs_det - math.prod(self.config.shape) * math.log((high - low) / 2)
        return self.flow.log_prob(values) + log_abs_det

    def bits_per_dim(self, x: Tensor, *, seed: int = 0, first_sample: int = 0) -> Tensor:
        """Negative log2-likelihood per entry [B]; arguments as for :meth:`log_prob`."""
        return -self.log_prob(x, seed=seed, first_sample=first_sample) / self._nats_per_bit_per_dim

    @torch.no_grad()
    def sample(self, count: int, *, seed: int | None = None, first_sample: int = 0) -> Tensor:
        """Samples [count, *shape] in units of the data; discrete ones are levels exactly.

        Arguments:
            count: The number of samples.
            seed: Of the noise; None draws one from PyTorch's default generator.
            first_sample: The number of the first sample.
        """
        values = self.flow.sample(count, seed=seed, first_sample=first_sample)
        return self.config.scale.restore(self.preprocessing.inverse(values))

    @property
    def _nats_per_bit_per_dim(self) -> float:
        return math.prod(self.config.shape) * math.log(2)
