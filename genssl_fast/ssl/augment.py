"""Augmentations of batches of images: every sample gets its own, a whole batch in a few passes."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from genssl_fast._checks import check, check_count, check_tensor

__all__ = ["Augmentation", "MultiCrop"]


@dataclass(frozen=True)
class Augmentation:
    """Random views of images [B, C, H, W] in [-1, 1].

    One resampling does crop, shift, rotation and flip together; then contrast, brightness, inversion, blur
    and noise. Samples are drawn independently, from one generator, so equal generators give equal views.

    Arguments:
        crop: Smallest and largest side of the window that is resized to the image, in sides of the image.
        shift: Largest distance between the centres of window and image, in sides of the image.
        wrap: What a window sees that leaves the image: the other side, or (default) the border going on.
        rotation: Largest angle in degrees, either way.
        flip: Probability of a horizontal flip.
        contrast: Smallest and largest factor.
        brightness: Largest amount added, either way.
        invert: Probability that black and white change places.
        blur: Probability of a binomial blur over 3×3 pixels.
        noise: Largest standard deviation of Gaussian noise; that of a sample is uniform from 0.

    Example:
        >>> augmentation = Augmentation(crop=(0.6, 1.0), shift=0.1, flip=0.5)
        >>> augmentation(torch.zeros(2, 1, 16, 16), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 16, 16])
    """

    crop: tuple[float, float] = (0.7, 1.0)
    shift: float = 0.15
    wrap: bool = False
    rotation: float = 0.0
    flip: float = 0.0
    contrast: tuple[float, float] = (0.6, 1.4)
    brightness: float = 0.2
    invert: float = 0.0
    blur: float = 0.0
    noise: float = 0.1

    def __post_init__(self) -> None:
        for name in ("crop", "contrast"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            in_order = len(values) == 2 and 0 < values[0] <= values[1]
            check(in_order, name, "two positive numbers in ascending order", list(values))
        for name in ("flip", "invert", "blur"):
            value = getattr(self, name)
            check(0 <= value <= 1, name, "a probability", value)
        for name in ("shift", "rotation", "brightness", "noise"):
            value = getattr(self, name)
            check(value >= 0, name, "at least 0", value)

    def __call__(
        self, x: Tensor, *, generator: torch.Generator | None = None, size: int | None = None
    ) -> Tensor:
        """One view [B, C, size, size] of every image, by default of the size it has.

        Raises:
            ValueError: If x is not [B, C, H, W].
        """
        check_tensor("x", x)
        check(x.ndim == 4, "x", "images [B, C, H, W]", list(x.shape))
        draw = _Draw(len(x), x, generator)
        return self._recolour(self._resample(x, draw, size), draw)

    def _resample(self, x: Tensor, draw: "_Draw", size: int | None) -> Tensor:
        height, width = x.shape[2:] if size is None else (size, size)
        if self.crop == (1.0, 1.0) and not (self.shift or self.rotation or self.flip) and size is None:
            return x
        # Coordinates run over [-1, 1], so a shift in sides counts twice.
        zoom, angle = draw.between(*self.crop), draw.around(math.radians(self.rotation))
        mirror = 1 - 2 * draw.happens(self.flip)
        cosine, sine = zoom * angle.cos(), zoom * angle.sin()
        shift_x, shift_y = draw.around(2 * self.shift), draw.around(2 * self.shift)
        rows = [cosine * mirror, -sine, shift_x, sine * mirror, cosine, shift_y]
        theta = torch.stack(rows, dim=1).view(-1, 2, 3)
        grid = F.affine_grid(theta, [len(x), 1, height, width], align_corners=False)
        if self.wrap:
            grid = (grid + 1).remainder_(2).sub_(1)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _recolour(self, x: Tensor, draw: "_Draw") -> Tensor:
        contrast = draw.between(*self.contrast) * (1 - 2 * draw.happens(self.invert))
        x = torch.addcmul(_image(draw.around(self.brightness)), x, _image(contrast))
        if self.blur:
            x = torch.lerp(x, _binomial_blur(x), _image(draw.happens(self.blur)))
        if self.noise:
            strength = _image(draw.between(0.0, self.noise))
            x = x.addcmul_(draw.normal(x.shape), strength)
        return x


@dataclass(frozen=True)
class MultiCrop:
    """Global views, that hold most of an image, and small ones, that hold a part of it.

    Arguments:
        augmentation: Of the global views.
        global_views: How many of them.
        local_views: How many small views.
        local_size: Their side in pixels.
        local_crop: Smallest and largest side of their window, in sides of the image.

    Example:
        >>> views = MultiCrop(Augmentation(), local_views=2, local_size=8)(torch.zeros(3, 1, 16, 16))
        >>> [tuple(view.shape[2:]) for view in views]
        [(16, 16), (16, 16), (8, 8), (8, 8)]
    """

    augmentation: Augmentation
    global_views: int = 2
    local_views: int = 0
    local_size: int = 8
    local_crop: tuple[float, float] = (0.4, 0.6)

    def __post_init__(self) -> None:
        check_count("global_views", self.global_views, 1)
        check_count("local_views", self.local_views)
        check_count("local_size", self.local_size, 1)

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> list[Tensor]:
        """The views [B, C, h, w], global ones first."""
        views = [self.augmentation(x, generator=generator) for _ in range(self.global_views)]
        local = Augmentation(**asdict(self.augmentation) | {"crop": self.local_crop})
        return views + [local(x, generator=generator, size=self.local_size) for _ in range(self.local_views)]


class _Draw:
    """Random numbers, one for each sample."""

    def __init__(self, count: int, like: Tensor, generator: torch.Generator | None):
        self.count, self.like, self.generator = count, like, generator

    def between(self, low: float, high: float) -> Tensor:
        uniform = torch.rand(
            self.count, generator=self.generator, dtype=self.like.dtype, device=self.like.device
        )
        return low + (high - low) * uniform

    def around(self, bound: float) -> Tensor:
        return self.between(-bound, bound)

    def happens(self, probability: float) -> Tensor:
        """1 with this probability, else 0."""
        return (self.between(0.0, 1.0) < probability).to(self.like.dtype)

    def normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.like.dtype, device=self.like.device)


def _image(values: Tensor) -> Tensor:
    """Numbers [B] that spread over images."""
    return values.view(-1, 1, 1, 1)


def _binomial_blur(x: Tensor) -> Tensor:
    """Weights (1, 2, 1)/4 along both sides; the border goes on."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = (padded[:, :, :-2] + padded[:, :, 2:]).add_(padded[:, :, 1:-1], alpha=2)
    return (rows[..., :-2] + rows[..., 2:]).add_(rows[..., 1:-1], alpha=2).mul_(1 / 16)
