"""How close samples are to real data: two measures that need no trained network.

Both take arrays or tensors [N, ...] in the same units and look at every sample as one vector.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike

from genssl_fast._checks import check

__all__ = ["forest_two_sample_accuracy", "frechet_distance", "principal_components"]


def frechet_distance(samples: ArrayLike, real: ArrayLike, *, components: np.ndarray | None = None) -> float:
    r"""Squared Fréchet distance between Gaussians fitted to two sets.

    .. math::
        \| \mu_a - \mu_b \|^2 + \mathrm{tr}\big( C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2} \big)

    Arguments:
        samples: The first set [N, ...], at least two samples.
        real: The second set [M, ...].
        components: Orthonormal directions [K, D] in which to compare, all by default; see
            :func:`principal_components`.

    Returns:
        The distance, in squared units of the data.

    References:
        | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
        | (Heusel et al., 2017), https://arxiv.org/abs/1706.08500

    Example:
        >>> import numpy as np
        >>> square = np.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
        >>> round(frechet_distance(square, square + [3.0, 4.0]), 6)
        25.0
    """
    samples, real = _vectors("samples", samples), _vectors("real", real)
    _check_same_dimension(samples, real)
    if components is not None:
        samples, real = samples @ components.T, real @ components.T
    first, second = _covariance(samples), _covariance(real)
    root = _square_root(first)
    overlap = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    distance = np.square(samples.mean(axis=0) - real.mean(axis=0)).sum()
    return float(distance + np.trace(first) + np.trace(second) - 2 * overlap)


def principal_components(data: ArrayLike, count: int) -> np.ndarray:
    """The `count` orthonormal directions [count, D] in which data [N, ...] vary most.

    Example:
        >>> import numpy as np
        >>> abs(principal_components([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]], 1)).round(6)
        array([[0., 1.]])
    """
    data = _vectors("data", data)
    check(1 <= count <= min(data.shape), "count", f"from 1 to {min(data.shape)}", count)
    return np.linalg.svd(data - data.mean(axis=0), full_matrices=False)[2][:count]


def forest_two_sample_accuracy(
    samples: ArrayLike, real: ArrayLike, *, trees: int = 100, folds: int = 5, seed: int = 0
) -> float:
    """How often a random forest tells samples from real ones, cross-validated; 0.5 is chance.

    Both sets should have the same size, else the larger one is a better guess than chance.

    Arguments:
        samples: The first set [N, ...].
        real: The second set [M, ...].
        trees: The number of trees of the forest.
        folds: The number of folds, at most the size of the smaller set.
        seed: The seed of the forest and of the folds.

    Returns:
        The share of correct answers, in [0, 1].

    References:
        | Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017)
        | https://arxiv.org/abs/1610.06545

    Example:
        >>> import numpy as np
        >>> numbers = np.random.RandomState(0).randn(40, 2)
        >>> forest_two_sample_accuracy(numbers, numbers + 100)
        1.0
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    samples, real = _vectors("samples", samples), _vectors("real", real)
    _check_same_dimension(samples, real)
    labels = np.repeat([0, 1], [len(samples), len(real)])
    forest = RandomForestClassifier(trees, random_state=seed, n_jobs=-1)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(forest, np.concatenate([samples, real]), labels, cv=split).mean())


def _vectors(name: str, values: ArrayLike) -> np.ndarray:
    values = values.numpy(force=True) if isinstance(values, torch.Tensor) else np.asarray(values)
    check(values.ndim >= 2 and len(values) >= 2, name, "at least two samples [N, ...]", list(values.shape))
    return values.reshape(len(values), -1).astype(np.float64)


def _check_same_dimension(samples: np.ndarray, real: np.ndarray) -> None:
    expected = f"{real.shape[1]} numbers per sample, as in real"
    check(samples.shape[1] == real.shape[1], "samples", expected, samples.shape[1])


def _covariance(vectors: np.ndarray) -> np.ndarray:
    return np.atleast_2d(np.cov(vectors, rowvar=False))


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
