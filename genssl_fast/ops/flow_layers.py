"""Layers of a flow as plain data, from data to noise: what :class:`genssl_fast.FlowPlan` runs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from genssl_fast._checks import check, check_choice, check_same, check_shape
from genssl_fast.ops.made import MAX_LAYERS, MADEWeights, made_inverse, made_transform
from genssl_fast.ops.transforms import apply_transform
from genssl_fast.reference.causal import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "AutoregressiveLayer",
    "CouplingLayer",
    "ElementwiseLayer",
    "Layer",
    "LinearLayer",
    "MLPWeights",
    "PermutationLayer",
    "apply_layers",
    "check_layers",
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


class CouplingLayer(NamedTuple):
    """Columns ``transformed`` go through ``transform``, whose parameters the network computes.

    The network is given the columns ``identity`` and then, if any, the ``context_features`` of the
    context: [B, I + C] to [B, T * P], laid out as the transform says. ``inverse``: the layer applies the
    transform's inverse on the way from data to noise.
    """

    identity: Tensor  # [I] int64
    transformed: Tensor  # [T] int64
    network: MLPWeights
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


class ElementwiseLayer(NamedTuple):
    """``y = x * exp(log_scale) + shift``, both [D]."""

    shift: Tensor
    log_scale: Tensor


Layer = CouplingLayer | AutoregressiveLayer | PermutationLayer | LinearLayer | ElementwiseLayer


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


def layer_features(layer: Layer) -> int:
    """How many columns the layer acts on."""
    if isinstance(layer, CouplingLayer):
        return len(layer.identity) + len(layer.transformed)
    return (layer.degrees[0] if isinstance(layer, AutoregressiveLayer) else layer[0]).shape[-1]


def check_layers(layers: Sequence[Layer], features: int) -> None:
    """Shapes, dtypes, devices and options of every layer of ``features`` columns."""
    for i, layer in enumerate(layers):
        _CHECK[type(layer)](f"layers[{i}]", layer, features)
    first = first_weight(layers)
    for i, layer in enumerate(layers):
        for tensor in layer_tensors(layer):
            if tensor.is_floating_point():
                check_same(f"layers[{i}]: a tensor", tensor, first, "the others", shape=False)


def _check_coupling(name: str, layer: CouplingLayer, features: int) -> None:
    _check_columns(f"{name}.identity, {name}.transformed", features, layer.identity, layer.transformed)
    check(len(layer.transformed) > 0, f"{name}.transformed", "at least one column", "none")
    check(layer.context_features >= 0, f"{name}.context_features", "at least 0", layer.context_features)
    width = len(layer.identity) + layer.context_features
    check(width > 0, f"{name}.network", "columns or context to read", "none")
    width = _check_network(f"{name}.network", layer.network, width)
    _check_parameters(layer.transform, len(layer.transformed), width)


def _check_autoregressive(name: str, layer: AutoregressiveLayer, features: int) -> None:
    network, count = layer.network, len(layer.network.weights)
    width = _check_network(f"{name}.network", network, features)
    _check_parameters(layer.transform, features, width)
    check(count <= MAX_LAYERS, f"{name}.network", f"at most {MAX_LAYERS} layers", count)
    check(len(layer.degrees) == count, f"{name}.degrees", f"{count} tensors", len(layer.degrees))
    for i, (degrees, weight) in enumerate(zip(layer.degrees, network.weights)):
        check_shape(f"{name}.degrees[{i}]", degrees, weight.shape[1:], "[units]")
    if network.residual:
        same = all(torch.equal(layer.degrees[i], layer.degrees[1]) for i in range(3, count, 2))
        check(same, f"{name}.degrees", "those of a block's units equal to what is added", "others")
    if layer.context_weight is not None:
        shape = len(network.weights[0]), layer.context_features
        check_shape(f"{name}.context_weight", layer.context_weight, shape, "[H_1, C]")


def _check_parameters(transform, features: int, count: int) -> None:
    """So many numbers for a sample must be the transform's parameters."""
    x = torch.empty(1, features, device="meta")
    apply_transform(transform, x, x.new_empty(1, count))


def _check_network(name: str, network: MLPWeights, width: int) -> int:
    """Checks a network that reads rows of this width; the width of its output."""
    count, least = len(network.weights), 2 if network.residual else 1
    check(count >= least, f"{name}.weights", f"at least {least} layers", count)
    check(not network.residual or count % 2 == 0, f"{name}.weights", "pairs between two layers", count)
    check(len(network.biases) == count, f"{name}.biases", f"{count} tensors", len(network.biases))
    check_choice(f"{name}.activation", network.activation, ACTIVATIONS)
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases)):
        check(weight.ndim == 2, f"{name}.weights[{i}]", "a matrix [out, in]", list(weight.shape))
        closes_block = network.residual and 0 < i < count - 1 and i % 2 == 0
        rows = len(network.weights[0]) if closes_block else len(weight)
        check_shape(f"{name}.weights[{i}]", weight, (rows, width), "[out, in]")
        check_shape(f"{name}.biases[{i}]", bias, weight.shape[:1], "[out]")
        width = len(weight)
    return width


