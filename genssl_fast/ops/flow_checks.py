"""Checks of the layers of a flow that are given as data."""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from genssl_fast._checks import check, check_choice, check_dtype, check_same, check_shape
from genssl_fast.ops.flow_layers import (
    AutoregressiveLayer,
    ChannelLinearLayer,
    ConvNetWeights,
    CouplingLayer,
    ElementwiseLayer,
    Layer,
    LinearLayer,
    MLPWeights,
    PartialLayer,
    PermutationLayer,
    first_weight,
)
from genssl_fast.ops.made import MAX_LAYERS
from genssl_fast.ops.transforms import apply_transform
from genssl_fast.reference.causal import ACTIVATIONS

__all__ = ["check_kinds", "check_layers"]

KERNEL_SIDES = (1, 3, 5, 7)
# Fields whose tensors are int64; all others have one floating dtype.
INDICES = {"identity", "transformed", "degrees", "index", "columns"}


def check_layers(layers: Sequence[Layer], features: int) -> None:
    """Kinds, shapes, dtypes, devices and options of every layer of ``features`` columns."""
    check_kinds("layers", layers)
    first = first_weight(layers)
    for i, layer in enumerate(layers):
        for name, tensor in _named_tensors(f"layers[{i}]", layer):
            if name.split(".")[-1].split("[")[0] in INDICES:
                check_dtype(name, tensor, (torch.int64,))
            else:
                check_same(name, tensor, first, "the others", shape=False)
    _check_sequence("layers", layers, features)


def _named_tensors(name: str, part) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a description, and where it lies."""
    if isinstance(part, Tensor):
        yield name, part
    elif hasattr(part, "_fields"):
        for field, value in zip(part._fields, part):
            yield from _named_tensors(f"{name}.{field}", value)
    elif isinstance(part, tuple | list):
        for i, value in enumerate(part):
            yield from _named_tensors(f"{name}[{i}]", value)


def check_kinds(name: str, layers: Sequence) -> None:
    """Layers as data, and nothing else."""
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"{name}[{i}]: expected a layer description, got {type(layer).__name__}")


def _check_sequence(name: str, layers: Sequence[Layer], features: int) -> None:
    check_kinds(name, layers)
    for i, layer in enumerate(layers):
        _CHECK[type(layer)](f"{name}[{i}]", layer, features)


def _check_coupling(name: str, layer: CouplingLayer, features: int) -> None:
    _check_columns(f"{name}.identity, {name}.transformed", features, layer.identity, layer.transformed)
    check(len(layer.transformed) > 0, f"{name}.transformed", "at least one column", "none")
    check(layer.context_features >= 0, f"{name}.context_features", "at least 0", layer.context_features)
    if isinstance(layer.network, ConvNetWeights):
        width = _check_conv_net(f"{name}.network", layer)
    else:
        width = len(layer.identity) + layer.context_features
        check(width > 0, f"{name}.network", "columns or context to read", "none")
        width = _check_network(f"{name}.network", layer.network, width)
    _check_parameters(layer.transform, len(layer.transformed), width)


def _check_conv_net(name: str, layer: CouplingLayer) -> int:
    """Checks the convolutions of a coupling; how many numbers they give."""
    weights, biases, size, activation, context_weight = layer.network
    check(len(size) == 2 and min(size) >= 1, f"{name}.size", "(H, W) of at least 1", size)
    pixels, count = prod(size), len(weights)
    for columns in ("identity", "transformed"):
        number = len(getattr(layer, columns))
        whole = number > 0 and number % pixels == 0
        check(whole, f"{name}: {columns}", f"channels of {pixels} columns", f"{number} columns")
    check(count >= 1, f"{name}.weights", "at least 1 layer", count)
    check(len(biases) == count, f"{name}.biases", f"{count} tensors", len(biases))
    check_choice(f"{name}.activation", activation, ACTIVATIONS)
    channels = len(layer.identity) // pixels
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        check(weight.ndim == 4, f"{name}.weights[{i}]", "kernels [out, in, K, K]", list(weight.shape))
        side = weight.shape[2]
        check(side in KERNEL_SIDES, f"{name}.weights[{i}]", f"K of {KERNEL_SIDES}", side)
        check_shape(f"{name}.weights[{i}]", weight, (len(weight), channels, side, side), "[out, in, K, K]")
        check_shape(f"{name}.biases[{i}]", bias, weight.shape[:1], "[out]")
        channels = len(weight)
    features = layer.context_features
    has_weight = context_weight is not None
    check(has_weight == (features > 0), f"{name}.context_weight", f"one for {features} features", has_weight)
    if has_weight:
        check_shape(f"{name}.context_weight", context_weight, (len(weights[0]), features), "[out, C]")
    return channels * pixels


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
    if layer.weight_inverse is not None:
        check_shape(f"{name}.weight_inverse", layer.weight_inverse, (features, features), "[D, D]")
    check(layer.log_abs_det.numel() == 1, f"{name}.log_abs_det", "one number", list(layer.log_abs_det.shape))


def _check_channel_linear(name: str, layer: ChannelLinearLayer, features: int) -> None:
    channels = len(layer.bias)
    check_shape(f"{name}.weight", layer.weight, (channels, channels), "[C, C]")
    given = layer.weight_inverse is not None
    check(given == (layer.inverse_bias is not None), f"{name}.inverse_bias", "one with weight_inverse", given)
    if given:
        check_shape(f"{name}.weight_inverse", layer.weight_inverse, (channels, channels), "[C, C]")
        check_shape(f"{name}.inverse_bias", layer.inverse_bias, (channels,), "[C]")
    check_shape(f"{name}.bias", layer.bias, (channels,), "[C]")
    check(channels * prod(layer.size) == features, f"{name}.size", f"{features} columns in all", layer.size)
    check(layer.log_abs_det.numel() == 1, f"{name}.log_abs_det", "one number", list(layer.log_abs_det.shape))


def _check_partial(name: str, layer: PartialLayer, features: int) -> None:
    columns = layer.columns.tolist()
    are_columns = len(set(columns)) == len(columns) > 0 and 0 <= min(columns) <= max(columns) < features
    check(are_columns, f"{name}.columns", f"different columns of 0 to {features - 1}", columns)
    check(len(layer.layers) > 0, f"{name}.layers", "at least one layer", 0)
    _check_sequence(f"{name}.layers", layer.layers, len(columns))


def _check_elementwise(name: str, layer: ElementwiseLayer, features: int) -> None:
    check_shape(f"{name}.shift", layer.shift, (features,), "[D]")
    check_shape(f"{name}.log_scale", layer.log_scale, (features,), "[D]")


_CHECK = {
    CouplingLayer: _check_coupling,
    AutoregressiveLayer: _check_autoregressive,
    PermutationLayer: _check_permutation,
    LinearLayer: _check_linear,
    ChannelLinearLayer: _check_channel_linear,
    ElementwiseLayer: _check_elementwise,
    PartialLayer: _check_partial,
}
