"""What runs the layers of a flow: the native module, PyTorch, or CUDA graphs of it."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast._checks import check
from genssl_fast._library import native_module
from genssl_fast._packing import address, check_runs_here, contiguous, number
from genssl_fast._random import Stream, fold_seed, step_counter
from genssl_fast.ops.affine_coupling import affine_parameters, checked_options
from genssl_fast.ops.flow_eager import apply_layers
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
from genssl_fast.ops.random import random_normal
from genssl_fast.ops.rational_quadratic_spline import checked_box
from genssl_fast.ops.transforms import AffineTransform

__all__ = ["LOG_ABS_DET", "LOG_PROB", "VALUE", "CompiledFlow", "EagerFlow", "Noise", "Results", "flow_runner"]

PRIOR = step_counter(Stream.PRIOR, 0)
MAX_GRAPHS = 16
NO_NETWORK = MLPWeights((), ())
# What a call is to compute, added up.
VALUE, LOG_ABS_DET, LOG_PROB = 1, 2, 4
# Value [B, *shape], log-determinant [B] and log-density [B]; those not wanted may be None.
Results = tuple[Tensor | None, Tensor | None, Tensor | None]


@torch.no_grad()
def flow_runner(layers: list[Layer], shape: tuple[int, ...]) -> "CompiledFlow | EagerFlow":
    """What runs the layers best where their weights are, for samples of this shape."""
    layers = _with_inverses("layers", layers)
    like = first_weight(layers)
    if like.device.type == "cuda":
        return CapturedFlow(layers, like, shape)
    check_runs_here("flow", like)
    kind = EagerFlow if native_module is None else CompiledFlow
    return kind(layers, like, shape)


class Noise(NamedTuple):
    """Standard normal noise that is still to be drawn."""

    count: int
    seed: int | Tensor | None
    first_sample: int


class CompiledFlow:
    """Packed copies of the weights in the native module, and calls of it."""

    def __init__(self, layers: list[Layer], like: Tensor, shape: tuple[int, ...]):
        self.like, self.shape = like.detach(), shape
        features = math.prod(shape)
        double = like.dtype == torch.float64
        self.native = (native_module.FlowPlanDouble if double else native_module.FlowPlanFloat)(features)
        self.native.set_columns(_add_layers(self.native, layers, list(range(features))))

    def __call__(
        self, inverse: bool, x: Tensor | Noise, context: Tensor | None, batch: int, wanted: int
    ) -> Results:
        drawn = isinstance(x, Noise)
        seed = number(fold_seed(x.seed, self.like.device)) if drawn else 0
        new = self.like.new_empty
        y = new((batch, *self.shape)) if wanted & VALUE else None
        log_abs_det = new(batch) if wanted & LOG_ABS_DET else None
        log_prob = new(batch) if wanted & LOG_PROB else None
        self.native.run(
            inverse, batch, 0 if drawn else x.data_ptr(), address(context),
            0 if context is None or context.ndim == 1 else context.shape[1],
            seed, PRIOR, x.first_sample if drawn else 0, address(y), address(log_abs_det), address(log_prob),
        )  # fmt: skip
        return y, log_abs_det, log_prob


class EagerFlow:
    """The layers in PyTorch."""

    def __init__(self, layers: list[Layer], like: Tensor, shape: tuple[int, ...]):
        self.layers, self.like, self.shape = layers, like.detach(), shape
        self.features = math.prod(shape)

    @torch.no_grad()
    def __call__(
        self, inverse: bool, x: Tensor | Noise, context: Tensor | None, batch: int, wanted: int
    ) -> Results:
        x = self.draw(x) if isinstance(x, Noise) else x.reshape(batch, self.features)
        context = None if context is None else context.expand(batch, -1)
        y, log_abs_det, log_prob = self.run(inverse, x, context)
        return y.view(batch, *self.shape), log_abs_det, log_prob

    def draw(self, noise: Noise) -> Tensor:
        return random_normal(
            (noise.count, self.features), seed=noise.seed, step=PRIOR, first_sample=noise.first_sample,
            dtype=self.like.dtype, device=self.like.device,
        )  # fmt: skip

    def run(self, inverse: bool, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        y, log_abs_det = apply_layers(self.layers, x, context, inverse=inverse)
        z = (x if inverse else y).to(log_abs_det.dtype)
        base = -0.5 * (z.square().sum(1) + self.features * math.log(2 * math.pi))
        return y, log_abs_det, base - log_abs_det if inverse else base + log_abs_det


class CapturedFlow(EagerFlow):
    """The layers in PyTorch as CUDA graphs, one for each direction and batch size."""

    def __init__(self, layers: list[Layer], like: Tensor, shape: tuple[int, ...]):
        super().__init__(layers, like, shape)
        self.graphs: dict[tuple, _Graph] = {}

    def run(self, inverse: bool, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if len(x) == 0 or torch.cuda.is_current_stream_capturing():
            return super().run(inverse, x, context)
        key = inverse, len(x)
        if key not in self.graphs:
            if len(self.graphs) == MAX_GRAPHS:
                del self.graphs[next(iter(self.graphs))]
            self.graphs[key] = _Graph(partial(super().run, inverse), x, context)
        return self.graphs[key].replay(x, context)


class _Graph:
    """A function of tensors as a CUDA graph, with its own inputs and outputs."""

    def __init__(self, function, *inputs: Tensor | None):
        self.inputs = [None if tensor is None else tensor.clone() for tensor in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*self.inputs)  # compiles kernels and makes handles, which a capture cannot
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def replay(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        for own, given in zip(self.inputs, inputs):
            if own is not None:
                own.copy_(given)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def _with_inverses(name: str, layers: Sequence[Layer]) -> list[Layer]:
    """Linear layers with their inverse matrices."""
    return [_with_inverse(f"{name}[{i}]", layer) for i, layer in enumerate(layers)]


def _with_inverse(name: str, layer: Layer) -> Layer:
    if isinstance(layer, PartialLayer):
        return layer._replace(layers=tuple(_with_inverses(f"{name}.layers", layer.layers)))
    if not isinstance(layer, LinearLayer | ChannelLinearLayer) or layer.weight_inverse is not None:
        return layer
    inverse, info = torch.linalg.inv_ex(layer.weight.double())
    check(int(info) == 0, f"{name}.weight", "an invertible matrix", "a singular one")
    dtype = layer.weight.dtype
    if isinstance(layer, LinearLayer):
        return layer._replace(weight_inverse=inverse.to(dtype))
    bias = -inverse @ layer.bias.double()
    return layer._replace(weight_inverse=inverse.to(dtype), inverse_bias=bias.to(dtype))


def _add_layers(native, layers: Sequence[Layer], order: list[int]) -> list[int]:
    """Adds layers whose column i the state keeps at ``order[i]``; where it keeps those of the result.

    Permutations move nothing.
    """
    for layer in layers:
        if isinstance(layer, PermutationLayer):
            order = _choose(order, layer.index)
        elif isinstance(layer, PartialLayer):
            part = _add_layers(native, layer.layers, _choose(order, layer.columns))
            moved = dict(zip(layer.columns.tolist(), part))
            order = [moved.get(column, place) for column, place in enumerate(order)]
        else:
            _ADD[type(layer)](native, layer, order)
    return order


def _addresses(network: MLPWeights) -> tuple[list[tuple[int, int, int, int]], str, bool]:
    """Of each contiguous matrix and its bias, which the caller holds, with the matrix' rows and columns."""
    layers = [(w.data_ptr(), b.data_ptr(), *w.shape) for w, b in zip(network.weights, network.biases)]
    return layers, network.activation, network.residual


