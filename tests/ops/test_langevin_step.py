"""Langevin steps: the battery, per-sample step sizes, zero scores, bad input."""

import math

import pytest
import torch

import genssl_fast
from genssl_fast import reference
from genssl_fast.ops.integrate import raw_langevin_step
from tests.battery import Battery, Case


def tensors_like_x(count):
    def inputs(dtype, size, generator):
        return tuple(torch.randn(size, 4, 9, generator=generator).to(dtype) for _ in range(count))

    return inputs


def drawn(x):
    """The step's own noise: test_random.py compares it with the reference's, which is 4 ulp away."""
    return genssl_fast.random_normal(x.shape, seed=3, step=4, first_sample=5, device=x.device)


def plain(x, score, noise, snr=math.nan, step_size=math.nan, alpha=1.0):
    return reference.integrate.langevin_step(x, score, noise, snr, step_size, alpha, 0, None, 0, None, 0)


def ours(x, score, **options):
    return genssl_fast.langevin_step(x, score, seed=3, step=4, first_sample=5, **options)


class TestLangevinStep(Battery):
    cases = {
        "snr": Case(
            lambda x, s: ours(x, s, snr=0.16, alpha=0.9),
            lambda x, s: plain(x, s, drawn(x), snr=0.16, alpha=0.9),
            tensors_like_x(2),
            differentiable=(0, 1),
            raw=lambda x, s: (
                raw_langevin_step,
                (x, s, None, 0.16, math.nan, 1.0, 3, None, 4, None, 5),
            ),
        ),
        "snr_with_noise": Case(
            lambda x, s, z: ours(x, s, snr=0.3, noise=z),
            lambda x, s, z: plain(x, s, z, snr=0.3),
            tensors_like_x(3),
            differentiable=(0, 1, 2),
        ),
        "step_size": Case(
            lambda x, s: ours(x, s, step_size=0.02),
            lambda x, s: plain(x, s, drawn(x), step_size=0.02),
            tensors_like_x(2),
            differentiable=(0, 1),
        ),
    }
    errors = {
        "both": (
            lambda: ours(torch.zeros(2), torch.zeros(2), snr=0.1, step_size=0.1),
            ValueError,
            "snr, step_size: expected exactly one of them, got snr and step_size",
        ),
        "neither": (lambda: ours(torch.zeros(2), torch.zeros(2)), ValueError, "got neither"),
        "negative": (
            lambda: ours(torch.zeros(2), torch.zeros(2), step_size=-0.1),
            ValueError,
            "step_size: expected a number of at least 0, got -0.1",
        ),
        "shape": (
            lambda: ours(torch.zeros(2, 3), torch.zeros(3, 2), snr=0.1),
            ValueError,
            "score: expected the shape of x",
        ),
        "dtype": (
            lambda: ours(torch.zeros(2), torch.zeros(2).half(), snr=0.1),
            TypeError,
            "score: expected the dtype of x",
        ),
    }


@pytest.mark.parametrize("elements", [1, 5, 64, 3000])
def test_a_sample_does_not_depend_on_its_neighbours(elements):
    x, score = torch.randn(7, elements), torch.randn(7, elements) * torch.arange(1, 8)[:, None]
    whole = genssl_fast.langevin_step(x, score, snr=0.16, seed=1)
    for b in range(7):
        alone = genssl_fast.langevin_step(x[b : b + 1], score[b : b + 1], snr=0.16, seed=1, first_sample=b)
        assert torch.equal(alone[0], whole[b])


def test_zero_score_stays():
    x = torch.randn(3, 8)
    score = torch.zeros(3, 8)
    score[1] = 1.0
    stepped = genssl_fast.langevin_step(x, score, snr=0.5, seed=0)
    assert torch.equal(stepped[[0, 2]], x[[0, 2]])
    assert not torch.equal(stepped[1], x[1])


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_extreme_scores_stay_finite(scale):
    x, score = torch.zeros(2, 50), torch.randn(2, 50) * scale
    stepped = genssl_fast.langevin_step(x, score, snr=0.1, seed=0)
    exact = genssl_fast.langevin_step(x.double(), score.double(), snr=0.1, seed=0)
    torch.testing.assert_close(stepped.double(), exact, rtol=1e-5, atol=0)
