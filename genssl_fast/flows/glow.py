"""Glow: convolutional couplings over several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from genssl_fast._checks import check, check_count
from genssl_fast.flows.flow import Flow, constructor_arguments, event_shape
from genssl_fast.nn import AffineCoupling, ConvNet
from genssl_fast.nn.glow import GlowScale, glow_step

__all__ = ["Glow"]


class Glow(Flow):
    """Multi-scale flow of images by steps of normalization, 1×1 convolution and affine coupling.

    At every scale but the last half of the channels is done, and given a normal density that depends on
    the other half. Noise has the shape of the images, the channels of a scale where its pixels are.

    Arguments:
        shape: (C, H, W) of an image; H and W are divisible by 2 ** scales.
        scales: number of scales, each with half the height and width of the one before.
        steps: number of steps at each scale.
        hidden: channels inside the networks of the couplings.
        clamp, limit: bound of the scale in the steps, see :func:`genssl_fast.affine_coupling`.
        prior_clamp, prior_limit: likewise in the densities of halves that are done. Nothing after these
            can stretch, which a sigmoid does not: on digits it costs 8 nats after 400 steps of training.
        context_features: length of the context, 0 for none.

    Raises:
        ValueError: a shape that the scales do not divide.

    References:
        Kingma and Dhariwal, Glow: Generative Flow with Invertible 1×1 Convolutions,
        https://arxiv.org/abs/1807.03039

    Example:
        >>> flow = genssl_fast.flows.Glow((1, 8, 8), scales=2, steps=2, hidden=8)
        >>> flow.log_prob(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        shape: Sequence[int],
        scales: int = 2,
        steps: int = 8,
        hidden: int = 64,
        *,
        clamp: str = "sigmoid",
        limit: float | None = None,
        prior_clamp: str = "tanh",
        prior_limit: float | None = None,
        context_features: int = 0,
    ):
        config = constructor_arguments(locals())
        shape = event_shape(shape)
        check_count("scales", scales, 1)
        check_count("steps", steps, 1)
        divided = len(shape) == 3 and all(size % 2**scales == 0 for size in shape[1:])
        check(divided, "shape", f"(C, H, W) with H and W divisible by {2**scales}", shape)
        network = partial(ConvNet, hidden=hidden, context_features=context_features)
        step = partial(glow_step, network=network, clamp=clamp, limit=limit)
        prior = partial(AffineCoupling, network=network, clamp=prior_clamp, limit=prior_limit)
        scale = _scales(shape[0], scales, steps, step, prior)
        super().__init__(shape, [scale], context_features=context_features, flat=False)
        self.config = config


def _scales(channels: int, scales: int, steps: int, step: Callable, prior: Callable) -> GlowScale:
    """The scale of images of so many channels, and in it all that follow."""
    layers = [step(4 * channels) for _ in range(steps)]
    if scales == 1:
        return GlowScale(layers)
    half = 2 * channels
    rest = _scales(half, scales - 1, steps, step, prior)
    return GlowScale(layers, prior(torch.arange(2 * half) < half), rest)
