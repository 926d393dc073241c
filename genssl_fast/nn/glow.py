"""Layers of Glow: a step, and a scale of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from genssl_fast._autocast import without_autocast
from genssl_fast._checks import check
from genssl_fast.nn.actnorm import ActNorm
from genssl_fast.nn.compose import Compose
from genssl_fast.nn.conv_net import ConvNet
from genssl_fast.nn.coupling import AffineCoupling
from genssl_fast.nn.invertible_linear import InvertibleLinear
from genssl_fast.nn.kept import Kept
from genssl_fast.ops.flow_layers import ChannelLinearLayer, Layer, PartialLayer, PermutationLayer
from genssl_fast.ops.invertible_linear import invertible_linear_weight
from genssl_fast.ops.permute import squeeze2d

__all__ = ["GlowScale", "GlowStep", "glow_step"]


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

    def plan_layers(self, shape: Sequence[int]) -> list[Layer]:
        """This layer of images [C, H, W] as :class:`genssl_fast.FlowPlan` takes it."""
        channels, height, width = shape
        inner = 4 * channels, height // 2, width // 2
        columns = torch.arange(math.prod(shape), device=next(self.parameters()).device)
        squeezed = pixel_unshuffle(columns.view(shape), 2).flatten()
        layers = [layer for step in self.steps for layer in _described(step, inner)]
        if self.rest is not None:
            half = len(columns) // 2
            rest = _described(self.rest, (inner[0] // 2, *inner[1:]))
            layers += [*_described(self.prior, inner), PartialLayer(columns[half:], tuple(rest))]
        return [PermutationLayer(squeezed), *layers, PermutationLayer(squeezed.argsort())]


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

    def plan_layers(self, shape: Sequence[int]) -> list[Layer]:
        """This layer of images [C, H, W] as :class:`genssl_fast.FlowPlan` takes it."""
        weight, bias, log_abs_det = self._linear(self._kept, inverse=False)
        inverse, inverse_bias, _ = self._linear(self._kept_inverse, inverse=True)
        linear = ChannelLinearLayer(weight, bias, log_abs_det, tuple(shape[1:]), inverse, inverse_bias)
        return [linear, *_described(self[2], shape)]

    def _linear(self, kept: Kept, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        norm, linear, _ = self
        parameters = [norm.shift, norm.log_scale, *linear.factors()]
        return kept(parameters, partial(_folded, *parameters, inverse=inverse))


def _described(layer: nn.Module, shape: Sequence[int]) -> list[Layer]:
    if not hasattr(layer, "plan_layers"):
        raise TypeError(f"expected a layer with plan_layers(), got {type(layer).__name__}")
    return layer.plan_layers(shape)


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
        >>> from genssl_fast.nn.glow import glow_step
        >>> y, log_abs_det = glow_step(12)(torch.randn(2, 12, 4, 4))
        >>> y.shape, log_abs_det.shape
        (torch.Size([2, 12, 4, 4]), torch.Size([2]))
    """
    mask = torch.arange(channels) >= (channels + 1) // 2
    coupling = AffineCoupling(mask, network, clamp=clamp, limit=limit)
    return GlowStep([ActNorm(channels), InvertibleLinear(channels), coupling])
