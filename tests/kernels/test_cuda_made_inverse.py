"""The CUDA C++ inverse of masked autoregressive transforms, executed on the CPU, against its reference."""

import ctypes

import pytest
import torch

from genssl_fast import reference
from genssl_fast.ops.made import raw_made_inverse
from genssl_fast.ops.transforms import AffineTransform, SplineTransform
from genssl_fast.reference.causal import ACTIVATIONS
from tests.battery import assert_close_enough
from tests.kernels.compile import ROOT, compile_cuda_on_cpu
from tests.kernels.film_mlp_cases import H200_SHARED_BYTES
from tests.ops.test_made import NFLOWS_AFFINE, SPLINE, TRANSFORMS, Network

SOURCES = [ROOT / "kernels/causal/made_inverse.cu", ROOT / "tests/kernels/made_inverse_on_cpu.cpp"]
CLAMPS = {
    name: AffineTransform(clamp=name, layout="interleaved", **options)
    for name, options in {
        "none": {},
        "atan": {},
        "reciprocal_sigmoid": {},
        "sigmoid": {"min_scale": 0.01},
        "softplus": {"min_scale": 0.0},
        "zuko": {},
    }.items()
}
SPLINES = {
    "free": SplineTransform(bins=3, bound=4.0, tails=None),
    "one bin": SplineTransform(bins=1, bound=2.0),
    "zuko": SplineTransform(bins=8, bound=3.0, parameterization="zuko"),
    "box": SplineTransform(bins=5, bound=(-5.0, 6.0, -4.0, 5.0), tails=None),
}
ADDITIVE = 7  # of the kernels' clamps
ALL_TRANSFORMS = TRANSFORMS | CLAMPS | SPLINES


def args_type(real):
    """The arguments struct of the launcher, in the order of made_inverse_cuda.h."""

    class Affine(ctypes.Structure):
        _fields_ = [
            ("clamp", ctypes.c_int32),
            *((name, real) for name in ("limit", "offset", "min_scale")),
            ("shift_first", ctypes.c_bool),
        ]

    class Spline(ctypes.Structure):
        _fields_ = [
            *((name, ctypes.c_int32) for name in ("bins", "tails", "parameterization")),
            *((name, real) for name in ("left", "right", "bottom", "top")),
            *((name, real) for name in ("min_width", "min_height", "min_derivative", "slope")),
        ]

    class Elementwise(ctypes.Structure):
        _fields_ = [
            *((name, ctypes.c_bool) for name in ("is_spline", "has_scale", "scale_first")),
            ("affine", Affine),
            ("spline", Spline),
        ]

    class Args(ctypes.Structure):
        _fields_ = [
            *((name, ctypes.c_int32) for name in ("device", "dim", "parameters", "matrices")),
            ("batch", ctypes.c_int64),
            *((name, ctypes.c_void_p) for name in ("width", "weights", "biases", "degrees")),
            *((name, ctypes.c_void_p) for name in ("input_gates", "output_gates")),
            *((name, ctypes.c_int64) for name in ("activated", "skips", "per_sample_biases")),
            ("activation", ctypes.c_int32),
            ("transform", Elementwise),
            *((name, ctypes.c_void_p) for name in ("y", "x", "log_abs_det")),
        ]

    return Args, Elementwise, Affine, Spline


ARGS = {torch.float32: args_type(ctypes.c_float), torch.float64: args_type(ctypes.c_double)}


