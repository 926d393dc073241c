"""The CUDA C++ kernels of the FiLM-MLP, executed on the CPU, against their formulas in fp64."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels import film_mlp_cases
from tests.kernels.compile import ROOT, SANITIZERS, compile_cuda_on_cpu, compiler, run
from tests.kernels.film_mlp_cases import (
    H200_SHARED_BYTES,
    Kernels,
    Network,
    from_storage,
    sample_reference,
    to_storage,
)

SOURCES = [
    ROOT / "kernels/score/film_mlp.cu",
    ROOT / "kernels/integrate/film_mlp_sample.cu",
    ROOT / "tests/kernels/film_mlp_on_cpu.cpp",
]
# dim, hidden, blocks, embed, time_dim; the shared memory per block decides between resident weights,
# streamed ones, and activations in the workspace.
SHAPES = [
    (2, 128, 3, 32, 16),
    (1, 1, 1, 1, 1),
    (3, 37, 2, 19, 11),
    (64, 96, 1, 64, 32),
    (5, 300, 2, 8, 5),
    (70, 33, 4, 150, 64),
    (3, 20, 0, 8, 6),
]
SHARED_BYTES = {"ample": H200_SHARED_BYTES, "scarce": 100_000, "least": 33_500}
# Two states and two predictions, output, noise, denoise, clip, time.
TABLE = np.array(
    [
        [0.9, 0.00, 0.10, 0.00, 0.02, 0.3, 1.0, -0.1, 3.0, 0.9],
        [0.8, 0.05, 0.10, 0.02, 0.01, 0.2, 0.9, -0.2, 2.0, 0.5],
        [0.7, 0.10, 0.20, 0.03, 0.00, 0.0, 0.8, -0.3, math.inf, 0.1],
    ]
)
TOLERANCE = {"float32": 2e-5, "float64": 1e-13, "float16": 4e-3, "bfloat16": 3e-2}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    directory = tmp_path_factory.mktemp("film_mlp")
    return Kernels(compile_cuda_on_cpu(SOURCES, directory / "film_mlp.so", "-shared"))


def batch_of(network, count, seed=1):
    """x in storage, times, labels."""
    random = np.random.default_rng(seed)
    x = to_storage(random.normal(size=(count, network.dim)), network.dtype)
    times = random.uniform(0, 3, count).astype(np.float32)
    labels = random.integers(0, network.num_classes, count) if network.num_classes else None
    return x, times, labels


def assert_close(got, expected, dtype):
    got = from_storage(got, dtype)
    scale = max(np.abs(expected).max(), 1e-3)
    assert np.abs(got - expected).max() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("shared", SHARED_BYTES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_film_mlp(kernels, shape, shared):
    network = Network(*shape, sin_first=shape[0] % 2 == 0)
    kernels.configure(order=sum(shape), shared=SHARED_BYTES[shared])
    x, times, _ = batch_of(network, 13)
    for t in (times, times[0]):
        t = np.asarray(t)
        assert_close(kernels.film_mlp(network, x, t), network.forward(x, t), "float32")


@pytest.mark.parametrize("shared", SHARED_BYTES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_film_mlp_sample(kernels, shape, shared):
    network = Network(*shape)
    kernels.configure(order=sum(shape), shared=SHARED_BYTES[shared])
    x, _, _ = batch_of(network, 13)
    options = {"seed": 11 - 2**63, "step": 2**24 + 5, "first_sample": 2**32 - 3}
    got = kernels.film_mlp_sample(network, x, TABLE, 2, **options)
    assert_close(got, sample_reference(network, x, TABLE, 2, **options), "float32")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*(st.integers(low, high) for low, high in [(1, 9), (1, 70), (0, 3), (1, 40), (1, 20)])),
    batch=st.integers(1, 40),
    shared=st.integers(33_500, H200_SHARED_BYTES),
    multiprocessors=st.integers(1, 8),
    order=st.integers(0, 2**32),
)
def test_any_shape_on_any_machine(kernels, shape, batch, shared, multiprocessors, order):
    network = Network(*shape, num_classes=2)
    kernels.configure(order=order, multiprocessors=multiprocessors, shared=shared)
    x, times, labels = batch_of(network, batch)
    got = kernels.film_mlp(network, x, times, labels)
    assert_close(got, network.forward(x, times, labels), "float32")
    got = kernels.film_mlp_sample(network, x, TABLE, 2, seed=order)
    assert_close(got, sample_reference(network, x, TABLE, 2, seed=order), "float32")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(kernels, dtype):
    network = Network(3, 40, 2, 24, 16, num_classes=4, dtype=dtype)
    kernels.configure()
    x, times, labels = batch_of(network, 9)
    exact = from_storage(x, dtype)
    assert_close(kernels.film_mlp(network, x, times, labels), network.forward(exact, times, labels), dtype)
    noise = to_storage(np.random.default_rng(2).normal(size=(3, 9, 3)), dtype)
    expected = sample_reference(network, exact, TABLE, 2, labels=labels, noise=from_storage(noise, dtype))
    got = kernels.film_mlp_sample(network, x, TABLE, 2, labels=labels, noise=noise)
    assert_close(got, expected, dtype)


def test_labels_outside_the_table_are_memory_safe(kernels):
    network = Network(2, 32, 1, 8, 8, num_classes=3)
    kernels.configure()
    x, times, _ = batch_of(network, 4)
    got = kernels.film_mlp(network, x, times, np.array([-5, 3, 2**40, 1]))
    assert_close(got, network.forward(x, times, np.array([0, 2, 2, 1])), "float32")


@pytest.mark.parametrize("num_states", [1, 3])
def test_history_of_any_depth(kernels, num_states):
    network = Network(2, 16, 1, 8, 8)
    random = np.random.default_rng(0)
    table = np.concatenate([0.3 * random.normal(size=(6, num_states + 3 + 6))], 1)
    table[:, -2] = math.inf
    kernels.configure()
    x, _, _ = batch_of(network, 5)
    got = kernels.film_mlp_sample(network, x, table, num_states, seed=3)
    assert_close(got, sample_reference(network, x, table, num_states, seed=3), "float32")


def test_clip_argument_wins_and_nan_passes(kernels):
    network = Network(2, 16, 1, 8, 8)
    kernels.configure()
    x, _, _ = batch_of(network, 5)
    for clip in (0.05, math.inf):
        got = kernels.film_mlp_sample(network, x, TABLE, 2, clip=clip)
        assert_close(got, sample_reference(network, x, TABLE, 2, clip=clip), "float32")
    x[2, 1] = np.nan
    got = kernels.film_mlp_sample(network, x, TABLE, 2, clip=0.05)
    assert np.isnan(got[2]).all()
    assert np.isfinite(np.delete(got, 2, 0)).all()


def test_extreme_activations_stay_finite(kernels):
    network = Network(2, 32, 2, 8, 8)
    kernels.configure()
    x, times, _ = batch_of(network, 4)
    x *= 1e4
    got = kernels.film_mlp(network, x, times)
    with np.errstate(over="ignore"):
        assert_close(got, network.forward(x, times), "float32")


def test_counters_on_the_device_equal_counters_as_numbers(kernels):
    network = Network(2, 16, 1, 8, 8)
    kernels.configure()
    x, _, _ = batch_of(network, 5)
    options = {"seed": -(2**62) + 9, "step": 3 * 2**24}
    a = kernels.film_mlp_sample(network, x, TABLE, 2, **options)
    b = kernels.film_mlp_sample(network, x, TABLE, 2, **options, on_device=True)
    np.testing.assert_array_equal(a, b)
    assert (a != kernels.film_mlp_sample(network, x, TABLE, 2, seed=10, step=3 * 2**24)).all()


def film_mlp_results(kernels, network, x, times, labels, begin, end):
    """Both operations for samples [begin, end) of a batch."""
    chosen = slice(begin, end)
    labels = None if labels is None else labels[chosen]
    x = np.ascontiguousarray(x[chosen])
    return (
        kernels.film_mlp(network, x, times[chosen], labels),
        kernels.film_mlp(network, x, times[0], labels),
        kernels.film_mlp_sample(network, x, TABLE, 2, labels=labels, seed=4, first_sample=7 + begin),
    )


@pytest.mark.parametrize(("hidden", "num_classes"), [(128, 0), (36, 3)])
def test_bits_depend_on_neither_place_nor_plan_nor_order(kernels, hidden, num_classes):
    """Tiles of 8, 16 and 32 samples, resident and streamed weights, any order of threads: one result."""
    network = Network(2, hidden, 2, 16, 8, num_classes)
    x, times, labels = batch_of(network, 75)
    kernels.configure(order=0)
    expected = film_mlp_results(kernels, network, x, times, labels, 0, 75)
    plans = [
        {"multiprocessors": 1, "shared": 2**20},  # one multiprocessor: the largest tiles
        {"multiprocessors": 3, "shared": 90_000},
        {"multiprocessors": 132, "shared": 33_500},
    ]
    for order, plan in enumerate(plans):
        kernels.configure(order=order + 1, **plan)
        for begin, end in [(0, 75), (0, 1), (11, 13), (20, 61)]:
            got = film_mlp_results(kernels, network, x, times, labels, begin, end)
            for a, b in zip(got, expected):
                np.testing.assert_array_equal(a, b[begin:end])


def test_shared_time_equals_the_same_time_per_sample(kernels):
    network = Network(3, 32, 2, 16, 8)
    kernels.configure()
    x, times, _ = batch_of(network, 10)
    each = kernels.film_mlp(network, x, np.repeat(times[:1], 10))
    np.testing.assert_array_equal(each, kernels.film_mlp(network, x, times[0]))


def test_dot_products_are_chains_over_k_ascending(kernels):
    """The order that the CPU kernels promise, checked where it shows: terms that cancel."""
    network = Network(5, 8, 1, 4, 4)
    for name, weight in network.weights.items():
        if name not in ("w_embed1", "w_embed2"):
            weight[:] = 0
    network.weights["w_in"][0] = [1, 2**24, 1, -(2.0**24), 1]
    network.weights["w_out"][0, 0] = 1
    kernels.configure()
    got = kernels.film_mlp(network, np.ones((1, 5), np.float32), np.asarray(np.float32(0)))
    chain = np.float32(0)
    for weight in network.weights["w_in"][0]:
        chain = np.float32(chain + weight)
    assert got[0, 0] == chain == 1


def test_under_address_sanitizer(tmp_path):
    library = compile_cuda_on_cpu(SOURCES, tmp_path / "film_mlp.so", "-shared", *SANITIZERS)
    runtime = run([compiler(), "-print-file-name=libasan.so"]).strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, film_mlp_cases.__file__, str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
