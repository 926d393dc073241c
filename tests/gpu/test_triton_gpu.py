"""Triton kernels on a GPU: the CPU's numbers, CUDA graphs, no synchronisation, large tensors."""

import contextlib

import pytest
import torch

import genssl_fast
from genssl_fast import CoefficientTable, Stream, step_counter
from tests.ops.test_random import FUNCTIONS, assert_within_ulp

pytestmark = pytest.mark.gpu

ADDRESS = {"seed": 2**63 + 17, "step": step_counter(Stream.STEP, 9), "first_sample": 2**32 - 2}
SHAPES = [(1,), (600, 2), (17, 64), (3, 10, 103), (5, 3, 64, 64)]
TABLE = CoefficientTable.from_rows(
    [
        {"prediction": [0.3, 0.2], "denoise": [1.1, -0.5], "clip": 1.0, "noise": 0.5},
        {"state": [0.5], "prediction": [0.7], "output": -0.25, "denoise": [1.2, -0.8]},
    ]
)


@pytest.fixture(params=["float32", "bfloat16", "float16", "float64"])
def dtype(request):
    return getattr(torch, request.param)


def normal_pair(shape, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).to(device) for _ in range(2)]


def operations(x, y, seed, step):
    """Every operation that Triton carries, called on (x, y)."""
    rows = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    address = {"seed": seed, "step": step, "first_sample": 5}
    return {
        "row": lambda: genssl_fast.sampler_step(x, y, TABLE, 0, history=([y], []), **address),
        "rows": lambda: genssl_fast.sampler_step(x, y, TABLE, rows, history=([y], []), **address),
        "langevin": lambda: genssl_fast.langevin_step(x, y, snr=0.16, **address),
        "embedding": lambda: genssl_fast.time_embedding(1000 * x.flatten()[:50], 258),
        "normal": lambda: genssl_fast.random_normal(x.shape, device=x.device, dtype=x.dtype, **address),
    }


@contextlib.contextmanager
def synchronisation_forbidden():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("distribution", FUNCTIONS)
def test_random_equals_cpu(distribution, shape):
    on_cpu, on_gpu = (
        FUNCTIONS[distribution](shape, device=device, **ADDRESS).cpu() for device in ("cpu", "cuda")
    )
    if distribution == 1:
        assert_within_ulp(on_gpu, on_cpu, 4)
    else:
        assert torch.equal(on_gpu, on_cpu)


@pytest.mark.parametrize("shape", [(600, 2), (17, 64), (5, 3, 64, 64)])
@pytest.mark.parametrize("name", ["row", "rows", "langevin", "embedding"])
def test_steps_equal_cpu(name, shape, dtype):
    on_cpu, on_gpu = (
        operations(*normal_pair(shape, dtype, device), 2**40, 3)[name]() for device in ("cpu", "cuda")
    )
    precision = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps
    torch.testing.assert_close(on_gpu, on_cpu, rtol=8 * precision, atol=8 * precision, check_device=False)


@pytest.mark.parametrize("shape", [(600, 2), (5, 3, 64, 64)])
def test_same_bits_whatever_the_batch(shape, dtype):
    x, y = normal_pair(shape, dtype, "cuda")
    half = shape[0] // 2
    for step in (
        lambda x, y, first: genssl_fast.sampler_step(x, y, TABLE, 0, seed=1, first_sample=first)[0],
        lambda x, y, first: genssl_fast.langevin_step(x, y, snr=0.16, seed=1, first_sample=first),
    ):
        parts = [step(x[:half], y[:half], 0), step(x[half:], y[half:], half)]
        assert torch.equal(step(x, y, 0), torch.cat(parts))


@pytest.mark.parametrize("name", ["row", "rows", "langevin", "normal"])
def test_cuda_graph_draws_fresh_noise(name):
    x, y = normal_pair((5, 3, 64, 64), torch.float32, "cuda")
    seed, step = (torch.tensor(value, device="cuda") for value in (2**40, 3))
    captured_call = operations(x, y, seed, step)[name]
    captured_call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = captured_call()
    for new_seed, new_step in ((2**41 + 1, 3), (2**41 + 1, 2**24 + 4)):
        seed.fill_(new_seed)
        step.fill_(new_step)
        graph.replay()
        expected = operations(x, y, new_seed, new_step)[name]()
        torch.testing.assert_close(captured, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["row", "rows", "langevin", "embedding", "normal"])
def test_no_synchronisation(name):
    x, y = normal_pair((5, 3, 64, 64), torch.float32, "cuda")
    seed, step = (torch.tensor(value, device="cuda") for value in (2**40, 3))
    operation = operations(x, y, seed, step)[name]
    operation()
    with synchronisation_forbidden():
        operation()


def test_more_than_32_bit_addresses():
    shape = (2**15 + 2, 2**16)
    found = genssl_fast.random_uniform(shape, seed=3, dtype=torch.float16, device="cuda")
    last = genssl_fast.random_uniform((1, 2**16), seed=3, first_sample=shape[0] - 1)
    assert torch.equal(found[-1:].cpu(), last.half())


def test_second_stream_and_integer_seed_of_one():
    """Triton would turn an argument of 1 into a constant and small integers into 32-bit ones."""
    expected = [genssl_fast.random_uniform((3, 9), seed=seed).cuda() for seed in (1, 2, 2**31, -1)]
    with torch.cuda.stream(torch.cuda.Stream()):
        found = [genssl_fast.random_uniform((3, 9), seed=seed, device="cuda") for seed in (1, 2, 2**31, -1)]
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
