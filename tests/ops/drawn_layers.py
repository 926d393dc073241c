"""Layers of flows with random weights, and how a plan of them is compared."""

import math
from functools import partial

import torch

from genssl_fast.ops.flow_eager import apply_layers
from genssl_fast.ops.flow_layers import (
    AutoregressiveLayer,
    ChannelLinearLayer,
    ConvNetWeights,
    CouplingLayer,
    ElementwiseLayer,
    LinearLayer,
    MLPWeights,
    PartialLayer,
    PermutationLayer,
)
from genssl_fast.ops.flow_plan import FlowPlan
from genssl_fast.ops.made import made_degrees
from genssl_fast.ops.transforms import AffineTransform, SplineTransform, num_parameters
from tests.battery import assert_close_enough

__all__ = [
    "TRANSFORMS",
    "Draw",
    "assert_agrees",
    "assert_same_bits_in_every_split",
    "assert_same_bits_on_every_number_of_threads",
    "batch_of",
    "image_layers",
    "mixed_layers",
    "moved",
]

TRANSFORMS = {
    "additive": AffineTransform(layout="shift"),
    "tanh, scale first": AffineTransform("tanh", layout="cat_scale_first"),
    "sigmoid, interleaved": AffineTransform("sigmoid", layout="interleaved"),
    "softplus, interleaved scale first": AffineTransform("softplus", layout="interleaved_scale_first"),
    "zuko": AffineTransform("zuko", layout="cat"),
    "zuko, interleaved": AffineTransform("zuko", layout="interleaved"),
    "shift first": AffineTransform("atan", limit=1.5, order="shift_scale"),
    "reciprocal": AffineTransform("reciprocal_sigmoid"),
    "spline": SplineTransform(bins=5, bound=3.0),
    "circular spline": SplineTransform(bins=4, tails="circular", bound=math.pi),
    "free spline": SplineTransform(bins=3, tails=None, bound=(-5.0, 6.0, -4.0, 7.0)),
    "zuko spline": SplineTransform(bins=17, bound=5.0, parameterization="zuko"),
}


