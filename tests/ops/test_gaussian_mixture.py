"""Log-densities of Gaussian mixtures: the battery, torch.distributions, cancellation, bad input."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import genssl_fast
from genssl_fast import reference
from genssl_fast.ops.gaussian_mixture import component_log_densities
from tests.battery import Case
from tests.ops.composite_battery import CompositeBattery


def inputs_with(*scale_shape):
    """z, means, log_scales, logits of three components."""

    def inputs(dtype, size, generator):
        shapes = ((size, 5), (3, 5), scale_shape, (3,))
        z, means, log_scales, logits = (torch.randn(shape, generator=generator) for shape in shapes)
        return tuple(t.to(dtype) for t in (z, means, log_scales / 4, logits))

    return inputs


def ours(z, means, log_scales, logits):
    return genssl_fast.gaussian_mixture_log_prob(z, means, log_scales, torch.softmax(logits, -1))


def plain(z, means, log_scales, logits):
    log_scales = log_scales.expand(3) if log_scales.ndim == 0 else log_scales
    weights = torch.softmax(logits, -1)
    return reference.coupling.gaussian_mixture_log_prob(z, means, log_scales, weights)


class TestGaussianMixture(CompositeBattery):
    cases = {
        "isotropic": Case(ours, plain, inputs_with(), differentiable=(0, 1, 2, 3)),
        "scale_per_component": Case(ours, plain, inputs_with(3), differentiable=(0, 1, 2, 3)),
        "diagonal": Case(ours, plain, inputs_with(3, 5), differentiable=(0, 1, 2, 3)),
    }
    errors = {
        "means": (
            lambda: genssl_fast.gaussian_mixture_log_prob(
                torch.zeros(1, 2), torch.zeros(3, 4), torch.zeros(())
            ),
            ValueError,
            r"means: expected shape \[K, D\] = \[K, 2\], K at least 1, got \[3, 4\]",
        ),
        "log_scales": (
            lambda: genssl_fast.gaussian_mixture_log_prob(
                torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(2)
            ),
            ValueError,
            r"log_scales: expected shape \[\], \[K\] or \[K, D\] = \[3, 2\], got \[2\]",
        ),
        "zero weight": (
            lambda: genssl_fast.gaussian_mixture_log_prob(
                torch.zeros(1, 2), torch.zeros(2, 2), torch.zeros(()), torch.tensor([0.0, 1.0])
            ),
            ValueError,
            "weights: expected positive probabilities, got a smallest of 0.0",
        ),
        "sum": (
            lambda: genssl_fast.gaussian_mixture_log_prob(
                torch.zeros(1, 2), torch.zeros(2, 2), torch.zeros(()), torch.tensor([1.0, 1.0])
            ),
            ValueError,
            "weights: expected probabilities that sum to one, got a sum of 2.0",
        ),
    }


@pytest.mark.parametrize("scale_shape", [(), (3,), (3, 5)])
def test_equals_torch_distributions(scale_shape):
    z, means, log_scales, logits = inputs_with(*scale_shape)(torch.float64, 9, None)
    scales = log_scales.exp().reshape(-1, 1).expand(3, 5) if log_scales.ndim < 2 else log_scales.exp()
    expected = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(means, scales), 1))
    torch.testing.assert_close(ours(z, means, log_scales, logits), expected.log_prob(z))


def test_equal_weights_are_the_default():
    z, means, log_scales, _ = inputs_with(3)(torch.float32, 4, None)
    expected = ours(z, means, log_scales, torch.zeros(3))
    torch.testing.assert_close(genssl_fast.gaussian_mixture_log_prob(z, means, log_scales), expected)


def test_narrow_components_far_from_the_origin():
    """The expanded square would lose every digit in fp32."""
    z, means, _, logits = inputs_with()(torch.float32, 30, torch.Generator().manual_seed(0))
    means = 100 * means
    z, log_scale = means[torch.arange(30) % 3] + 0.01 * z, torch.tensor(-4.6)
    found = ours(z, means, log_scale, logits)
    exact = plain(*(t.double() for t in (z, means, log_scale, logits)))
    assert (found - exact).abs().max() <= 1e-5


@pytest.mark.parametrize(("shift", "log_scale"), [(1e7, 0.0), (1.0, -12.0), (1.0, -17.0)])
@pytest.mark.parametrize("scale_shape", [(), (3,), (3, 5)])
def test_collapsing_components(scale_shape, shift, log_scale):
    """The expanded square would lose every digit in fp64, too."""
    noise, means, log_scales, logits = inputs_with(*scale_shape)(
        torch.float32, 30, torch.Generator().manual_seed(0)
    )
    means, log_scales = shift * means, log_scales + log_scale
    component = torch.arange(30) % 3
    scales = torch.exp(log_scales.expand(3) if log_scales.ndim == 0 else log_scales)
    z = means[component] + noise * scales[component].reshape(30, -1)
    found = ours(z, means, log_scales, logits)
    exact = plain(*(t.double() for t in (z, means, log_scales, logits)))
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("scale_shape", [(), (3,), (3, 5)])
def test_matrix_product_and_its_derivatives_equal_the_direct_form(scale_shape):
    z, means, log_scales, _ = inputs_with(*scale_shape)(torch.float64, 4, None)

    def product(*args):
        return component_log_densities(*args).logsumexp(-1).square().sum()

    def direct(z, means, log_scales):
        log_scales = log_scales.expand(3) if log_scales.ndim == 0 else log_scales
        ones = torch.ones(3, dtype=torch.float64)
        return reference.coupling.gaussian_mixture_log_prob(z, means, log_scales, ones).square().sum()

    for derive in (torch.func.grad, torch.func.hessian):
        found, expected = (derive(f, argnums=(0, 1, 2))(z, means, log_scales) for f in (product, direct))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by_dimension", [False, True])
@pytest.mark.parametrize(("place", "apart", "log_scale"), [(1e4, 2e-3, -9.2), (1.0, 2.0**-23, -16.1)])
def test_several_narrow_components_near_a_point(place, apart, log_scale, by_dimension):
    """Between two of them, far from the origin and from a third."""
    means = torch.tensor([[place, 0.0], [place + apart, 0.0], [-3 * place, 0.0]])
    z = torch.stack([means[0], means[1], (means[0] + means[1]) / 2])
    log_scales = torch.full((3, 2) if by_dimension else (3,), log_scale)
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    found = ours(z, means, log_scales, logits)
    exact = plain(*(t.double() for t in (z, means, log_scales, logits)))
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)
