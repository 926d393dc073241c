"""Glow: convolutional couplings over several scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from genssl_fast._autocast import without_autocast
from genssl_fast._checks import check
from genssl_fast.flows.flow import Flow, constructor_arguments, event_shape
from genssl_fast.nn import ActNorm, AffineCoupling, Compose, ConvNet, InvertibleLinear
from genssl_fast.nn.kept import Kept
from genssl_fast.ops.invertible_linear import invertible_linear_weight
from genssl_fast.ops.permute import squeeze2d

__all__ = ["Glow", "GlowScale", "GlowStep", "glow_step"]


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
        check(scales >= 1, "scales", "at least 1", scales)
        check(steps >= 1, "steps", "at least 1", steps)
        divided = len(shape) == 3 and all(size % 2**scales == 0 for size in shape[1:])
        check(divided, "shape", f"(C, H, W) with H and W divisible by {2**scales}", shape)
        network = partial(ConvNet, hidden=hidden, context_features=context_features)
        step = partial(glow_step, network=network, clamp=clamp, limit=limit)
        prior = partial(AffineCoupling, network=network, clamp=prior_clamp, limit=prior_limit)
        scale = _scales(shape[0], scales, steps, step, prior)
        super().__init__(shape, [scale], context_features=context_features, flat=False)
        self.config = config


class GlowScale(nn.Module):
    """One scale: squeeze, steps, and the rest for half of the channels.

    Arguments:
        steps: layers of [B, 4 C, H / 2, W / 2].
        prior: a coupling that transforms the first 2 C channels given the others, or None at the last
            scale.
        rest: layers of the other 2 C channels, or None at the last scale.
    """

    def __init__(
        self, steps: Iterable[nn.Module], prior: nn.Module | None = None, rest: nn.Module | None = None
    ):
        super().__init__()
        self.steps, self.prior, self.rest = Compose(steps), prior, rest

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])`` with x and y [B, C, H, W]."""
        x, log_abs_det = self.steps(squeeze2d(x), context)
        if self.rest is not None:
            x, of_prior = self.prior(x, context)
            done, others = x.chunk(2, 1)
            others, of_rest = self.rest(others, context)
            x, log_abs_det = torch.cat([done, others], 1), log_abs_det + of_prior + of_rest
        return squeeze2d(x, inverse=True), log_abs_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse."""
        y = squeeze2d(y)
        if self.rest is None:
            x, log_abs_det = self.steps.inverse(y, context)
            return squeeze2d(x, inverse=True), log_abs_det
        done, others = y.chunk(2, 1)
        others, of_rest = self.rest.inverse(others, context)
        x, of_prior = self.prior.inverse(torch.cat([done, others], 1), context)
        x, log_abs_det = self.steps.inverse(x, context)
        return squeeze2d(x, inverse=True), log_abs_det + of_prior + of_rest


class GlowStep(Compose):
    """Normalization, 1×1 convolution and coupling; the first two are applied as one convolution."""

    def __init__(self, layers: Iterable[nn.Module]):
        super().__init__(layers)
        check(len(self) == 3, "layers", "normalization, 1×1 convolution and coupling", f"{len(self)} layers")
        self._kept, self._kept_inverse = Kept(), Kept()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])``"""
        norm, _, coupling = self
        norm.initialize_once(x)
        weight, bias, per_pixel = self._linear(self._kept, inverse=False)
        y, log_abs_det = coupling(_convolution(x, weight, bias), context)
        return y, log_abs_det + per_pixel * math.prod(x.shape[2:])

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse."""
        x, log_abs_det = self[2].inverse(y, context)
        weight, bias, per_pixel = self._linear(self._kept_inverse, inverse=True)
        return _convolution(x, weight, bias), log_abs_det - per_pixel * math.prod(y.shape[2:])

    def refresh(self) -> None:
        """Forgets matrices: on CUDA, after changes of ``.data``, which have no version."""
        self._kept.forget()
        self._kept_inverse.forget()

    def _linear(self, kept: Kept, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        norm, linear, _ = self
        parameters = [norm.shift, norm.log_scale, *linear.factors()]
        return kept(parameters, partial(_folded, *parameters, inverse=inverse))


@without_autocast
def _folded(
    shift: Tensor,
    log_scale: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diagonal: Tensor,
    *others,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Matrix and bias of normalization and convolution, or of their inverse; the log-determinant."""
    weight = invertible_linear_weight(lower, upper, log_diagonal, *others, inverse=inverse)
    shift, log_scale, log_diagonal = (value.to(weight.dtype) for value in (shift, log_scale, log_diagonal))
    log_abs_det = log_scale.sum() + log_diagonal.sum()
    if inverse:
        return torch.exp(-log_scale)[:, None] * weight, -shift * torch.exp(-log_scale), log_abs_det
    return weight * torch.exp(log_scale), weight @ shift, log_abs_det


@without_autocast
def _convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``W x + b`` at every pixel; as a product of matrices, which is faster than a convolution in NCHW."""
    pixels = x.flatten(2).to(weight.dtype)
    y = torch.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), pixels)
    return y.view(x.shape).to(x.dtype)


def glow_step(
    channels: int,
    network: Callable[[int, int], nn.Module] = ConvNet,
    *,
    clamp: str = "sigmoid",
    limit: float | None = None,
) -> GlowStep:
    """One step of Glow on [B, channels, H, W]: normalization, 1×1 convolution, coupling of the second half.

    Example:
        >>> from genssl_fast.flows.glow import glow_step
        >>> y, log_abs_det = glow_step(12)(torch.randn(2, 12, 4, 4))
        >>> y.shape, log_abs_det.shape
        (torch.Size([2, 12, 4, 4]), torch.Size([2]))
    """
    mask = torch.arange(channels) >= (channels + 1) // 2
    coupling = AffineCoupling(mask, network, clamp=clamp, limit=limit)
    return GlowStep([ActNorm(channels), InvertibleLinear(channels), coupling])


def _scales(channels: int, scales: int, steps: int, step: Callable, prior: Callable) -> GlowScale:
    """The scale of images of so many channels, and in it all that follow."""
    layers = [step(4 * channels) for _ in range(steps)]
    if scales == 1:
        return GlowScale(layers)
    half = 2 * channels
    rest = _scales(half, scales - 1, steps, step, prior)
    return GlowScale(layers, prior(torch.arange(2 * half) < half), rest)