class Draw:
    """Random tensors of a dtype, the same numbers in all of them."""

    def __init__(self, dtype=torch.float64, seed=0):
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def permutation(self, count):
        return torch.randperm(count, generator=self.generator)

    def network(self, *widths, activation="relu", residual=False):
        pairs = list(zip(widths[1:], widths))
        weights = tuple(0.6 * self.normal(rows, columns) / columns**0.5 for rows, columns in pairs)
        biases = tuple(0.3 * self.normal(rows) for rows, _ in pairs)
        return MLPWeights(weights, biases, activation, residual)

    def coupling(self, features, transform, hidden=(20, 33), context=0, inverse=False, **options):
        columns = self.permutation(features)
        given, moved = columns[: features // 2], columns[features // 2 :]
        outputs = len(moved) * num_parameters(transform)
        network = self.network(len(given) + context, *hidden, outputs, **options)
        return CouplingLayer(given, moved, network, transform, inverse, context)

    def autoregressive(self, features, transform, hidden=(20, 33), context=0, inverse=False, **options):
        degrees = made_degrees(features, hidden, 1 + self.permutation(features))
        network = self.network(features, *hidden, features * num_parameters(transform), **options)
        weight = self.normal(hidden[0], context) if context else None
        return AutoregressiveLayer(degrees, network, transform, inverse, weight)

    def conv_coupling(self, shape, transform, kernels=(3, 1, 3), hidden=6, context=0, **options):
        """Of images [C, H, W]; kernels: sides."""
        channels, *size = shape
        columns = torch.arange(channels * size[0] * size[1]).view(channels, -1)[self.permutation(channels)]
        given, moved = columns[: channels // 2], columns[channels // 2 :]
        widths = (len(given), *(hidden,) * (len(kernels) - 1), len(moved) * num_parameters(transform))
        network = self.conv_net(widths, kernels, size, context, **options)
        return CouplingLayer(given.flatten(), moved.flatten(), network, transform, False, context)

    def conv_net(self, widths, kernels, size, context=0, activation="relu"):
        sizes = list(zip(widths[1:], widths, kernels))
        weights = tuple(0.6 * self.normal(o, i, k, k) / i**0.5 / k for o, i, k in sizes)
        biases = tuple(0.3 * self.normal(o) for o, _, _ in sizes)
        context_weight = self.normal(widths[1], context) if context else None
        return ConvNetWeights(weights, biases, tuple(size), activation, context_weight)

    def channel_linear(self, shape):
        channels, *size = shape
        weight = torch.eye(channels, dtype=self.dtype) + 0.2 * self.normal(channels, channels)
        return ChannelLinearLayer(weight, self.normal(channels), torch.linalg.slogdet(weight)[1], tuple(size))

    def linear(self, features):
        weight = torch.eye(features, dtype=self.dtype) + 0.2 * self.normal(features, features)
        return LinearLayer(weight, self.normal(features), torch.linalg.slogdet(weight)[1])

    def elementwise(self, features):
        return ElementwiseLayer(self.normal(features), 0.3 * self.normal(features))


def mixed_layers(dtype=torch.float64, features=5, context=2):
    """Every kind of layer."""
    draw = Draw(dtype)
    residual = {"hidden": (20, 37, 20), "activation": "silu", "residual": True}
    return [
        draw.coupling(features, TRANSFORMS["spline"], context=context),
        PermutationLayer(draw.permutation(features)),
        draw.linear(features),
        draw.coupling(features, TRANSFORMS["tanh, scale first"], context=context, **residual),
        draw.elementwise(features),
        PermutationLayer(draw.permutation(features)),
        draw.autoregressive(features, TRANSFORMS["spline"], context=context, inverse=True),
        draw.coupling(features, TRANSFORMS["sigmoid, interleaved"], context=context, inverse=True),
        draw.autoregressive(features, TRANSFORMS["zuko, interleaved"], context=context),
    ]


def image_layers(shape, dtype=torch.float64, context=2):
    """Every kind of layer of images, and layers of some columns."""
    draw, count = Draw(dtype), math.prod(shape)
    half = draw.permutation(count)[: count // 2]
    part = PartialLayer(half, (draw.elementwise(len(half)), PermutationLayer(draw.permutation(len(half)))))
    return [
        draw.channel_linear(shape),
        draw.conv_coupling(shape, TRANSFORMS["sigmoid, interleaved"], context=context, activation="elu"),
        PermutationLayer(draw.permutation(count)),
        part,
        draw.conv_coupling(shape, TRANSFORMS["spline"], kernels=(5, 3)),
        draw.channel_linear(shape),
        PartialLayer(half.flip(0), (draw.coupling(len(half), TRANSFORMS["zuko"]),)),
    ]


def batch_of(dtype, size, features=5, context=2):
    draw = Draw(dtype, seed=1)
    return draw.normal(size, features), draw.normal(size, context) if context else None


def moved(layers, target):
    """The same layers in another dtype or on another device."""

    def converted(value):
        if isinstance(value, torch.Tensor):
            keeps = isinstance(target, torch.dtype) and not value.is_floating_point()
            return value if keeps else value.to(target)
        if isinstance(value, tuple):
            items = list(map(converted, value))
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    return [converted(layer) for layer in layers]


def assert_agrees(layers, x, context, inverse):
    """The plan within the error contract of the layers in fp64."""
    plan = FlowPlan(layers)
    found = plan.inverse(x, context) if inverse else plan.transform(x, context)
    run = partial(apply_layers, inverse=inverse)
    plain = run(layers, x, context)
    exact = run(moved(layers, torch.float64), x.double(), None if context is None else context.double())
    if x.dtype == torch.float64:
        return torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    for name, *outputs in zip(("value", "log_abs_det"), found, plain, exact):
        assert_close_enough(*outputs, 2, name)


def assert_same_bits_in_every_split(plan, x, context, splits):
    """Of values, densities and samples; splits: (first, count)."""
    whole = (*plan.transform(x, context), plan.log_prob(x, context))
    samples = plan.sample_and_log_prob(len(x), seed=5, context=context)
    for first, count in splits:
        part = slice(first, first + count)
        found = (*plan.transform(x[part], context[part]), plan.log_prob(x[part], context[part]))
        drawn = plan.sample_and_log_prob(count, seed=5, first_sample=first, context=context[part])
        for ours, expected in zip((*found, *drawn), (*whole, *samples)):
            assert torch.equal(ours, expected[part]), (first, count)


def assert_same_bits_on_every_number_of_threads(plan, x, context):
    threads = torch.get_num_threads()
    expected = plan.transform(x, context)
    try:
        for count in (2, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, plan.transform(x, context), expected))
    finally:
        torch.set_num_threads(threads)
