"""Time embeddings: the battery, the conventions of other libraries, large times."""

import math

import pytest
import torch

import genssl_fast
from genssl_fast import reference
from genssl_fast.ops.score import raw_time_embedding, sinusoidal_frequencies
from tests.battery import Battery, Case

CPU = torch.device("cpu")


def times(dtype, size, generator):
    return (torch.rand(size, generator=generator).to(dtype) * 10,)


def plain(t, dim, convention, sin_first):
    frequencies = sinusoidal_frequencies(dim, convention, 1e4, CPU).to(t.device)
    return reference.score.time_embedding(t, frequencies, sin_first, dim)


class TestTimeEmbedding(Battery):
    cases = {
        "dit": Case(
            lambda t: genssl_fast.time_embedding(t, 16),
            lambda t: plain(t, 16, "dit", False),
            times,
            raw=lambda t: (raw_time_embedding, (t, torch.rand(4), True, 9)),
        ),
        "odd": Case(
            lambda t: genssl_fast.time_embedding(t, 7, convention="diffusers"),
            lambda t: plain(t, 7, "diffusers", True),
            times,
        ),
    }
    errors = {
        "kind": (
            lambda: genssl_fast.time_embedding(torch.zeros(1), 4, "cosine"),
            ValueError,
            "kind: expected one of 'sinusoidal', 'fourier', got 'cosine'",
        ),
        "convention": (
            lambda: genssl_fast.time_embedding(torch.zeros(1), 4, convention="adm"),
            ValueError,
            "convention: expected one of 'dit'",
        ),
        "dim": (lambda: genssl_fast.time_embedding(torch.zeros(1), 0), ValueError, "dim: expected"),
        "frequencies": (
            lambda: genssl_fast.time_embedding(torch.zeros(1), 4, "fourier"),
            ValueError,
            r"frequencies: expected a tensor \[2\]",
        ),
        "frequency count": (
            lambda: genssl_fast.time_embedding(torch.zeros(1), 4, frequencies=torch.zeros(3)),
            ValueError,
            r"frequencies: expected shape \[dim // 2\] = \[2\], got \[3\]",
        ),
        "integers": (
            lambda: genssl_fast.time_embedding(torch.arange(3), 4),
            TypeError,
            "t: expected dtype",
        ),
    }


@pytest.mark.parametrize("dim", [6, 32, 33])
def test_diffusers_convention(dim):
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    t = torch.tensor([0.0, 1.0, 17.0, 999.0])
    expected = embeddings.get_timestep_embedding(t, dim)
    found = genssl_fast.time_embedding(t, dim, convention="diffusers")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)  # theirs rounds f·t at 999 in fp32


def test_dit_convention_formula():
    t, half = torch.tensor([3.0], dtype=torch.float64), 4
    f = torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float64) / half)
    expected = torch.cat([torch.cos(3.0 * f), torch.sin(3.0 * f)])
    found = genssl_fast.time_embedding(t, 8)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)  # frequencies are kept in fp32


def test_fourier():
    t, w = torch.rand(5), torch.randn(8) * 16
    angle = 2 * math.pi * w * t[:, None]
    expected = torch.cat([angle.cos(), angle.sin()], -1)
    found = genssl_fast.time_embedding(t, 16, "fourier", frequencies=w)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5])
def test_range_reduction(scale):
    t = torch.linspace(-scale, scale, 4001)
    found = genssl_fast.time_embedding(t, 2, frequencies=torch.ones(1)).double()
    exact = torch.stack([t.double().cos(), t.double().sin()], -1)
    assert (found - exact).abs().max() < 2.5e-7


def test_any_shape():
    t = torch.rand(2, 3, 4)
    assert genssl_fast.time_embedding(t, 10).shape == (2, 3, 4, 10)
    assert genssl_fast.time_embedding(torch.tensor(0.5), 10).shape == (10,)
