"""A score network together with all that training and sampling need to know about it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from genssl_fast._checks import check, check_choice
from genssl_fast.checkpointed_model import CheckpointedModel
from genssl_fast.data import Scale
from genssl_fast.diffusion import VESDE, VPSDE, SubVPSDE, sample
from genssl_fast.diffusion.objectives import ddpm_loss, denoising_score_matching
from genssl_fast.diffusion.samplers import unit_variance
from genssl_fast.nn import FilmMLP

__all__ = ["PROCESSES", "WEIGHTINGS", "ScoreModel", "ScoreModelConfig"]

PROCESSES = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE}
WEIGHTINGS = ("prediction", "simple", "likelihood")


@dataclass(frozen=True)
class ScoreModelConfig:
    """What defines a :class:`ScoreModel` apart from its weights.

    Arguments:
        shape: The shape of a sample.
        process: The forward process, one of :data:`PROCESSES`.
        parameterization: What the network predicts.
        hidden: The width of the network.
        blocks: The number of its residual blocks.
        embed: The width of the embedding of time.
        time_dim: The number of sinusoidal features of time.
        scale: The range of the data that the network sees as [-1, 1].
    """

    shape: tuple[int, ...]
    process: str = "vp"
    parameterization: str = "flow"
    hidden: int = 192
    blocks: int = 4
    embed: int = 32
    time_dim: int = 64
    scale: Scale = field(default=Scale(-1.0, 1.0))

    def __post_init__(self) -> None:
        check_choice("process", self.process, PROCESSES)
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "scale", Scale(*self.scale))


class ScoreModel(CheckpointedModel):
    """A :class:`genssl_fast.nn.FilmMLP` and its process, trained on data in [-1, 1].

    Arguments:
        config: What defines the model apart from its weights.

    Example:
        >>> from genssl_fast.data import Scale
        >>> model = ScoreModel(ScoreModelConfig(shape=(1, 8, 8), scale=Scale(0, 16)))
        >>> model.sample(2, steps=4, seed=0).shape
        torch.Size([2, 1, 8, 8])
    """

    KIND = "score_model"
    CONFIG = ScoreModelConfig

    def __init__(self, config: ScoreModelConfig) -> None:
        super().__init__(config)
        self.process = PROCESSES[config.process]()
        self.network = FilmMLP(
            shape=config.shape,
            hidden=config.hidden,
            blocks=config.blocks,
            embed=config.embed,
            time_dim=config.time_dim,
            time_scale=1000.0,
        )

    @property
    def _saved(self) -> nn.Module:
        return self.network

    def loss(self, x0: Tensor, *, weighting: str = "prediction", seed: int, step: int) -> Tensor:
        """The training objective at data [B, *shape] in [-1, 1].

        Arguments:
            x0: The data.
            weighting: `"prediction"` for the error of what the network predicts, see
                :func:`genssl_fast.diffusion.ddpm_loss`; `"simple"` and `"likelihood"` are those of
                :func:`genssl_fast.diffusion.denoising_score_matching`.
            seed: The seed of times and noise.
            step: The training step.
        """
        check_choice("weighting", weighting, WEIGHTINGS)
        options = self._network_options | dict(seed=seed, step=step)
        if weighting == "prediction":
            return ddpm_loss(self.network, self.process, x0, **options)
        return denoising_score_matching(self.network, self.process, x0, weighting=weighting, **options)

    def sample(
        self,
        count: int,
        *,
        sampler: str = "ddim",
        steps: int = 50,
        seed: int | None = None,
        first_sample: int = 0,
        clip: bool = True,
        backend: str = "auto",
        callback: Callable[[int, int, Tensor], None] | None = None,
        check_finite: bool = False,
        **sampler_options: Any,
    ) -> Tensor:
        """Draws samples [count, *shape] in units of the data, see :func:`genssl_fast.diffusion.sample`.

        Arguments:
            count: The number of samples.
            clip: Whether denoised predictions are clipped to the range of the data.
        """
        check(count >= 0, "count", "at least 0", count)
        samples = sample(
            self.network,
            self.process,
            shape=(count, *self.config.shape),
            sampler=sampler,
            steps=steps,
            clip_denoised=1.0 if clip else None,
            seed=seed,
            first_sample=first_sample,
            backend=backend,
            callback=callback,
            check_finite=check_finite,
            **self._network_options,
            **sampler_options,
        )
        return self.config.scale.restore(samples)

    @property
    def _network_options(self) -> dict[str, Any]:
        # The variance-preserving process needs no scaling of its states.
        scale = None if self.config.process == "vp" else unit_variance
        return dict(parameterization=self.config.parameterization, input_scale=scale)
