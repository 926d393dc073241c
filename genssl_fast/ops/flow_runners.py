"""What runs the layers of a flow: the native module, PyTorch, or CUDA graphs of it."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast._checks import check
from genssl_fast._library import native_module
from genssl_fast._packing import address, check_runs_here, contiguous, number
from genssl_fast._random import Stream, fold_seed, step_counter
from genssl_fast.ops.affine_coupling import affine_parameters, checked_options
from genssl_fast.ops.flow_layers import (
    CouplingLayer,
    ElementwiseLayer,
    Layer,
    LinearLayer,
    PermutationLayer,
    apply_layers,
    first_weight,
    layer_features,
)
from genssl_fast.ops.random import random_normal
from genssl_fast.ops.rational_quadratic_spline import checked_box
from genssl_fast.ops.transforms import AffineTransform

__all__ = ["LOG_ABS_DET", "LOG_PROB", "VALUE", "CompiledFlow", "EagerFlow", "Noise", "flow_runner"]

PRIOR = step_counter(Stream.PRIOR, 0)
MAX_GRAPHS = 16
# What a call is to compute, added up.
VALUE, LOG_ABS_DET, LOG_PROB = 1, 2, 4


@torch.no_grad()
def flow_runner(layers: list[Layer]) -> "CompiledFlow | EagerFlow":
    """What runs the layers best where their weights are."""
    layers = [_with_inverse(i, layer) for i, layer in enumerate(layers)]
    like = first_weight(layers)
    if like.device.type == "cuda":
        return CapturedFlow(layers, like)
    check_runs_here("flow", like)
    return EagerFlow(layers, like) if native_module is None else CompiledFlow(layers, like)


class Noise(NamedTuple):
    """Standard normal noise that is still to be drawn."""

    count: int
    seed: int | Tensor | None
    first_sample: int


class CompiledFlow:
    """Packed copies of the weights in the native module, and calls of it."""

    def __init__(self, layers: list[Layer], like: Tensor):
        self.like = like.detach()
        self.features = layer_features(layers[0])
        orders = _column_orders(layers, self.features)
        double = like.dtype == torch.float64
        native = native_module.FlowPlanDouble if double else native_module.FlowPlanFloat
        self.native = native(self.features, orders[-1])
        for layer, order in zip(layers, orders):
            _ADD[type(layer)](self.native, layer, order)

    def __call__(self, inverse: bool, x: Tensor | Noise, context: Tensor | None, batch: int, wanted: int):
        drawn = isinstance(x, Noise)
        seed = number(fold_seed(x.seed, self.like.device)) if drawn else 0
        new = self.like.new_empty
        y = new(batch, self.features) if wanted & VALUE else None
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

    def __init__(self, layers: list[Layer], like: Tensor):
        self.layers, self.like, self.features = layers, like.detach(), layer_features(layers[0])

    @torch.no_grad()
    def __call__(self, inverse: bool, x: Tensor | Noise, context: Tensor | None, batch: int, wanted: int):
        x = self.draw(x) if isinstance(x, Noise) else x
        return self.run(inverse, x, None if context is None else context.expand(batch, -1))

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

    def __init__(self, layers: list[Layer], like: Tensor):
        super().__init__(layers, like)
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


def _with_inverse(index: int, layer: Layer) -> Layer:
    """A linear layer with its inverse matrix."""
    if not isinstance(layer, LinearLayer) or layer.weight_inverse is not None:
        return layer
    inverse, info = torch.linalg.inv_ex(layer.weight.double())
    check(int(info) == 0, f"layers[{index}].weight", "an invertible matrix", "a singular one")
    return layer._replace(weight_inverse=inverse.to(layer.weight.dtype))


def _column_orders(layers: list[Layer], features: int) -> list[list[int]]:
    """Where the state keeps column i before each layer, and after the last: permutations move nothing."""
    order = list(range(features))
    orders = [order]
    for layer in layers:
        if isinstance(layer, PermutationLayer):
            order = _choose(order, layer.index)
        orders.append(order)
    return orders


def _addresses(layers: list[tuple[Tensor, Tensor]]) -> list[tuple[int, int, int, int]]:
    """Of each matrix and its bias, which the caller holds; rows and columns of the matrix."""
    return [(weight.data_ptr(), bias.data_ptr(), *weight.shape) for weight, bias in layers]


def _choose(order: list[int], columns: Tensor) -> list[int]:
    return [order[column] for column in columns.tolist()]


def _add_coupling(native, layer: CouplingLayer, order: list[int]) -> None:
    network, transform = layer.network, layer.transform
    weights, biases = map(contiguous, network.weights), map(contiguous, network.biases)
    *hidden, last = zip(weights, biases)
    if isinstance(transform, AffineTransform) and transform.layout not in ("interleaved", "shift"):
        rows = torch.arange(len(last[0]))[None]
        pairs = torch.stack(affine_parameters(rows, transform.layout), -1).flatten()
        last = tuple(tensor[pairs] for tensor in last)
    layers = [*hidden, last]
    common = (
        _choose(order, layer.identity), _choose(order, layer.transformed), layer.context_features,
        layer.inverse, (_addresses(layers), network.activation, network.residual),
    )  # fmt: skip
    add = _add_affine if isinstance(transform, AffineTransform) else _add_spline
    add(native, common, transform)


def _add_affine(native, common: tuple, transform: AffineTransform) -> None:
    given = {"limit": transform.limit, "offset": transform.offset, "min_scale": transform.min_scale}
    options = checked_options(transform.clamp, **given)
    native.add_affine(*common, transform.clamp, *options, transform.order == "shift_scale")


def _add_spline(native, common: tuple, transform) -> None:
    bounds = checked_box(transform.bound, transform.tails)
    minima = (transform.min_bin_width, transform.min_bin_height, transform.min_derivative)
    zuko = transform.parameterization == "zuko"
    native.add_spline(*common, transform.bins, transform.tails, zuko, bounds, minima, transform.slope)


def _add_permutation(native, layer: PermutationLayer, order: list[int]) -> None:
    pass


def _add_linear(native, layer: LinearLayer, order: list[int]) -> None:
    zeros = layer.weight.new_zeros(len(order))
    bias = zeros if layer.bias is None else contiguous(layer.bias)
    forward = [(contiguous(layer.weight), bias)]
    inverse = [(contiguous(layer.weight_inverse), zeros)]
    matrices = ((_addresses(layers), "relu", False) for layers in (forward, inverse))
    native.add_linear(order, *matrices, bias.data_ptr(), float(layer.log_abs_det))


def _add_elementwise(native, layer: ElementwiseLayer, order: list[int]) -> None:
    shift, log_scale = contiguous(layer.shift), contiguous(layer.log_scale)
    log_abs_det = float(log_scale.double().sum())
    native.add_elementwise(order, shift.data_ptr(), log_scale.data_ptr(), log_abs_det)


_ADD = {
    CouplingLayer: _add_coupling,
    PermutationLayer: _add_permutation,
    LinearLayer: _add_linear,
    ElementwiseLayer: _add_elementwise,
}
