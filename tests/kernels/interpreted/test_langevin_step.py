"""The Triton Langevin step against the reference in fp64, and what must be exactly so."""

import math

import pytest
import torch
from genssl_fast.kernels.common.tile import TILE_ELEMENTS
from genssl_fast.kernels.integrate.langevin_step import PARTIALS_BLOCK, langevin_step

from genssl_fast import reference
from tests.battery import assert_close_enough

COUNTER = (2**40 + 3, None, 2**24 + 5, None, 2**33)
NAN = math.nan
SHAPES = [(1, 1), (5, 3, 7), (300, 2), (6, 64), (3, 2100)]


def tensors(shape, dtype):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def check(x, score, noise, snr, step_size, counter=COUNTER):
    arguments = (snr, step_size, 0.9, *counter)
    found = langevin_step(x, score, noise, *arguments)
    plain = reference.integrate.langevin_step(x, score, noise, *arguments)
    wide = [None if t is None else t.double() for t in (x, score, noise)]
    exact = reference.integrate.langevin_step(*wide, *arguments)
    assert_close_enough(found, plain, exact, 2, "x_next")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("snr", "step_size"), [(0.16, NAN), (NAN, 0.01)])
def test_shapes(shape, snr, step_size):
    x, score, noise = tensors(shape, torch.float32)
    check(x, score, None, snr, step_size)
    check(x, score, noise, snr, step_size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(5, 33), (2, 1500)])
def test_dtypes(dtype, shape):
    x, score, noise = tensors(shape, dtype)
    check(x, score, noise, 0.16, NAN)
    if dtype == torch.float16:
        check(x, score, None, 0.16, NAN)


@pytest.mark.parametrize("size", [40, 1500])
def test_sample_at_rest_stays(size):
    x, score, _ = tensors((3, size), torch.float32)
    score[1] = 0
    found = langevin_step(x, score, None, 0.16, NAN, 1.0, *COUNTER)
    assert torch.equal(found[1], x[1])
    assert not torch.equal(found[0], x[0])


def test_more_tiles_than_are_added_at_a_time():
    x, score, noise = tensors((1, TILE_ELEMENTS * PARTIALS_BLOCK.value + 5), torch.float32)
    check(x, score, noise, 0.16, NAN)


@pytest.mark.parametrize("size", [40, 1500])
@pytest.mark.parametrize(("scale", "snr"), [(1e30, 0.16), (1e-22, 1e-4)])
def test_extreme_scores(size, scale, snr):
    """Squares that fp32 cannot hold."""
    x, score, noise = tensors((2, size), torch.float32)
    exact = reference.integrate.langevin_step(
        x.double(), score.double() * scale, noise.double(), snr, NAN, 1.0, *COUNTER
    )
    found = langevin_step(x, score * scale, noise, snr, NAN, 1.0, *COUNTER)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [40, 1500])
def test_sample_does_not_depend_on_its_batch(size):
    x, score, _ = tensors((7, size), torch.float32)
    whole = langevin_step(x, score, None, 0.16, NAN, 1.0, *COUNTER)
    counter = (*COUNTER[:-1], COUNTER[-1] + 4)
    part = langevin_step(x[4:6], score[4:6], None, 0.16, NAN, 1.0, *counter)
    assert torch.equal(part, whole[4:6])


def test_tensors_override_integers():
    x, score, _ = tensors((3, 1500), torch.float32)
    seed, _, step, _, sample = COUNTER
    counter = (0, torch.tensor(seed), 0, torch.tensor(step), sample)
    expected = langevin_step(x, score, None, 0.16, NAN, 1.0, *COUNTER)
    assert torch.equal(langevin_step(x, score, None, 0.16, NAN, 1.0, *counter), expected)


def test_empty():
    for shape in ((0, 3), (3, 0)):
        x = torch.zeros(shape)
        assert langevin_step(x, x, None, 0.16, NAN, 1.0, *COUNTER).shape == shape
