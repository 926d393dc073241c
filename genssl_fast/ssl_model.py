"""A backbone and the method that trains it without labels, and all that embedding needs to know."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genssl_fast._checks import check, check_choice, check_count
from genssl_fast.checkpointed_model import CheckpointedModel
from genssl_fast.data import Scale
from genssl_fast.ssl import METHODS, Augmentation, ConvBackbone, MultiCrop

__all__ = ["SSLModel", "SSLModelConfig"]


@dataclass(frozen=True)
class SSLModelConfig:
    """What defines an :class:`SSLModel` apart from its weights.

    Arguments:
        shape: The shape of an image, [C, H, W] or [H, W].
        method: The class, one of :data:`genssl_fast.ssl.METHODS`.
        options: Its arguments after the backbone.
        backbone: Arguments of :class:`genssl_fast.ssl.ConvBackbone` after the channels.
        augmentation: Arguments of :class:`genssl_fast.ssl.Augmentation`.
        crops: Arguments of :class:`genssl_fast.ssl.MultiCrop` after the augmentation.
        scale: The range of the data that the backbone sees as [-1, 1].
    """

    shape: tuple[int, ...]
    method: str = "simclr"
    options: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    crops: dict[str, Any] = field(default_factory=dict)
    scale: Scale = field(default=Scale(-1.0, 1.0))

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "scale", Scale.of(*self.scale))
        is_image = len(self.shape) in (2, 3)
        check(is_image, "shape", "that of images, [C, H, W] or [H, W]", list(self.shape))


class SSLModel(CheckpointedModel):
    """A method, the backbone it trains, and the views it trains on.

    A checkpoint holds all weights and what else training needs: teachers, queues, centres.

    Arguments:
        config: What defines the model apart from its weights.

    Example:
        >>> model = SSLModel(SSLModelConfig((1, 16, 16), "byol", backbone={"widths": (8, 16)}))
        >>> model.loss(torch.randn(4, 1, 16, 16), seed=0, step=0).shape
        torch.Size([])
        >>> model.embed(torch.randn(4, 1, 16, 16)).shape
        torch.Size([4, 16])
    """

    KIND = "ssl_model"
    CONFIG = SSLModelConfig

    def __init__(self, config: SSLModelConfig) -> None:
        super().__init__(config)
        channels = config.shape[0] if len(config.shape) == 3 else 1
        self.method = METHODS[config.method](ConvBackbone(channels, **config.backbone), **config.options)
        augmentation = Augmentation(**config.augmentation)
        self.views = MultiCrop(augmentation, global_views=self.method.num_views, **config.crops)

    def loss(self, samples: Tensor, *, seed: int, step: int) -> Tensor:
        """The training objective at samples [B, *shape] in [-1, 1].

        Arguments:
            samples: The data.
            seed: The seed of the views.
            step: The training step.
        """
        generator = torch.Generator(samples.device).manual_seed((seed << 24 ^ step) % (1 << 63))
        return self.method.training_step(self.views(self._images(samples), generator=generator))

    def embed(self, x: Tensor, *, batch: int = 1024) -> Tensor:
        """Features [N, F] of data [N, *shape] in units of the data.

        Arguments:
            x: The data.
            batch: How many go through the backbone at once.

        Raises:
            ValueError: If x has another shape.
        """
        shape = tuple(x.shape[1:])
        expected = f"[N, {', '.join(map(str, self.config.shape))}], samples like those it was trained on"
        check(shape == self.config.shape and len(x) > 0, "x", expected, list(x.shape))
        check_count("batch", batch, 1)
        like = next(self.parameters())
        images = self._images(self.config.scale.normalize(x.double()).to(like.device, like.dtype))
        return torch.cat([self.method.embed(part) for part in images.split(batch)])

    def _images(self, samples: Tensor) -> Tensor:
        return samples if samples.ndim == 4 else samples.unsqueeze(1)