def _conv_addresses(network: ConvNetWeights) -> tuple[list[tuple[int, int, int, int, int]], str, int, int]:
    """Of each contiguous layer's kernels and bias, with its channels out and in and its kernels' side."""
    layers = [(w.data_ptr(), b.data_ptr(), *w.shape[:3]) for w, b in zip(network.weights, network.biases)]
    return layers, network.activation, *network.size


def _contiguous(network: MLPWeights | ConvNetWeights) -> MLPWeights | ConvNetWeights:
    weights, biases = (tuple(map(contiguous, tensors)) for tensors in network[:2])
    return network._replace(weights=weights, biases=biases)


def _with_last_rows(network: MLPWeights | ConvNetWeights, rows: Tensor) -> MLPWeights | ConvNetWeights:
    """The network with its outputs in another order."""
    weights, biases = ((*tensors[:-1], tensors[-1][rows]) for tensors in network[:2])
    return network._replace(weights=weights, biases=biases)


def _in_pairs(layer: CouplingLayer | AutoregressiveLayer) -> CouplingLayer | AutoregressiveLayer:
    """The layer with shift and log-scale of an element together."""
    transform = layer.transform
    if not isinstance(transform, AffineTransform) or transform.layout in ("interleaved", "shift"):
        return layer
    rows = torch.arange(len(layer.network.biases[-1]))[None]
    pairs = torch.stack(affine_parameters(rows, transform.layout), -1).flatten()
    return layer._replace(
        network=_with_last_rows(layer.network, pairs), transform=transform._replace(layout="interleaved")
    )


def _parameter_by_parameter(
    network: MLPWeights | ConvNetWeights, elements: int
) -> MLPWeights | ConvNetWeights:
    """Outputs [P, elements] instead of [elements, P]."""
    rows = torch.arange(len(network.biases[-1])).view(elements, -1)
    return _with_last_rows(network, rows.T.flatten())


def _choose(order: list[int], columns: Tensor) -> list[int]:
    return [order[column] for column in columns.tolist()]


