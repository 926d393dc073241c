"""The Triton search for nearest codes and the sums over them, against the reference in fp64."""

import math

import pytest
import torch
from genssl_fast.kernels.contrast.code_sums import code_sums
from genssl_fast.kernels.contrast.nearest_code import nearest_code

from genssl_fast import reference
from tests.battery import assert_close_enough


def draw(rows, codes, dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, dim, generator=generator).to(dtype) for n in (rows, codes))


def check(x, codebook):
    indices, distances = nearest_code(x, codebook)
    exact = reference.contrast.nearest_code(x.double(), codebook.double())
    assert torch.equal(indices, exact[0])
    plain = reference.contrast.code_distances(x, codebook, indices)
    assert_close_enough(distances, plain, exact[1], 2, "distances")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (70, 3, 5), (65, 130, 33), (9, 64, 100)])
def test_reference(shape, dtype):
    check(*draw(*shape, dtype))


@pytest.mark.parametrize("offset", [1.0, 1e4])
def test_far_from_the_origin(offset):
    x, codebook = draw(40, 70, 6)
    check(x + offset, codebook + offset)


def test_ties_and_duplicates():
    x, codebook = draw(20, 40, 8)
    codebook = torch.cat([codebook, codebook, codebook[:1].expand(60, 8)])
    check(x, codebook)
    check(x, codebook[:1].expand(70, 8))
    check(torch.zeros(3, 2), torch.tensor([[2.0, 2.0], [1.0, 0.0], [0.0, -1.0], [1.0, 0.0]]))


@pytest.mark.parametrize("scale", [1e-30, 1e18, 1e25])
def test_squares_outside_of_fp32(scale):
    x, codebook = draw(10, 20, 3)
    indices, _ = nearest_code(scale * x, scale * codebook)
    exact = reference.contrast.nearest_code((scale * x).double(), (scale * codebook).double())
    assert torch.equal(indices, exact[0])


def test_nan_counts_as_nearest():
    x, codebook = draw(10, 80, 4)
    x[2, 1], x[4, 0] = math.nan, math.inf
    found = nearest_code(x, codebook)
    expected = reference.contrast.nearest_code(x, codebook)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], equal_nan=True)
    codebook[70, 2] = math.nan
    assert torch.equal(nearest_code(x, codebook)[0], reference.contrast.nearest_code(x, codebook)[0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_sums(dtype, weighted):
    x, _ = draw(150, 1, 37, dtype)
    indices = torch.arange(150) * 7 % 5 - 1
    weights = draw(1, 1, 150, dtype)[0][0] if weighted else None
    found = code_sums(x, indices, weights, 6)
    plain = reference.contrast.code_sums(x, indices, weights, 6)
    exact = reference.contrast.code_sums(
        x.double(), indices, None if weights is None else weights.double(), 6
    )  # fmt: skip
    for name, *values in zip(("counts", "sums"), found, plain, exact):
        assert_close_enough(*values, 2, name)


def test_empty():
    x, codebook = draw(0, 3, 2)
    assert [t.shape for t in nearest_code(x, codebook)] == [(0,), (0,)]
    counts, sums = code_sums(x, torch.zeros(0, dtype=torch.int64), None, 3)
    assert not counts.any()
    assert not sums.any()