class Kernels:
    """The library built from the unchanged ``.cu`` file."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def configure(self, order=0, multiprocessors=4, shared=H200_SHARED_BYTES):
        self.library.configure(ctypes.c_uint64(order), ctypes.c_int(multiprocessors), ctypes.c_size_t(shared))

    def made_inverse(
        self, y, weights, biases, degrees, input_gates, output_gates, gated_inputs, gated_outputs,
        activated, skips, activation, layout, clamp, shift_first, limit, offset, min_scale, *spline,
    ):  # fmt: skip
        """Arguments of the raw operation; x and log|det|."""
        args, elementwise, affine_options, spline_options = ARGS[y.dtype]
        has_scale = layout != 0
        width = [y.shape[1], *map(len, weights)]
        x, log_abs_det = torch.full_like(y, torch.nan), torch.full_like(y[:, 0], torch.nan)
        kept = [[t.contiguous() for t in tensors] for tensors in (weights, biases, degrees)]
        arrays = [(ctypes.c_int64 * len(width))(*width)]
        for gates, bits in ((input_gates, gated_inputs), (output_gates, gated_outputs)):
            given = iter([gate.contiguous() for gate in gates])
            kept.append([next(given) if bits >> i & 1 else None for i in range(len(weights))])
        arrays += [
            (ctypes.c_void_p * len(tensors))(*(t if t is None else t.data_ptr() for t in tensors))
            for tensors in kept
        ]
        y = y.contiguous()
        affine = affine_options(clamp if has_scale else ADDITIVE, limit, offset, min_scale, shift_first)
        filled = args(
            0, width[0], width[-1] // width[0], len(weights), len(y), *map(ctypes.addressof, arrays),
            activated, skips, sum(1 << i for i, bias in enumerate(biases) if bias.ndim == 2), activation,
            elementwise(spline[0] > 0, has_scale, layout == 2, affine, spline_options(*spline)),
            y.data_ptr(), x.data_ptr(), log_abs_det.data_ptr(),
        )  # fmt: skip
        message = ctypes.create_string_buffer(4096)
        run = getattr(self.library, f"run_made_inverse_{str(y.dtype).removeprefix('torch.')}")
        error = run(ctypes.byref(filled), message, ctypes.c_size_t(4096))
        assert error == 0, message.value.decode()
        return x, log_abs_det


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made_inverse")
    return Kernels(compile_cuda_on_cpu(SOURCES, directory / "made_inverse.so", "-shared"))


def run(kernels, network, tensors):
    return kernels.made_inverse(*network.raw(*tensors)[1])


def draw(network, dtype=torch.float64, batch=11):
    return network.inputs(dtype, batch, torch.Generator().manual_seed(0))


def assert_equals_reference(kernels, network, dtype=torch.float64, batch=11):
    tensors = draw(network, dtype, batch)
    found, plain = run(kernels, network, tensors), network.plain(*tensors)
    if dtype == torch.float64:
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-10)
        return
    exact = network.plain(*(t.double() for t in tensors))
    for name, *values in zip(("x", "log_abs_det"), found, plain, exact):
        assert_close_enough(*values, 2, name)


@pytest.mark.parametrize("transform", ALL_TRANSFORMS.values(), ids=ALL_TRANSFORMS)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_equals_the_reference(kernels, residual, transform):
    for dim, shared in [(1, H200_SHARED_BYTES), (13, H200_SHARED_BYTES), (13, 64)]:
        kernels.configure(order=dim, shared=shared)
        order = torch.randperm(dim, generator=torch.Generator().manual_seed(1)) + 1
        network = Network(dim, [21] * 3, transform, residual=residual, activation="silu", order=order)
        for dtype in (torch.float32, torch.float64):
            assert_equals_reference(kernels, network, dtype)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("transform", [NFLOWS_AFFINE, SPLINE], ids=["affine", "spline"])
def test_every_gate(kernels, transform, residual):
    """Of inputs and outputs, of the first and the last layer, too, in every plane of activations."""
    network = Network(9, [14] * 3, transform, residual=residual, activation="silu")
    for shared in (H200_SHARED_BYTES, 64):
        kernels.configure(shared=shared)
        args = list(network.raw(*draw(network))[1])
        layers, generator = len(args[1]), torch.Generator().manual_seed(1)
        for place, units in ((4, [w.shape[1] for w in args[1]]), (5, [len(w) for w in args[1]])):
            args[place] = [
                0.5 + torch.rand(11, n, dtype=torch.float64, generator=generator) for n in units[::2]
            ]
            args[place + 2] = sum(1 << i for i in range(0, layers, 2))
        expected = reference.causal.made_inverse(*args)
        torch.testing.assert_close(kernels.made_inverse(*args), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(raw_made_inverse(*args), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(kernels, activation):
    kernels.configure()
    assert_equals_reference(kernels, Network(6, [30, 40], NFLOWS_AFFINE, activation=activation))


@pytest.mark.parametrize("hidden", [[], [0], [1], [70, 3], [5, 90]], ids=str)
def test_any_width(kernels, hidden):
    kernels.configure()
    for transform in (NFLOWS_AFFINE, SPLINE):
        assert_equals_reference(kernels, Network(9, hidden, transform, context=False), batch=3)


DEGREES = {
    "ties": [1, 1, 4, 4, 4, 2, 2],
    "gaps": [90, -3, 7, 0, 12, 40, 1000],
    "ties of two blocks": [i // 3 for i in range(40)],
}


@pytest.mark.parametrize("inputs", DEGREES.values(), ids=DEGREES)
def test_any_degrees(kernels, inputs):
    kernels.configure()
    generator = torch.Generator().manual_seed(3)
    for sizes in ([30, 20], []):
        network = Network(len(inputs), sizes, NFLOWS_AFFINE, context=bool(sizes))
        hidden = [torch.randint(-1, 9, (n,), generator=generator) for n in sizes]
        network.degrees = torch.tensor(inputs), *hidden
        assert_equals_reference(kernels, network)


@pytest.mark.parametrize("transform", [NFLOWS_AFFINE, SPLINE], ids=["affine", "spline"])
def test_bits_depend_on_neither_place_nor_plan_nor_order(kernels, transform):
    """Tiles of 8 and 32 samples, activations in shared memory and in the workspace."""
    network = Network(12, [40, 33, 40], transform, residual=True, activation="silu")
    y, term, *weights = draw(network, torch.float32, 70)
    kernels.configure()
    whole = run(kernels, network, (y, term, *weights))
    plans = [{"multiprocessors": 1}, {"multiprocessors": 3, "shared": 64}, {"multiprocessors": 132}]
    for order, plan in enumerate(plans):
        kernels.configure(order=order + 1, **plan)
        for begin, end in [(0, 70), (0, 1), (11, 13), (20, 61)]:
            part = slice(begin, end)
            found = run(kernels, network, (y[part], term[part], *weights))
            assert all(torch.equal(a, b[part]) for a, b in zip(found, whole)), (plan, begin, end)


def test_dot_products_are_chains_over_degrees_ascending(kernels):
    """The order that the CPU kernel promises, checked where it shows: terms that cancel."""
    network = Network(6, [1], AffineTransform(layout="shift"), activation="relu", context=False)
    network.degrees = torch.tensor([5, 4, 3, 2, 1, 6]), torch.tensor([5])
    y, _, *tensors = draw(network, torch.float32, 1)
    for tensor in tensors:
        tensor.zero_()
    tensors[0][0] = torch.tensor([1.0, -(2.0**24), 1, 2**24, 1, 0])
    tensors[1][5] = -1
    kernels.configure()
    x, _ = run(kernels, network, (torch.ones_like(y), _, *tensors))
    chain = torch.tensor(0.0)
    for weight in tensors[0][0, :5].flip(0):
        chain = chain + weight
    assert x[0, 5] == 1 + chain == 2


def test_extreme_parameters_stay_finite(kernels):
    kernels.configure()
    for transform in (SPLINE, SPLINES["zuko"], CLAMPS["zuko"], TRANSFORMS["affine"]):
        network = Network(5, [16], transform, scale=100.0)
        y, *tensors = draw(network, torch.float32, 9)
        found = run(kernels, network, (y, *tensors))
        assert all(torch.isfinite(values).all() for values in found)


def test_equals_the_cpu_kernel(kernels):
    kernels.configure()
    network = Network(45, [70, 90], NFLOWS_AFFINE, activation="relu")
    tensors = draw(network, torch.float32, 20)
    expected = raw_made_inverse(*network.raw(*tensors)[1])
    torch.testing.assert_close(run(kernels, network, tensors), expected, rtol=2e-6, atol=2e-6)
