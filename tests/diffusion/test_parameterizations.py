import itertools

import pytest
import torch

from genssl_fast.diffusion import PARAMETERIZATIONS, VPSDE, conversion, convert, target

PAIRS = list(itertools.product(PARAMETERIZATIONS, PARAMETERIZATIONS))


@pytest.fixture
def noised():
    x0, noise = torch.randn(2, 6, 3, dtype=torch.float64)
    alpha = torch.tensor([1.0, 0.99, 0.9, 0.5, 0.1, 1e-3], dtype=torch.float64)
    sigma = torch.tensor([1e-4, 0.1, 0.8, 3.0, 0.7, 1.0], dtype=torch.float64)
    return x0, noise, alpha, sigma, alpha[:, None] * x0 + sigma[:, None] * noise


def test_targets_are_their_definitions(noised):
    x0, noise, alpha, sigma, _ = noised
    expected = {
        "noise": noise,
        "score": -noise / sigma[:, None],
        "denoised": x0,
        "velocity": alpha[:, None] * noise - sigma[:, None] * x0,
        "flow": noise - x0,
    }
    assert set(expected) == set(PARAMETERIZATIONS)
    for name, value in expected.items():
        torch.testing.assert_close(target(x0, noise, alpha, sigma, name), value)


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_every_conversion_turns_one_target_into_the_other(noised, source, to):
    x0, noise, alpha, sigma, x = noised
    value = target(x0, noise, alpha, sigma, source)
    expected = target(x0, noise, alpha, sigma, to)
    got = convert(value, x, alpha, sigma, source=source, to=to)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_conversion_to_itself_changes_nothing(noised, name):
    _, _, alpha, sigma, _ = noised
    of_x, of_value = conversion(name, name, alpha, sigma)
    assert torch.equal(of_x.abs(), torch.zeros_like(alpha))
    torch.testing.assert_close(of_value, torch.ones_like(alpha))


@pytest.mark.parametrize("source", PARAMETERIZATIONS)
def test_denoised_is_finite_without_noise(source):
    of_x, of_value = conversion(source, "denoised", torch.ones(1), torch.zeros(1))
    assert of_x.isfinite().all()
    assert of_value.isfinite().all()


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_fp32_coefficients_are_exact_to_fp32(source, to):
    t = torch.tensor([1e-5, 1e-3, 0.5, 1.0])
    alpha, sigma = VPSDE().alpha(t), VPSDE().sigma(t)
    single = conversion(source, to, alpha, sigma)
    double = conversion(source, to, alpha.double(), sigma.double())
    for got, expected in zip(single, double):
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-9)


def test_unknown_names_are_listed():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="parameterization: expected one of 'noise', 'score'"):
        conversion("epsilon", "noise", one, one)
