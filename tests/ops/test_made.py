"""MADE and its inverse: the battery, peers' networks, degrees, bits that do not depend on the batch."""

import itertools
import math

import numpy as np
import pytest
import torch

from genssl_fast import reference
from genssl_fast._library import INSTRUCTION_SETS, instruction_set
from genssl_fast.ops.made import (
    MADEWeights,
    _bits,
    _check_network,
    _transform_options,
    made,
    made_degrees,
    made_inverse,
    made_transform,
    raw_made_inverse,
)
from genssl_fast.ops.transforms import AffineTransform, SplineTransform, num_parameters
from genssl_fast.reference.causal import ACTIVATIONS
from tests.battery import Battery, Case, assert_close_enough, ulp
from tests.ops.instruction_sets import outputs_under

needs_kernels = pytest.mark.skipif(instruction_set() is None, reason="compiled kernels are not built")
AFFINE = AffineTransform(clamp="tanh", layout="interleaved")
NFLOWS_AFFINE = AffineTransform(clamp="softplus", layout="interleaved_scale_first")
SPLINE = SplineTransform(bins=4, bound=3.0)
TRANSFORMS = {
    "affine": AFFINE,
    "scale first": NFLOWS_AFFINE,
    "shift first": AffineTransform(clamp="sigmoid", layout="interleaved", order="shift_scale"),
    "additive": AffineTransform(layout="shift"),
    "spline": SPLINE,
    "circular": SplineTransform(bins=3, bound=3.0, tails="circular", parameterization="zuko"),
}


ANY_DEGREES = {
    "ties": [1, 1, 4, 4, 4, 2, 2],
    "gaps": [90, -3, 7, 0, 12, 40, 1000],
    "unused": [3, 2, 7, 6, 5, 4, 1],
}


def draw(sizes, dtype=torch.float32, generator=None, scale=0.5):
    """Weights and biases of layers between these sizes."""
    generator = generator or torch.Generator().manual_seed(0)
    pairs = list(itertools.pairwise(sizes))
    weights = [torch.randn(n, k, generator=generator) * (scale / max(k, 1) ** 0.5) for k, n in pairs]
    biases = [torch.randn(n, generator=generator) * scale for _, n in pairs]
    return [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]


class Network:
    """One architecture as functions of plain tensors: x or y, a context term, weights and biases."""

    def __init__(
        self, dim, hidden, transform, *, residual=False, activation="tanh", order=None, scale=0.5,
        context=True, gated=None,
    ):  # fmt: skip
        self.sizes = [dim, *hidden, dim * num_parameters(transform)]
        self.transform, self.residual, self.activation = transform, residual, activation
        self.degrees = made_degrees(dim, hidden, order)
        self.scale, self.has_context, self.gated = scale, context, gated

    def inputs(self, dtype, size, generator):
        weights, biases = draw(self.sizes, dtype, generator, self.scale)
        biases[-1] *= 0.5 / self.scale  # a log-determinant of 0 has no ulp
        y, term = (torch.randn(size, n, generator=generator).to(dtype) for n in self.sizes[:2])
        return y, term, *weights, *biases

    def weights(self, tensors) -> MADEWeights:
        half = len(tensors) // 2
        build = MADEWeights.with_residual_blocks if self.residual else MADEWeights
        return build(tuple(tensors[:half]), tuple(tensors[half:]), self.activation)

    def call(self, function, x, term, *tensors):
        degrees, context = [d.to(x.device) for d in self.degrees], [term] if self.has_context else None
        weights, gates = self.weights(tensors), self.gates(term)
        return function(x, weights, degrees, transform=self.transform, context=context, gates=gates)

    def gates(self, term):
        """Of the layer ``gated``, a function of the context, as in a gated linear unit."""
        return None if self.gated is None else [*[None] * self.gated, torch.sigmoid(term)]

    def inverse(self, *tensors):
        return self.call(made_inverse, *tensors)

    def raw(self, y, term, *tensors):
        context = [term] if self.has_context else None
        network = _check_network(y, self.weights(tensors), self.degrees, context, self.gates(term))
        return raw_made_inverse, (y, *network, *_transform_options(self.transform, y.dtype))

    def plain(self, *tensors):
        """The reference by PyTorch alone, half precision in fp32."""
        wide = [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]
        y, term, *rest = wide
        weights, half = self.weights(rest), len(rest) // 2
        biases = [rest[half] + term if self.has_context else rest[half], *rest[half + 1 :]]
        count = len(biases)
        activated = _bits(weights.activated or (False, *[True] * (count - 1)))
        skips = _bits(weights.skips or (False,) * count)
        degrees = [d.to(y.device) for d in self.degrees]
        gates = [gate.to(y.dtype) for gate in (self.gates(tensors[1]) or [])[-1:]]
        gated = 0 if self.gated is None else 1 << self.gated
        x, log_abs_det = reference.causal.made_inverse(
            y, weights.weights, biases, degrees, [], gates, 0, gated, activated, skips,
            list(ACTIVATIONS).index(self.activation), *_transform_options(self.transform, y.dtype),
        )  # fmt: skip
        return x.to(tensors[0].dtype), log_abs_det


