"""The layers of a flow that are given as data, in PyTorch."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

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
)
from genssl_fast.ops.made import MADEWeights, made_inverse, made_transform
from genssl_fast.ops.transforms import apply_transform, pixel_parameters
from genssl_fast.reference.causal import ACTIVATIONS

__all__ = ["apply_layers"]


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


def run_conv_net(network: ConvNetWeights, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The convolutions of images ``x`` [B, in, H, W] and of the context [B, C]."""
    activation = ACTIVATIONS[network.activation]
    first, *others = zip(network.weights, network.biases)
    h = functional.conv2d(x, *first, padding="same")
    if network.context_weight is not None:
        h = h + functional.linear(context, network.context_weight)[:, :, None, None]
    for layer in others:
        h = functional.conv2d(activation(h), *layer, padding="same")
    return h


def _apply_coupling(layer: CouplingLayer, x, context, inverse):
    transformed, log_abs_det = apply_transform(
        layer.transform,
        x[:, layer.transformed],
        _coupling_parameters(layer, x[:, layer.identity], context),
        inverse=inverse != layer.inverse,
    )
    return x.index_copy(1, layer.transformed, transformed), log_abs_det


def _coupling_parameters(layer: CouplingLayer, given: Tensor, context: Tensor | None) -> Tensor:
    network = layer.network
    if isinstance(network, ConvNetWeights):
        output = run_conv_net(network, given.unflatten(1, (-1, *network.size)), context)
        return pixel_parameters(layer.transform, output, len(layer.transformed) // prod(network.size))
    return run_network(network, torch.cat([given, context], 1) if layer.context_features else given)


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


def _apply_channel_linear(layer: ChannelLinearLayer, x, context, inverse):
    pixels = x.unflatten(1, (len(layer.bias), -1))
    if not inverse:
        y = layer.weight @ pixels + layer.bias[:, None]
    elif layer.weight_inverse is not None:
        y = layer.weight_inverse @ pixels + layer.inverse_bias[:, None]
    else:
        y = torch.linalg.solve(layer.weight, pixels - layer.bias[:, None])
    log_abs_det = prod(layer.size) * layer.log_abs_det
    return y.flatten(1), -log_abs_det if inverse else log_abs_det


def _apply_partial(layer: PartialLayer, x, context, inverse):
    part, log_abs_det = apply_layers(layer.layers, x[:, layer.columns], context, inverse=inverse)
    return x.index_copy(1, layer.columns, part), log_abs_det


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
    ChannelLinearLayer: _apply_channel_linear,
    ElementwiseLayer: _apply_elementwise,
    PartialLayer: _apply_partial,
}
