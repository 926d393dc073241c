"""The measures of quality against closed forms and against the known values on digits."""

import numpy as np
import pytest
import torch

from genssl_fast.data import load_digits
from genssl_fast.metrics import (
    forest_two_sample_accuracy,
    frechet_distance,
    principal_components,
)


def with_moments(mean, covariance, count=50):
    """Samples whose mean and unbiased covariance are exactly these."""
    noise = np.random.RandomState(0).randn(count, len(mean))
    noise -= noise.mean(axis=0)
    whiten = np.linalg.inv(np.linalg.cholesky(np.cov(noise, rowvar=False)))
    return noise @ whiten.T @ np.linalg.cholesky(covariance).T + mean


def test_distance_of_commuting_gaussians():
    first = with_moments([0.0, 0.0, 0.0], np.diag([1.0, 4.0, 9.0]))
    second = with_moments([1.0, 2.0, 2.0], np.diag([4.0, 4.0, 1.0]))
    expected = 9 + (1 - 2) ** 2 + (3 - 1) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected)


def test_distance_of_gaussians_that_do_not_commute():
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[3.0, 0.0], [0.0, 1.0]])
    # For 2x2 matrices, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)).
    overlap = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * overlap
    samples, real = with_moments([0.0, 0.0], a), with_moments([0.0, 0.0], b)
    assert frechet_distance(samples, real) == pytest.approx(expected)
    assert frechet_distance(samples, samples) == pytest.approx(0, abs=1e-9)


def test_degenerate_sets_have_a_finite_distance():
    assert frechet_distance(np.zeros((3, 2)), np.ones((3, 2))) == pytest.approx(2)


def test_distance_within_components_ignores_the_rest():
    data = np.random.RandomState(1).randn(30, 3) * [5.0, 2.0, 0.1]
    shifted = data + np.array([0.0, 0.0, 100.0])
    components = np.eye(3)[:2]
    assert frechet_distance(shifted, data, components=components) == pytest.approx(0, abs=1e-9)


def test_components_are_orthonormal_and_ordered():
    data = np.random.RandomState(1).randn(100, 3) * [1.0, 9.0, 3.0]
    components = principal_components(data, 2)
    np.testing.assert_allclose(components @ components.T, np.eye(2), atol=1e-12)
    assert abs(components[0, 1]) > 0.99
    assert abs(components[1, 2]) > 0.9


def test_the_ladder_of_digits():
    training, held_out = (data.samples.numpy().reshape(-1, 64) * 8 + 8 for data in load_digits())
    components = principal_components(training, 20)
    random = np.random.RandomState(0)
    independent = np.stack([random.choice(pixel, 2000) for pixel in training.T], axis=1)
    gaussian = random.multivariate_normal(training.mean(axis=0), np.cov(training.T), 2000)

    def distance(samples):
        return frechet_distance(samples, held_out, components=components)

    assert distance(training) == pytest.approx(12.74, abs=0.01)
    assert distance(gaussian.clip(0, 16)) == pytest.approx(57, abs=4)
    assert distance(independent) == pytest.approx(222, abs=8)


def test_forest_tells_apart_what_differs_and_nothing_else():
    random = np.random.RandomState(0)
    same, other = random.randn(2, 100, 4)
    assert 0.35 < forest_two_sample_accuracy(same, other, trees=20) < 0.65
    assert forest_two_sample_accuracy(same, other + 3, trees=20) > 0.95


def test_tensors_of_any_shape_are_vectors():
    samples = torch.randn(10, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    flat = samples.reshape(10, 4).numpy()
    assert frechet_distance(samples, flat + 1) == pytest.approx(4)


def test_sets_of_different_dimension_are_refused():
    with pytest.raises(ValueError, match="samples: expected 3 numbers per sample"):
        frechet_distance(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="real: expected at least two samples"):
        frechet_distance(np.zeros((2, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="count: expected from 1 to 2, got 3"):
        principal_components(np.zeros((2, 2)), 3)