def case(network: Network, wanted: tuple[int, ...], *dtypes: torch.dtype) -> Case:
    def inputs(dtype, size, generator):
        """In fp64, where second derivatives are taken, few samples; else so many that none decides alone."""
        is_few = dtype == torch.float64 or size == 0
        return network.inputs(dtype, size if is_few else size + 40, generator)

    return Case(network.inverse, network.plain, inputs, wanted, network.raw, dtypes, (2, 8, 17))


FP32, FP64, HALVES = torch.float32, torch.float64, (torch.bfloat16, torch.float16)
PLAIN = Network(3, [5], AFFINE, order=torch.tensor([2, 3, 1]))
RESIDUAL = Network(2, [4, 4, 4], NFLOWS_AFFINE, residual=True, activation="elu", gated=2, scale=0.2)
SMALL_SPLINE = Network(
    2, [3], SplineTransform(bins=2, bound=3.0), activation="silu", scale=0.1, context=False
)
X, (W, B) = torch.zeros(2, 2), draw([2, 4, 4])
WEIGHTS, DEGREES = MADEWeights(tuple(W), tuple(B)), made_degrees(2, [4])
OF_SPLINE = {"weights": MADEWeights((torch.zeros(26, 2),), (torch.zeros(26),)), "degrees": DEGREES[:1]}


def run_bad(**changes):
    given = {"y": X, "weights": WEIGHTS, "degrees": DEGREES, "transform": AFFINE} | changes
    return lambda: made_inverse(**given)


