"""A small convolutional network for small images."""

import torch
from torch import Tensor, nn

from genssl_fast._checks import check, check_count

__all__ = ["ConvBackbone"]


class ConvBackbone(nn.Sequential):
    """Stages of 3×3 convolutions with batch normalization, the mean over pixels at the end.

    Every stage after the first halves the sides and has its own width. Weights and activations are
    channels-last, which convolutions on CPUs and tensor cores are fastest in.

    Arguments:
        channels: C of images [B, C, H, W].
        widths: Channels of the stages.
        standardize: Whether every image first has its mean taken off and is divided by its standard
            deviation, so that brightness and contrast say nothing.

    Attributes:
        features: the width of what comes out, [B, features].

    Example:
        >>> ConvBackbone(1, (8, 16))(torch.zeros(4, 1, 16, 16)).shape
        torch.Size([4, 16])
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = (32, 64, 128), *, standardize: bool = False):
        check_count("channels", channels, 1)
        check(len(widths) > 0, "widths", "at least one", list(widths))
        layers, before = [nn.GroupNorm(1, channels, affine=False)] if standardize else [], channels
        for number, width in enumerate(widths):
            layers.append(nn.Conv2d(before, width, 3, stride=1 + (number > 0), padding=1, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.features = before
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        check(x.ndim == 4, "x", "images [B, C, H, W]", list(x.shape))
        return super().forward(x.contiguous(memory_format=torch.channels_last))
