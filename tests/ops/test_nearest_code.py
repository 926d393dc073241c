"""Nearest codes: the battery, the exact argmin of fp64, ties, far and degenerate data, memory, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import genssl_fast
from bench.timing import peak_bytes
from genssl_fast import reference
from genssl_fast.ops.nearest_code import raw_code_sums, raw_nearest_code
from tests.battery import Battery, Case, ulp


def inputs_with(num_codes, dim):
    """x [size, D] and a codebook."""

    def inputs(dtype, size, generator):
        shapes = ((size, dim), (num_codes, dim))
        return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)

    return inputs


def distances(x, codebook):
    return genssl_fast.nearest_code(x, codebook).distances


def plain_distances(x, codebook):
    return reference.contrast.nearest_code(x, codebook)[1]


def everything(x, codebook, weights):
    found = genssl_fast.nearest_code(x, codebook, sums=True, weights=weights)
    return found.distances, found.counts, found.sums


def plain_everything(x, codebook, weights):
    indices, found = reference.contrast.nearest_code(x, codebook)
    return found, *reference.contrast.code_sums(x, indices, weights, len(codebook))


def weighted(dtype, size, generator):
    weights = torch.rand(size, generator=generator).to(dtype)
    return *inputs_with(5, 3)(dtype, size, generator), weights


def with_indices(function):
    """Sums of x by weights, for fixed indices of which some leave rows out."""

    def call(x, weights):
        return function(x, torch.arange(len(x)) % 4 - 1, weights)

    return call


class TestNearestCode(Battery):
    cases = {
        "several_panels": Case(
            distances,
            plain_distances,
            inputs_with(70, 19),
            differentiable=(0, 1),
            raw=lambda x, codebook: (raw_nearest_code, (x, codebook)),
            sizes=(1, 3, 50),
        ),
        "sums": Case(
            everything,
            plain_everything,
            weighted,
            differentiable=(0, 1, 2),
        ),
        "code_sums": Case(
            with_indices(lambda x, indices, w: tuple(genssl_fast.code_sums(x, indices, 3, weights=w))),
            with_indices(lambda x, indices, w: reference.contrast.code_sums(x, indices, w, 3)),
            lambda dtype, size, generator: weighted(dtype, size, generator)[::2],
            differentiable=(0, 1),
            raw=lambda x, w: (raw_code_sums, (x, torch.arange(len(x)) % 4 - 1, w, 3)),
        ),
    }
    errors = {
        "x": (
            lambda: genssl_fast.nearest_code(torch.zeros(2), torch.zeros(2, 3)),
            ValueError,
            r"x: expected shape \[N, D\] with D of at least 1, got \[2\]",
        ),
        "integers": (
            lambda: genssl_fast.nearest_code(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)),
            TypeError,
            "x: expected dtype float32, float64, bfloat16, float16, got torch.int64",
        ),
        "codebook": (
            lambda: genssl_fast.nearest_code(torch.zeros(2, 3), torch.zeros(2, 4)),
            ValueError,
            r"codebook: expected shape \[K, D\] = \[K, 3\], K from 1 to 2\^24, got \[2, 4\]",
        ),
        "no codes": (
            lambda: genssl_fast.nearest_code(torch.zeros(2, 3), torch.zeros(0, 3)),
            ValueError,
            "codebook: expected shape",
        ),
        "dtypes": (
            lambda: genssl_fast.nearest_code(torch.zeros(2, 3), torch.zeros(2, 3).double()),
            TypeError,
            "codebook: expected the dtype of x",
        ),
        "weights": (
            lambda: genssl_fast.nearest_code(
                torch.zeros(2, 3), torch.zeros(2, 3), sums=True, weights=torch.ones(3)
            ),
            ValueError,
            r"weights: expected shape \[N\] = \[2\], got \[3\]",
        ),
        "weights without sums": (
            lambda: genssl_fast.nearest_code(torch.zeros(2, 3), torch.zeros(2, 3), weights=torch.ones(2)),
            ValueError,
            "weights: expected None without sums",
        ),
        "indices": (
            lambda: genssl_fast.code_sums(torch.zeros(2, 3), torch.tensor([0, 4]), 4),
            ValueError,
            "indices: expected less than num_codes, 4, got 4",
        ),
        "raw indices": (
            lambda: raw_code_sums(torch.zeros(2, 3), torch.tensor([0, 4]), None, 4),
            RuntimeError,
            "indices: expected less than 4, got 4",
        ),
    }


def check_exact(x, codebook):
    """The indices of fp64, and what the specification allows in the distance."""
    found = genssl_fast.nearest_code(x, codebook)
    indices, exact = reference.contrast.nearest_code(x.double(), codebook.double())
    assert torch.equal(found.indices, indices)
    chosen = reference.contrast.code_distances(x.double(), codebook.double(), found.indices)
    norms = x.double().square().sum(-1) + codebook.double()[found.indices].square().sum(-1)
    spacing = torch.tensor([ulp(norm, found.distances.dtype) for norm in norms.tolist()])
    assert ((chosen - exact).abs() <= 4 * spacing).all()
    tiny = torch.finfo(found.distances.dtype).tiny
    assert ((found.distances - exact).abs() <= torch.finfo(found.distances.dtype).eps * exact + tiny).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 120),
    num_codes=st.integers(1, 100),
    dim=st.integers(1, 40),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_exact_indices_over_shapes(dtype, rows, num_codes, dim, offset, seed):
    x, codebook = inputs_with(num_codes, dim)(torch.float32, rows, torch.Generator().manual_seed(seed))
    check_exact((x + offset).to(dtype), (codebook + offset).to(dtype))


@pytest.mark.parametrize("num_codes", [1, 2, 31, 33, 257])
@pytest.mark.parametrize("dim", [1, 64, 515])
def test_exact_indices(num_codes, dim):
    check_exact(*inputs_with(num_codes, dim)(torch.float32, 210, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-19, 1e-8, 1e15, 1e18, 1e25])
def test_exact_indices_where_squares_leave_fp32(scale):
    x, codebook = inputs_with(40, 5)(torch.float64, 60, torch.Generator().manual_seed(0))
    x, codebook = (scale * x).float(), (scale * codebook).float()
    found = genssl_fast.nearest_code(x, codebook)
    assert torch.equal(found.indices, reference.contrast.nearest_code(x.double(), codebook.double())[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ties_go_to_the_lowest_index(dtype):
    """Points half-way between codes, on a grid where every difference is exact."""
    codebook = torch.tensor([[3.0, 3.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=dtype)
    x = torch.tensor([[0.0, 0.0], [0.5, 0.5], [-0.5, 0.5], [2.0, 1.5], [1.0, 0.0]], dtype=dtype)
    assert genssl_fast.nearest_code(x, codebook).indices.tolist() == [1, 1, 2, 0, 1]
    far = 1024.0 if dtype != torch.bfloat16 else 4.0
    assert genssl_fast.nearest_code(x + far, codebook + far).indices.tolist() == [1, 1, 2, 0, 1]


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3])
def test_duplicated_and_nearly_equal_codes(spread):
    generator = torch.Generator().manual_seed(0)
    x, codes = inputs_with(8, 24)(torch.float32, 100, generator)
    codebook = codes.repeat(9, 1) * (1 + spread * torch.rand(72, 1, generator=generator))
    check_exact(x, codebook)
    check_exact(x, codes[:1].expand(50, 24))
    check_exact(codes, codebook)


def test_codes_far_from_one_another():
    """The mean of the codes lies far from all of them."""
    x, codebook = inputs_with(90, 12)(torch.float32, 100, torch.Generator().manual_seed(0))
    side = torch.tensor([-1e5, 1e5])
    check_exact(x + side[torch.arange(100) % 2, None], codebook + side[torch.arange(90) % 2, None])


@pytest.mark.parametrize("far", [1e2, 1e6, 1e30])
def test_codes_with_an_outlier(far):
    """It loosens the bound of the rounding for all, and must not decide for any."""
    x, codebook = inputs_with(90, 12)(torch.float32, 100, torch.Generator().manual_seed(0))
    codebook[41] = far
    codebook[50:] = codebook[:40] * (1 + 1e-6)
    check_exact(x, codebook)


def test_nan_counts_as_nearest():
    x, codebook = inputs_with(40, 6)(torch.float32, 30, torch.Generator().manual_seed(0))
    x[3, 2] = math.nan
    x[5, 1] = math.inf
    found = genssl_fast.nearest_code(x, codebook)
    indices, plain = reference.contrast.nearest_code(x, codebook)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.distances, plain, equal_nan=True)
    assert found.indices[3] == 0
    assert found.distances[3].isnan()
    assert found.distances[5] == math.inf
    codebook[17, 4] = math.nan
    assert genssl_fast.nearest_code(x, codebook).indices[:3].tolist() == [17, 17, 17]
    assert genssl_fast.nearest_code(x[:4], codebook[17:18]).indices.tolist() == [0, 0, 0, 0]


def test_row_is_the_same_in_every_batch():
    x, codebook = inputs_with(300, 33)(torch.float32, 137, torch.Generator().manual_seed(0))
    codebook[100:200] = codebook[:100]  # undecided rows, too
    whole = genssl_fast.nearest_code(x, codebook)
    for part in (slice(0, 1), slice(3, 16), slice(70, 137)):
        found = genssl_fast.nearest_code(x[part], codebook)
        assert torch.equal(found.indices, whole.indices[part])
        assert torch.equal(found.distances, whole.distances[part])


def test_sums_do_not_depend_on_the_number_of_threads():
    x, codebook = inputs_with(50, 16)(torch.float32, 20_000, torch.Generator().manual_seed(0))
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(genssl_fast.nearest_code(x, codebook, sums=True))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for found in results[1:] for a, b in zip(found, results[0]))


def test_sums_of_many_equal_rows_keep_their_digits():
    x = torch.full((200_000, 2), 0.1)
    found = genssl_fast.nearest_code(x, torch.zeros(1, 2), sums=True)
    torch.testing.assert_close(found.sums.double(), 200_000 * x[:1].double(), rtol=1e-7, atol=0)


def test_indices_take_no_gradient_and_distances_do():
    x, codebook = (t.requires_grad_() for t in inputs_with(5, 3)(torch.float32, 4, None))
    found = genssl_fast.nearest_code(x, codebook)
    assert not found.indices.requires_grad
    assert found.distances.requires_grad


def extra_bytes(rows, codes, dim):
    x, codebook = inputs_with(codes, dim)(torch.float32, rows, torch.Generator().manual_seed(0))
    return peak_bytes(lambda: genssl_fast.nearest_code(x, codebook, sums=True), "cpu")


def test_memory_is_linear_in_the_rows():
    """By PyTorch's allocator: the results. A matrix of distances would be 64 MB."""
    rows, codes, dim = 1 << 14, 1 << 10, 16
    assert extra_bytes(rows, codes, dim) <= 12 * rows + 4 * codes * (dim + 1) + 4096


@pytest.mark.exhaustive
def test_peak_memory_of_a_million_rows(tmp_path):
    """K = 8192, N = 2^20 within 2 GB more than the inputs take, by the whole process."""
    script = """
import resource, torch, genssl_fast
x, codebook = torch.randn(1 << 20, 64), torch.randn(8192, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
genssl_fast.nearest_code(x, codebook, sums=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2e9