class TestMADEInverse(Battery):
    # PyTorch's splines round as much in fp64 as ours: test_spline_in_fp64 has a better oracle.
    cases = {
        "plain": case(PLAIN, (0, 1, 2, 3, 4, 5), FP32, FP64, *HALVES),
        "residual": case(RESIDUAL, (0, 1, 4, 9), FP32, FP64, *HALVES),
        "spline": case(SMALL_SPLINE, (0, 3, 4), FP32, *HALVES),
    }
    errors = {
        "y": (run_bad(y=X[0]), ValueError, r"x: expected shape \[B, D\] with D of at least 1, got \[2\]"),
        "width": (
            run_bad(y=torch.zeros(2, 3)),
            ValueError,
            r"degrees\[0\]: expected shape \[units\] = \[3\], got \[2\]",
        ),
        "dtype": (run_bad(y=X.double()), TypeError, r"weights.weights\[0\]: expected the dtype of x"),
        "rows": (run_bad(transform=SPLINE), ValueError, r"weights.weights\[1\]: expected 22 rows"),
        "share": (
            run_bad(transform=SplineTransform(bins=4, tails=None, min_bin_width=0.0), **OF_SPLINE),
            ValueError,
            "transform.min_bin_width: expected a positive share",
        ),
        "box": (
            run_bad(y=X + 2, transform=SplineTransform(bins=4, tails=None), **OF_SPLINE),
            ValueError,
            r"x: expected values in the box, \[-1, 1\], without tails, got 2 to 2",
        ),
        "degrees of 32 bits": (
            run_bad(degrees=[d.int() for d in DEGREES]),
            TypeError,
            r"degrees\[0\]: expected dtype int64, got torch.int32",
        ),
        "degrees as lists": (
            run_bad(degrees=[d.tolist() for d in DEGREES]),
            TypeError,
            r"degrees\[0\]: expected a tensor, got list",
        ),
        "order": (
            lambda: made_degrees(3, [4], torch.tensor([1, 2])),
            ValueError,
            r"order: expected shape \[D\] = \[3\], got \[2\]",
        ),
        "transform": (
            run_bad(transform=None),
            TypeError,
            "transform: expected an AffineTransform or a SplineTransform, got NoneType",
        ),
        "weights": (
            run_bad(weights=list(WEIGHTS)),
            TypeError,
            "weights: expected MADEWeights, got list",
        ),
        "infinite slopes": (
            run_bad(transform=SplineTransform(2, min_derivative=math.inf)),
            ValueError,
            r"transform.min_derivative: expected a positive number of at most 2\^40, got inf",
        ),
        "zuko's slope": (
            run_bad(transform=SplineTransform(2, parameterization="zuko", slope=1e-60)),
            ValueError,
            "transform.slope: expected a number between 0 and 1, got 1e-60",
        ),
        "layout": (
            run_bad(transform=AffineTransform(layout="pairs")),
            ValueError,
            "transform.layout: expected one of",
        ),
        "clamp": (
            run_bad(transform=AffineTransform(clamp="hard", layout="interleaved")),
            ValueError,
            "transform.clamp: expected one of",
        ),
        "activation": (
            run_bad(weights=WEIGHTS._replace(activation="cos")),
            ValueError,
            "weights.activation: expected one of",
        ),
        "flags": (
            run_bad(weights=WEIGHTS._replace(skips=(True,))),
            ValueError,
            "weights.skips: expected 2 booleans, got 1",
        ),
        "skip": (
            run_bad(weights=WEIGHTS._replace(skips=(False, True))),
            ValueError,
            r"weights.skips\[1\]: expected False in the first two and the last layer",
        ),
        "layers": (run_bad(degrees=DEGREES[:1]), ValueError, "degrees: expected 2 tensors, got 1"),
        "context": (
            run_bad(context=[torch.zeros(2, 3)]),
            ValueError,
            r"context\[0\]: expected shape \[B, out\] = \[2, 4\], got \[2, 3\]",
        ),
        "gates": (
            run_bad(gates=[None, torch.zeros(1, 4)]),
            ValueError,
            r"gates\[1\]: expected shape \[B, out\] = \[2, 4\], got \[1, 4\]",
        ),
    }


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dim", [1, 2, 37])
def test_equals_the_reference_and_undoes_the_transform(dim, residual, transform):
    order = torch.randperm(dim, generator=torch.Generator().manual_seed(1)) + 1
    for activation in ("relu", "silu"):
        network = Network(dim, [21] * 3, transform, residual=residual, activation=activation, order=order)
        tensors = network.inputs(torch.float64, 19, torch.Generator().manual_seed(0))
        found, expected = network.inverse(*tensors), network.plain(*tensors)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        y, log_abs_det = network.call(made_transform, found[0], *tensors[1:])
        torch.testing.assert_close(y, tensors[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_abs_det, -found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("degrees", ANY_DEGREES)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_derivatives_are_those_of_the_reference(transform, residual, degrees):
    """Gradients and tangents, of a network whose every layer is gated or skipped."""
    network = Network(7, [12] * 3, transform, residual=residual, activation="silu", gated=2, scale=0.2)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randint(-1, 9, (12,), generator=generator)
    network.degrees = torch.tensor(ANY_DEGREES[degrees]), hidden, hidden, hidden
    tensors = network.inputs(torch.float64, 5, generator)
    tangents = tuple(torch.cos(7 * tensor) for tensor in tensors)
    for derivative in (
        lambda f: torch.func.jvp(f, tensors, tangents),
        lambda f: torch.func.vjp(f, *tensors)[1]((torch.sin(tensors[0]), torch.cos(tensors[0][:, 0]))),
    ):
        found, expected = derivative(network.inverse), derivative(network.plain)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_derivatives_take_one_pass(monkeypatch):
    """Never a row of the Jacobian by a backward pass each."""
    network = Network(64, [8], AFFINE)
    tensors = network.inputs(torch.float64, 2, torch.Generator().manual_seed(0))
    made_values, calls = reference.causal.made_values, []
    monkeypatch.setattr(reference.causal, "made_values", lambda *args: calls.append(1) or made_values(*args))
    torch.func.vjp(lambda y: network.inverse(y, *tensors[1:])[0], tensors[0])[1](tensors[0])
    assert len(calls) == 1


def spline_inverse_in_long_double(network, y, _, first, last, first_bias, last_bias):
    """x [B, D] and log|det| [B] of a network of one hidden layer of SiLU, with 64 bits of mantissa."""
    wide = [t.numpy().astype(np.longdouble) for t in (y, first, last, first_bias, last_bias)]
    y, first, last, first_bias, last_bias = wide
    bins, bound, rows = network.transform.bins, network.transform.bound, np.arange(len(y))
    inputs, hidden = (degrees.numpy() for degrees in network.degrees)
    outputs = inputs.repeat(len(last) // len(inputs))
    x, log_abs_det = np.zeros_like(y), np.zeros_like(y)
    for i in inputs.argsort():
        h = x @ (first * (hidden[:, None] >= inputs)).T + first_bias
        h = h / (1 + np.exp(-h)) @ (last * (outputs[:, None] > hidden)).T + last_bias
        parts = np.split(h.reshape(*y.shape, -1)[:, i], [bins, 2 * bins], axis=1)
        shares = [np.exp(p) / np.exp(p).sum(1, keepdims=True) * (1 - 1e-3 * bins) + 1e-3 for p in parts[:2]]
        knots = [np.pad(2 * bound * s.cumsum(1), ((0, 0), (1, 0))) - bound for s in shares]
        slopes = np.pad(1e-3 + np.log1p(np.exp(parts[2])), ((0, 0), (1, 1)), constant_values=1)
        k = np.clip((knots[1][:, :-1] <= y[:, i, None]).sum(1) - 1, 0, bins - 1)
        (x0, x1), (y0, y1) = ((knot[rows, k], knot[rows, k + 1]) for knot in knots)
        low, high, steep = slopes[rows, k], slopes[rows, k + 1], (y1 - y0) / (x1 - x0)
        # The root t of (y - y0) (steep + q t (1 - t)) = (y1 - y0) (steep t² + low t (1 - t)).
        q, up = low + high - 2 * steep, y[:, i] - y0
        a, b, c = (y1 - y0) * (steep - low) + up * q, (y1 - y0) * low - up * q, -steep * up
        t = 2 * c / (-b - np.sqrt(np.abs(b * b - 4 * a * c)))  # negative outside the bound only
        slope = steep**2 * (high * t**2 + 2 * steep * t * (1 - t) + low * (1 - t) ** 2)
        slope /= (steep + q * t * (1 - t)) ** 2
        is_inside = np.abs(y[:, i]) <= bound
        x[:, i] = np.where(is_inside, x0 + t * (x1 - x0), y[:, i])
        log_abs_det[:, i] = -np.log(np.where(is_inside, slope, 1))
    return x, log_abs_det.sum(1)


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_spline_in_fp64(scale):
    network = Network(
        5, [8], SplineTransform(bins=6, bound=3.0), activation="silu", scale=scale, context=False
    )
    tensors = network.inputs(torch.float64, 400, torch.Generator().manual_seed(0))
    exact = spline_inverse_in_long_double(network, *tensors)
    for found, plain, right in zip(network.inverse(*tensors), network.plain(*tensors), exact):
        error, allowed = (np.abs(t.numpy() - right).max() for t in (found, plain))
        assert error <= 2 * allowed + 4 * ulp(np.abs(right).max(), torch.float64)


@pytest.mark.parametrize("order", ["", "_scale_first"], ids=["shift first", "scale first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_one_kind_together(dtype, order):
    """All shifts, then all scales: the same rows as in pairs, with gates and context by sample."""
    by_pairs = Network(5, [16, 16], AFFINE._replace(layout=f"interleaved{order}"), context=False)
    y, term, *tensors = by_pairs.inputs(dtype, 6, torch.Generator().manual_seed(0))
    place = torch.arange(10).view(5, 2).T.flatten()
    context, gates = term.repeat(1, 2)[:, :10], term[:, 5:15].sigmoid()
    degrees, weights, transform = by_pairs.degrees, by_pairs.weights(tensors), by_pairs.transform
    together = weights._replace(
        weights=(*weights.weights[:-1], weights.weights[-1][place]),
        biases=(*weights.biases[:-1], weights.biases[-1][place]),
    )
    for function in (made_inverse, made_transform):
        found = function(
            y, together, degrees, transform=transform._replace(layout=f"cat{order}"),
            context=[None, None, context[:, place]], gates=[None, None, gates[:, place]],
        )  # fmt: skip
        expected = function(
            y, weights, degrees, transform=transform, context=[None, None, context], gates=[None, None, gates]
        )
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    network = Network(6, [50, 40], AFFINE, activation=activation)
    tensors = network.inputs(torch.float32, 33, torch.Generator().manual_seed(0))
    exact = network.plain(*(t.double() for t in tensors))
    for found, plain, right in zip(network.inverse(*tensors), network.plain(*tensors), exact):
        assert_close_enough(found, plain, right, 2, activation)


@pytest.mark.parametrize("degrees", ANY_DEGREES)
def test_any_degrees(degrees):
    network = Network(7, [30, 20], AFFINE)
    generator = torch.Generator().manual_seed(3)
    hidden = [torch.randint(-1, 9, (n,), generator=generator) for n in (30, 20)]
    network.degrees = torch.tensor(ANY_DEGREES[degrees]), *hidden
    tensors = network.inputs(torch.float64, 9, generator)
    torch.testing.assert_close(network.inverse(*tensors), network.plain(*tensors), rtol=1e-12, atol=1e-12)


def test_a_dimension_sees_those_of_lower_degree():
    order = torch.tensor([3, 1, 4, 2])
    network = Network(4, [16, 16], AFFINE, order=order)
    x, _, *tensors = network.inputs(torch.float64, 1, torch.Generator().manual_seed(0))
    jacobian = torch.func.jacrev(lambda x: made(x, network.weights(tensors), network.degrees))(x)
    seen = (jacobian[0, :, :, 0] != 0).any(1)
    assert torch.equal(seen, order[:, None] > order)


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("transform", [AFFINE, SPLINE], ids=["affine", "spline"])
def test_log_determinant(dim, transform):
    network = Network(dim, [9, 9], transform)
    y, *tensors = network.inputs(torch.float64, 6, torch.Generator().manual_seed(0))
    _, log_abs_det = network.inverse(y, *tensors)
    jacobians = torch.func.jacrev(lambda y: network.inverse(y, *tensors)[0].sum(0))(y).movedim(1, 0)
    torch.testing.assert_close(log_abs_det, torch.linalg.slogdet(jacobians)[1])


def test_log_determinant_of_many_dimensions():
    """A plain sum of 784 equal terms in fp32 drifts by dozens of ulp."""
    network = Network(784, [1], AffineTransform(layout="interleaved"))
    y, term, *_, bias = network.inputs(torch.float32, 2, torch.Generator().manual_seed(0))
    weights = [torch.zeros(1, 784), torch.zeros(1568, 1), torch.zeros(1), torch.full_like(bias, 0.7)]
    _, found = network.inverse(y, term, *weights)
    exact = torch.full((2,), -784 * weights[-1][0].double().item(), dtype=torch.float64)
    assert_close_enough(found, exact.float(), exact, 0, "log_abs_det")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 3])
def test_shapes_and_dtypes_of_the_parallel_direction(batch, dtype):
    x, term, *tensors = SMALL_SPLINE.inputs(dtype, batch, torch.Generator().manual_seed(0))
    parameters = made(x, SMALL_SPLINE.weights(tensors), SMALL_SPLINE.degrees)
    assert parameters.shape == (batch, 2, 5)
    assert parameters.dtype == dtype
    y, log_abs_det = SMALL_SPLINE.call(made_transform, x, term, *tensors)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert log_abs_det.shape == (batch,)
    assert log_abs_det.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def large(transform=AFFINE, batch=67):
    network = Network(45, [70, 90], transform, activation="silu")
    return network, network.inputs(torch.float32, batch, torch.Generator().manual_seed(0))


@needs_kernels
@pytest.mark.parametrize("transform", [AFFINE, SPLINE], ids=["affine", "spline"])
def test_bits_do_not_depend_on_the_batch(transform):
    network, (y, term, *weights) = large(transform)
    whole = network.inverse(y, term, *weights)
    for first, count in [(0, 1), (3, 2), (11, 17), (20, 40), (66, 1)]:
        part = slice(first, first + count)
        found = network.inverse(y[part], term[part], *weights)
        assert all(torch.equal(a, b[part]) for a, b in zip(found, whole)), (first, count)


ISA_PROGRAM = """
import sys, torch
from tests.ops.test_made import SPLINE, large
network, tensors = large()
spline, spline_tensors = large(SPLINE)
torch.save([network.inverse(*tensors), spline.inverse(*(t.double() for t in spline_tensors))], sys.argv[1])
"""


@needs_kernels
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa, tmp_path):
    affine, spline = outputs_under(isa, ISA_PROGRAM, tmp_path)
    network, tensors = large()
    exact = network.plain(*(t.double() for t in tensors))
    for found, plain, right in zip(affine, network.plain(*tensors), exact):
        assert_close_enough(found, plain, right, 2, isa)
    network, tensors = large(SPLINE)
    exact = network.plain(*(t.double() for t in tensors))
    torch.testing.assert_close(spline, exact, rtol=1e-10, atol=1e-10)


def nflows_network(module) -> tuple[MADEWeights, list[torch.Tensor]]:
    """Weights and degrees of an nflows or normflows MADE."""
    blocks = [getattr(block, "linear_layers", [getattr(block, "linear", None)]) for block in module.blocks]
    layers = [module.initial_layer, *(layer for block in blocks for layer in block), module.final_layer]
    weights, biases = ([getattr(layer, name) for layer in layers] for name in ("weight", "bias"))
    degrees = [layer.degrees for layer in layers[:-1]]
    dim = module.initial_layer.weight.shape[1]
    build = MADEWeights.with_residual_blocks if module.use_residual_blocks else MADEWeights
    return build(tuple(weights), tuple(biases)), [torch.arange(1, dim + 1), *degrees]


class TestNflows:
    """T6: the inverse of nflows with the same weights."""

    @pytest.fixture(autouse=True)
    def _needs_nflows(self):
        pytest.importorskip("nflows")

    @pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
    @pytest.mark.parametrize("dim", [2, 16, 64, 256, 784])
    def test_affine(self, dim, residual):
        from nflows.transforms import MaskedAffineAutoregressiveTransform

        torch.manual_seed(dim)
        peer = MaskedAffineAutoregressiveTransform(dim, 96, num_blocks=1, use_residual_blocks=residual)
        weights, degrees = nflows_network(peer.autoregressive_net)
        y = torch.randn(3, dim)
        with torch.no_grad():
            x, log_abs_det = made_inverse(y, weights, degrees, transform=NFLOWS_AFFINE)
            peer_x, peer_log_abs_det = peer.inverse(y)
        torch.testing.assert_close(x, peer_x, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(log_abs_det, peer_log_abs_det, rtol=1e-5, atol=1e-4)

    def test_in_fp64(self):
        from nflows.transforms import MaskedAffineAutoregressiveTransform

        torch.manual_seed(0)
        peer = MaskedAffineAutoregressiveTransform(16, 40, num_blocks=2, random_mask=False).double()
        weights, degrees = nflows_network(peer.autoregressive_net)
        y = torch.randn(5, 16, dtype=torch.float64)
        found = made_inverse(y, weights, degrees, transform=NFLOWS_AFFINE)
        torch.testing.assert_close(found, peer.inverse(y), rtol=1e-12, atol=1e-12)
        found = made_transform(y, weights, degrees, transform=NFLOWS_AFFINE)
        torch.testing.assert_close(found, peer.forward(y), rtol=1e-12, atol=1e-12)

    def test_context(self):
        from nflows.transforms import MaskedAffineAutoregressiveTransform

        torch.manual_seed(0)
        peer = MaskedAffineAutoregressiveTransform(8, 32, context_features=3, num_blocks=1).double()
        network = peer.autoregressive_net
        y, context = torch.randn(6, 8).double(), torch.randn(6, 3).double()
        terms = [torch.relu(network.context_layer(context)), network.blocks[0].context_layer(context)]
        weights, degrees = nflows_network(network)
        found = made_inverse(y, weights, degrees, transform=NFLOWS_AFFINE, context=terms)
        torch.testing.assert_close(found, peer.inverse(y, context), rtol=1e-12, atol=1e-12)

    def test_gradients(self):
        """Of all weights, through nflows' own passes."""
        from nflows.transforms import MaskedAffineAutoregressiveTransform

        torch.manual_seed(0)
        peer = MaskedAffineAutoregressiveTransform(9, 20, context_features=3, num_blocks=1).double()
        network = peer.autoregressive_net
        y, context = torch.randn(6, 9).double().requires_grad_(), torch.randn(6, 3).double()
        wanted = [y, *network.parameters()]
        terms = [torch.relu(network.context_layer(context)), network.blocks[0].context_layer(context)]
        weights, degrees = nflows_network(network)
        found = made_inverse(y, weights, degrees, transform=NFLOWS_AFFINE, context=terms)
        for results in zip(found, peer.inverse(y, context)):
            ours, theirs = (torch.autograd.grad(t.sin().sum(), wanted, retain_graph=True) for t in results)
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)

    def test_spline(self):
        from nflows.transforms import MaskedPiecewiseRationalQuadraticAutoregressiveTransform

        torch.manual_seed(0)
        peer = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            6, 24, num_bins=5, tails="linear", tail_bound=3.0, num_blocks=1
        ).double()
        weights, degrees = nflows_network(peer.autoregressive_net)
        y = torch.randn(5, 6, dtype=torch.float64)
        transform = SplineTransform(bins=5, bound=3.0)
        found = made_inverse(y, weights, degrees, transform=transform)
        torch.testing.assert_close(found, peer.inverse(y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
def test_zuko(residual):
    pytest.importorskip("zuko")
    from zuko.flows import MaskedAutoregressiveTransform

    torch.manual_seed(0)
    order = torch.tensor([2, 0, 3, 1])
    peer = MaskedAutoregressiveTransform(
        4, 2, order=order, hidden_features=(16, 16), residual=residual
    ).double()
    linear = [m for m in peer.hyper.modules() if isinstance(m, torch.nn.Linear)]
    # A unit's degree is the number of passes that it sees; the last columns are the context's.
    seen = [order + 1, *_zuko_degrees(linear, order)]
    matrices = [linear[0].weight[:, :4], *(layer.weight for layer in linear[1:])]
    biases = tuple(layer.bias for layer in linear)
    if residual:
        weights = MADEWeights.with_residual_blocks(matrices, biases, preactivated=False)
    else:
        weights = MADEWeights(tuple(matrices), biases)
    y, context = torch.randn(5, 4).double(), torch.randn(5, 2).double()
    terms = [context @ (linear[0].weight * linear[0].mask)[:, 4:].T]
    transform = AffineTransform(clamp="zuko", layout="interleaved")
    x, log_abs_det = made_inverse(y, weights, seen, transform=transform, context=terms)
    with torch.no_grad():
        expected = peer(context).inv(y)
        expected_log = peer(context).log_abs_det_jacobian(expected, y)
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_abs_det, -expected_log, rtol=1e-12, atol=1e-12)


def _zuko_degrees(layers, order) -> list[torch.Tensor]:
    """Degrees of hidden units from the masks: the largest of what a unit sees."""
    degrees = torch.cat([order + 1, torch.zeros(2, dtype=torch.int64)])
    found = []
    for layer in layers[:-1]:
        degrees = torch.where(layer.mask.bool(), degrees, 0).amax(1)
        found.append(degrees)
    return found


def test_a_masked_weight_may_be_anything():
    """Both directions ignore weights that no path uses."""
    weights = [weight.clone() for weight in WEIGHTS.weights]
    weights[0][:, -1] = torch.nan  # no unit may see the last dimension
    network = WEIGHTS._replace(weights=tuple(weights))
    for function in (made_transform, made_inverse):
        found = function(X, network, DEGREES, transform=AFFINE)
        assert all(map(torch.equal, found, function(X, WEIGHTS, DEGREES, transform=AFFINE)))


def test_autocast_leaves_the_precision():
    for function in (made_transform, made_inverse):
        expected = function(X, WEIGHTS, DEGREES, transform=AFFINE)
        with torch.autocast("cpu", torch.bfloat16):
            found = function(X, WEIGHTS, DEGREES, transform=AFFINE)
        assert all(map(torch.equal, found, expected))