def _add_coupling(native, layer: CouplingLayer, order: list[int]) -> None:
    layer = _in_pairs(layer)
    transform, is_conv_net = layer.transform, isinstance(layer.network, ConvNetWeights)
    pixels = math.prod(layer.network.size) if is_conv_net else 1
    network = _contiguous(_parameter_by_parameter(layer.network, len(layer.transformed) // pixels))
    common = (
        _choose(order, layer.identity), _choose(order, layer.transformed), layer.context_features,
        layer.inverse, _addresses(NO_NETWORK if is_conv_net else network),
    )  # fmt: skip
    add = _add_affine if isinstance(transform, AffineTransform) else _add_spline
    add(native, common, transform)
    if is_conv_net:
        _set_convolutions(native, network)


def _set_convolutions(native, network: ConvNetWeights) -> None:
    context = NO_NETWORK
    if network.context_weight is not None:
        context = MLPWeights((network.context_weight,), (torch.zeros_like(network.biases[0]),))
    context = _contiguous(context)
    native.set_convolutions(_conv_addresses(network), _addresses(context))


def _add_autoregressive(native, layer: AutoregressiveLayer, order: list[int]) -> None:
    """A coupling that reads and transforms every column, with what its inverse needs."""
    layer = _in_pairs(layer)
    columns = torch.arange(len(order))
    masked = _masked_network(layer)
    _add_coupling(
        native,
        CouplingLayer(columns, columns, masked, layer.transform, layer.inverse, layer.context_features),
        order,
    )
    network, context = _contiguous(layer.network), NO_NETWORK
    if layer.context_weight is not None:
        context = _contiguous(MLPWeights((layer.context_weight,), network.biases[:1]))
    degrees = [units.tolist() for units in layer.degrees]
    native.add_masked_inverse(degrees, _addresses(network), _addresses(context))


def _masked_network(layer: AutoregressiveLayer) -> MLPWeights:
    """The network with its masks applied; it reads the columns and then the context."""
    network, degrees = layer.network, layer.degrees
    parameters = len(network.biases[-1]) // len(degrees[0])
    rows = (*degrees[1:], degrees[0].repeat_interleave(parameters) - 1)
    masked = [
        torch.where(units[:, None] >= given, weight, 0.0)
        for weight, units, given in zip(network.weights, rows, degrees)
    ]
    if layer.context_weight is not None:
        masked[0] = torch.cat([masked[0], layer.context_weight], 1)
    return network._replace(weights=tuple(masked))


def _add_affine(native, common: tuple, transform: AffineTransform) -> None:
    given = {"limit": transform.limit, "offset": transform.offset, "min_scale": transform.min_scale}
    options = checked_options(transform.clamp, **given)
    clamp = "additive" if transform.layout == "shift" else transform.clamp
    native.add_affine(*common, clamp, *options, transform.order == "shift_scale")


def _add_spline(native, common: tuple, transform) -> None:
    bounds = checked_box(transform.bound, transform.tails)
    minima = (transform.min_bin_width, transform.min_bin_height, transform.min_derivative)
    zuko = transform.parameterization == "zuko"
    native.add_spline(*common, transform.bins, transform.tails, zuko, bounds, minima, transform.slope)


def _add_linear(native, layer: LinearLayer, order: list[int]) -> None:
    zeros = layer.weight.new_zeros(len(order))
    bias = zeros if layer.bias is None else contiguous(layer.bias)
    forward = _contiguous(MLPWeights((layer.weight,), (bias,)))
    inverse = _contiguous(MLPWeights((layer.weight_inverse,), (zeros,)))
    native.add_linear(
        order, _addresses(forward), _addresses(inverse), bias.data_ptr(), float(layer.log_abs_det)
    )


def _add_channel_linear(native, layer: ChannelLinearLayer, order: list[int]) -> None:
    matrix, inverse = (
        _contiguous(ConvNetWeights((weight[:, :, None, None],), (bias,), layer.size))
        for weight, bias in ((layer.weight, layer.bias), (layer.weight_inverse, layer.inverse_bias))
    )
    log_abs_det = float(layer.log_abs_det) * math.prod(layer.size)
    native.add_channel_linear(order, _conv_addresses(matrix), _conv_addresses(inverse), log_abs_det)


def _add_elementwise(native, layer: ElementwiseLayer, order: list[int]) -> None:
    shift, log_scale = contiguous(layer.shift), contiguous(layer.log_scale)
    log_abs_det = float(log_scale.double().sum())
    native.add_elementwise(order, shift.data_ptr(), log_scale.data_ptr(), log_abs_det)


_ADD = {
    CouplingLayer: _add_coupling,
    AutoregressiveLayer: _add_autoregressive,
    LinearLayer: _add_linear,
    ChannelLinearLayer: _add_channel_linear,
    ElementwiseLayer: _add_elementwise,
}
