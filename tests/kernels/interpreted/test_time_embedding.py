"""The Triton time embedding against the reference in fp64, up to large arguments."""

import math

import pytest
import torch
from genssl_fast.kernels.score.time_embedding import time_embedding

from genssl_fast import reference
from tests.battery import assert_close_enough


def check(t, frequencies, sin_first, dim):
    found = time_embedding(t, frequencies, sin_first, dim)
    plain = reference.score.time_embedding(t, frequencies, sin_first, dim)
    exact = reference.score.time_embedding(t.double(), frequencies.double(), sin_first, dim)
    assert_close_enough(found, plain, exact, 2, "embedding")


def frequencies(half):
    return torch.exp(-math.log(1e4) * torch.arange(half) / max(half, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("dim", [1, 2, 5, 64, 258, 2500])
@pytest.mark.parametrize("sin_first", [False, True])
def test_reference(dtype, dim, sin_first):
    t = (1000 * torch.rand(2, 3, generator=torch.Generator().manual_seed(dim))).to(dtype)
    check(t, frequencies(dim // 2), sin_first, dim)
    check(t[0, 0], frequencies(dim // 2), sin_first, dim)


def test_large_angles():
    """Where the angle is exact the result is right to 3 ulp of itself, also beside its zeros."""
    quarter_turns = torch.arange(1, 60_000, 37, dtype=torch.float64)
    t = (quarter_turns * (math.pi / 2)).float()
    found = time_embedding(t, torch.ones(1), False, 2).double()
    exact = torch.stack([torch.cos(t.double()), torch.sin(t.double())], -1)
    spacing = torch.nextafter(exact.float().abs(), torch.tensor(2.0)).double() - exact.float().abs()
    assert ((found - exact).abs() / spacing).max() <= 3


def test_quadrants_and_signs():
    t = torch.linspace(-10, 10, 4001)
    check(t, torch.ones(1), True, 2)


def test_huge_angles_stay_bounded():
    t = torch.tensor([1e10, 1e20, 3e38, -1e10, -1e20, -3e38])
    assert time_embedding(t, torch.ones(1), False, 2).abs().max() <= 1


def test_nan_and_strides():
    t = torch.tensor([[1.0, math.nan], [2.0, 3.0]]).T
    found = time_embedding(t, torch.tensor([1.0, 9.0, 0.5])[::2], False, 4)
    assert found.isnan().all(-1).tolist() == [[False, False], [True, False]]
    assert torch.equal(found[0, 1], time_embedding(torch.tensor(2.0), torch.tensor([1.0, 0.5]), False, 4))


def test_empty():
    assert time_embedding(torch.zeros(0, 2), torch.ones(2), False, 4).shape == (0, 2, 4)