def _check_columns(name: str, features: int, *columns: Tensor) -> None:
    found = torch.cat([c.detach().cpu() for c in columns])
    is_permutation = sorted(found.tolist()) == list(range(features))
    check(is_permutation, name, f"every column of 0 to {features - 1} once", found.tolist())


def _check_permutation(name: str, layer: PermutationLayer, features: int) -> None:
    _check_columns(f"{name}.index", features, layer.index)


def _check_linear(name: str, layer: LinearLayer, features: int) -> None:
    check_shape(f"{name}.weight", layer.weight, (features, features), "[D, D]")
    if layer.bias is not None:
        check_shape(f"{name}.bias", layer.bias, (features,), "[D]")
    check(layer.log_abs_det.numel() == 1, f"{name}.log_abs_det", "one number", list(layer.log_abs_det.shape))


def _check_elementwise(name: str, layer: ElementwiseLayer, features: int) -> None:
    check_shape(f"{name}.shift", layer.shift, (features,), "[D]")
    check_shape(f"{name}.log_scale", layer.log_scale, (features,), "[D]")


_CHECK = {
    CouplingLayer: _check_coupling,
    AutoregressiveLayer: _check_autoregressive,
    PermutationLayer: _check_permutation,
    LinearLayer: _check_linear,
    ElementwiseLayer: _check_elementwise,
}


def apply_layers(
    layers: Sequence[Layer], x: Tensor, context: Tensor | None = None, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The layers one after the other in PyTorch, or with ``inverse`` back: (y [B, D], log_abs_det [B])."""
    log_abs_det = x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))
    for layer in reversed(layers) if inverse else layers:
        x, added = _APPLY[type(layer)](layer, x, context, inverse)
        log_abs_det = log_abs_det + added
    return x, log_abs_det


def run_network(network: MLPWeights, x: Tensor) -> Tensor:
    """The perceptron of rows ``x`` [B, in]."""
    activation = ACTIVATIONS[network.activation]
    first, *others = zip(network.weights, network.biases)
    h = functional.linear(x, *first)
    if network.residual:
        *hidden, last = others
        for inner, outer in zip(hidden[::2], hidden[1::2]):
            h = h + functional.linear(activation(functional.linear(activation(h), *inner)), *outer)
        return functional.linear(h, *last)
    for layer in others:
        h = functional.linear(activation(h), *layer)
    return h


def _apply_coupling(layer: CouplingLayer, x, context, inverse):
    given = x[:, layer.identity]
    if layer.context_features:
        given = torch.cat([given, context], dim=1)
    transformed, log_abs_det = apply_transform(
        layer.transform,
        x[:, layer.transformed],
        run_network(layer.network, given),
        inverse=inverse != layer.inverse,
    )
    return x.index_copy(1, layer.transformed, transformed), log_abs_det


def _apply_autoregressive(layer: AutoregressiveLayer, x, context, inverse):
    weights, biases, activation, residual = layer.network
    make = MADEWeights.with_residual_blocks if residual else MADEWeights
    terms = None if layer.context_weight is None else [functional.linear(context, layer.context_weight)]
    function = made_inverse if inverse != layer.inverse else made_transform
    network = make(weights, biases, activation)
    return function(x, network, layer.degrees, transform=layer.transform, context=terms)


def _apply_permutation(layer: PermutationLayer, x, context, inverse):
    y = x.index_copy(1, layer.index, x) if inverse else x[:, layer.index]
    return y, x.new_zeros(())


def _apply_linear(layer: LinearLayer, x, context, inverse):
    if not inverse:
        return functional.linear(x, layer.weight, layer.bias), layer.log_abs_det
    shifted = x if layer.bias is None else x - layer.bias
    if layer.weight_inverse is not None:
        return functional.linear(shifted, layer.weight_inverse), -layer.log_abs_det
    return torch.linalg.solve(layer.weight, shifted.T).T, -layer.log_abs_det


def _apply_elementwise(layer: ElementwiseLayer, x, context, inverse):
    log_abs_det = layer.log_scale.sum()
    if inverse:
        return (x - layer.shift) * torch.exp(-layer.log_scale), -log_abs_det
    return x * torch.exp(layer.log_scale) + layer.shift, log_abs_det


_APPLY = {
    CouplingLayer: _apply_coupling,
    AutoregressiveLayer: _apply_autoregressive,
    PermutationLayer: _apply_permutation,
    LinearLayer: _apply_linear,
    ElementwiseLayer: _apply_elementwise,
}
