"""Layers of a flow as plain data, from data to noise: what :class:`genssl_fast.FlowPlan` runs."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor

from genssl_fast._checks import check

__all__ = [
    "AutoregressiveLayer",
    "ChannelLinearLayer",
    "ConvNetWeights",
    "CouplingLayer",
    "ElementwiseLayer",
    "Layer",
    "LinearLayer",
    "MLPWeights",
    "PartialLayer",
    "PermutationLayer",
    "first_weight",
    "layer_features",
    "layer_tensors",
]


class MLPWeights(NamedTuple):
    """A multilayer perceptron; matrices [out, in] and biases [out] as in ``torch.nn.Linear``.

    Plain: ``activation`` between any two layers. Residual, as nflows' ``ResidualNet``: a first layer
    ``h = W x + b``, blocks of two layers ``h <- h + W₂ act(W₁ act(h) + b₁) + b₂``, and a last layer of ``h``.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: str = "relu"
    residual: bool = False


class ConvNetWeights(NamedTuple):
    """Convolutions of images [B, in, H, W] with zeros around them and ``activation`` between any two.

    Kernels [out, in, K, K] with K of 1, 3, 5 or 7, biases [out] as in ``torch.nn.Conv2d``.
    ``context_weight`` [out, C]: its product with the context is added to every pixel of the first layer.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    size: tuple[int, int]  # H, W
    activation: str = "relu"
    context_weight: Tensor | None = None


class CouplingLayer(NamedTuple):
    """Columns ``transformed`` go through ``transform``, whose parameters the network computes.

    A perceptron is given the columns ``identity`` and then, if any, the ``context_features`` of the
    context: [B, I + C] to [B, T * P], laid out as the transform says. Convolutions are given ``identity``
    as channels, those of a channel together, and the context apart; their channels are laid out as the
    transform says for ``transformed`` as channels. ``inverse``: the layer applies the transform's inverse
    on the way from data to noise.
    """

    identity: Tensor  # [I] int64
    transformed: Tensor  # [T] int64
    network: MLPWeights | ConvNetWeights
    transform: NamedTuple  # AffineTransform or SplineTransform
    inverse: bool = False
    context_features: int = 0


class AutoregressiveLayer(NamedTuple):
    """Every column goes through ``transform``, by parameters that depend on the columns of lower degree.

    The network reads the columns [B, D] and gives D * P numbers, laid out as the transform says. It is masked
    by ``degrees``, as for :func:`genssl_fast.made`. ``context_weight``: its product with the context is added
    to the first layer. ``inverse``: as of :class:`CouplingLayer`.
    """

    degrees: tuple[Tensor, ...]  # int64, of the columns [D] and of the units of every hidden layer
    network: MLPWeights
    transform: NamedTuple  # AffineTransform or SplineTransform
    inverse: bool = False
    context_weight: Tensor | None = None  # [H_1, C]

    @property
    def context_features(self) -> int:
        """C, or 0."""
        return 0 if self.context_weight is None else self.context_weight.shape[1]


class PermutationLayer(NamedTuple):
    """Column i of the result is column ``index[i]`` of the input; int64 [D]."""

    index: Tensor


class LinearLayer(NamedTuple):
    """``y = W x + bias`` with W [D, D], and log|det W|, a tensor of one element.

    ``weight_inverse`` is computed where it is not given.
    """

    weight: Tensor
    bias: Tensor | None
    log_abs_det: Tensor
    weight_inverse: Tensor | None = None


class ChannelLinearLayer(NamedTuple):
    """``y = W x + bias`` with W [C, C] at every pixel of an image [C, H, W], and log|det W|.

    ``inverse_bias`` is that of the inverse, ``W⁻¹ y + inverse_bias``; both are computed where they are not
    given.
    """

    weight: Tensor
    bias: Tensor
    log_abs_det: Tensor
    size: tuple[int, int]  # H, W
    weight_inverse: Tensor | None = None
    inverse_bias: Tensor | None = None


class ElementwiseLayer(NamedTuple):
    """``y = x * exp(log_scale) + shift``, both [D]."""

    shift: Tensor
    log_scale: Tensor


class PartialLayer(NamedTuple):
    """Layers of the columns ``columns`` alone; the others stay."""

    columns: Tensor  # [N] int64
    layers: tuple  # of layers of N columns

    @property
    def context_features(self) -> int:
        """What any of the layers reads."""
        return max(getattr(layer, "context_features", 0) for layer in self.layers)


Layer = (
    CouplingLayer
    | AutoregressiveLayer
    | PermutationLayer
    | LinearLayer
    | ChannelLinearLayer
    | ElementwiseLayer
    | PartialLayer
)


def layer_tensors(layer: Layer) -> list[Tensor]:
    """Every tensor of a description."""
    if isinstance(layer, Tensor):
        return [layer]
    parts = layer if isinstance(layer, tuple) else ()
    return [tensor for part in parts for tensor in layer_tensors(part)]


def first_weight(layers: Sequence[Layer]) -> Tensor:
    """The tensor whose dtype and device are those of all."""
    weights = [t for layer in layers for t in layer_tensors(layer) if t.is_floating_point()]
    check(len(weights) > 0, "flow", "a layer with weights", "permutations alone")
    return weights[0]


def layer_features(layers: Sequence[Layer]) -> int:
    """How many columns the layers act on."""
    whole = [layer for layer in layers if not isinstance(layer, PartialLayer)]
    check(len(whole) > 0, "flow", "a layer of all columns", "parts alone")
    layer = whole[0]
    if isinstance(layer, CouplingLayer):
        return len(layer.identity) + len(layer.transformed)
    if isinstance(layer, ChannelLinearLayer):
        return len(layer.bias) * prod(layer.size)
    return (layer.degrees[0] if isinstance(layer, AutoregressiveLayer) else layer[0]).shape[-1]
