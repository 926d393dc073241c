"""Accuracy of the vector functions in kernels/common/math.h, on every instruction set."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from genssl_fast._library import INSTRUCTION_SETS, instruction_set
from tests.kernels.compile import ROOT, compile_for_isa

LANES = 16
# The machine's best instruction set and those below it.
BEST = INSTRUCTION_SETS.index(instruction_set() or "baseline")


@pytest.fixture(scope="module", params=INSTRUCTION_SETS[BEST:])
def functions(request, tmp_path_factory):
    target = tmp_path_factory.mktemp("math") / f"{request.param}.so"
    source = Path(ROOT / "tests/kernels/cpu_math.cpp")
    return ctypes.CDLL(str(compile_for_isa(source, request.param, target, "-O3", "-shared")))


def evaluate(functions, name: str, x: np.ndarray) -> np.ndarray:
    """The function of every element; the rest of the last register is filled with ones."""
    padded = np.ones(-(-x.size // LANES) * LANES, x.dtype)
    padded[: x.size] = x
    result = np.full_like(padded, np.nan)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (padded, result))
    getattr(functions, f"{name}_{x.dtype.name}")(*pointers, ctypes.c_int64(padded.size))
    return result[: x.size]


def sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1.0 + small)


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def positive_floats(above: float, below: float) -> np.ndarray:
    """Every 4099th float in a range of positive ones."""
    first, last = np.array([above, below], np.float32).view(np.int32)
    return np.arange(first, last, 4099, dtype=np.int32).view(np.float32)


def both_signs(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, -x])


def angles() -> np.ndarray:
    """Angles up to 1e5, many of them as close to multiples of pi/2 as floats come."""
    multiples = (np.arange(1, 63662) * (np.pi / 2)).astype(np.float32)
    spread = np.random.default_rng(0).uniform(0, 1e5, 400_000).astype(np.float32)
    return both_signs(np.concatenate([multiples, spread, positive_floats(1e-30, 1e5)]))


TINY = np.float32(1.2e-38)
CASES = {
    "exp": (np.exp, lambda: np.linspace(-103.9, 88.72, 1_000_000, dtype=np.float32), 1.5),
    "exp2": (np.exp2, lambda: np.linspace(-149.5, 127.99, 1_000_000, dtype=np.float32), 1.5),
    "log": (np.log, lambda: positive_floats(1e-45, 3.4e38), 1.5),
    "sin": (np.sin, angles, 1.5),
    "cos": (np.cos, angles, 1.5),
    "sigmoid": (sigmoid, lambda: np.linspace(-87, 100, 1_000_000, dtype=np.float32), 2.5),
    "silu": (silu, lambda: both_signs(positive_floats(TINY, 87)), 2.5),
    "softplus": (softplus, lambda: both_signs(positive_floats(TINY, 87)), 3.5),
    "tanh": (np.tanh, lambda: both_signs(positive_floats(TINY, 3.4e38)), 3.5),
    "atan": (np.arctan, lambda: both_signs(positive_floats(TINY, 3.4e38)), 3.5),
}


@pytest.mark.parametrize("name", CASES)
def test_float_error_in_ulps(functions, name):
    exact, arguments, bound = CASES[name]
    x = arguments()
    expected = exact(x.astype(np.float64))
    ulp = np.spacing(np.maximum(np.abs(expected), TINY).astype(np.float32)).astype(np.float64)
    error = np.abs(evaluate(functions, name, x).astype(np.float64) - expected) / ulp
    worst = error.argmax()
    assert error[worst] <= bound, f"{name}({x[worst]!r}) is off by {error[worst]:.2f} ulp"


@pytest.mark.parametrize("name", CASES)
def test_double_agrees_with_numpy(functions, name):
    exact = CASES[name][0]
    x = np.linspace(0.01, 80.0, 4096)
    x = x if name == "log" else both_signs(x)
    np.testing.assert_allclose(evaluate(functions, name, x), exact(x), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_arguments(functions, name, dtype):
    limit = np.finfo(dtype).max
    x = np.array([0.0, -0.0, limit, -limit, np.inf, -np.inf, np.nan, 3e5, -1e9], dtype)
    with np.errstate(all="ignore"):
        expected = CASES[name][0](x.astype(np.float64)).astype(dtype)
    result = evaluate(functions, name, x)
    if name == "silu":  # -inf times 0
        x, expected, result = (np.delete(array, 5) for array in (x, expected, result))
    np.testing.assert_allclose(result, expected, rtol=4 * np.finfo(dtype).eps)


def test_large_angle_does_not_disturb_its_neighbours(functions):
    x = np.array([0.5, 1e30, -2.0, 7e4], np.float32)
    np.testing.assert_allclose(evaluate(functions, "sin", x), np.sin(x.astype(np.float64)), rtol=3e-7)


def test_tanh_is_odd_and_at_most_one(functions):
    x = np.concatenate([positive_floats(TINY, 3.4e38), np.linspace(0, 12, 1_000_000, dtype=np.float32)])
    y = evaluate(functions, "tanh", x)
    assert y.max() == 1
    np.testing.assert_array_equal(evaluate(functions, "tanh", -x), -y)
