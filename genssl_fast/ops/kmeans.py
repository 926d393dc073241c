"""k-means by Lloyd's algorithm, on :func:`genssl_fast.nearest_code`."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from genssl_fast._checks import (
    check,
    check_choice,
    check_count,
    check_dtype,
    check_same,
    check_shape,
    values_are_checked,
)
from genssl_fast._random import Stream, fold_seed, step_counter
from genssl_fast.ops.fixed_sums import total
from genssl_fast.ops.nearest_code import nearest_code
from genssl_fast.ops.random import random_uniform
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["KMeans", "kmeans"]

INITIALISATIONS = ("k-means++", "random")
METRICS = ("euclidean", "cosine")
EMPTY = ("keep", "split")
SPLIT = 1 / 1024  # by which faiss moves the two halves of a cluster apart


class KMeans(NamedTuple):
    """What :func:`kmeans` finds."""

    centers: Tensor
    indices: Tensor
    distances: Tensor
    inertia: Tensor
    iterations: int


@torch.no_grad()
def kmeans(
    x: Tensor,
    num_clusters: int,
    *,
    iterations: int = 25,
    tolerance: float = 1e-4,
    init: str | Tensor = "k-means++",
    metric: str = "euclidean",
    weights: Tensor | None = None,
    empty: str = "keep",
    seed: int | Tensor | None = None,
) -> KMeans:
    r"""k-means clustering by Lloyd's algorithm; memory of O(N·D + K·D), never an N×K matrix.

    Deterministic: the same seed gives the same bits for any number of threads. Assignments are those of
    :func:`genssl_fast.nearest_code`, so of equally near centers the first, and sums are in fp64.

    Arguments:
        x: [N, D], fp32, fp64, bf16 or fp16; 16-bit floating point is computed in fp32. N at least K.
        num_clusters: K.
        iterations: at most so many updates of the centers.
        tolerance: stop when the centers' squared moves sum to no more than this times the mean variance of
            a feature (scikit-learn's rule). Each update then reads a number back from the device; 0 never
            does and takes every iteration.
        init: ``"k-means++"``, ``"random"`` for K different rows, or centers [K, D] in the dtype of ``x``.
        metric: ``"euclidean"``, or ``"cosine"`` for spherical k-means: rows and centers are scaled to unit
            length, and distances are 2 − 2 cos.
        weights: [N] in the dtype of ``x``, not negative, of the rows in means, inertia and initialisation.
        empty: what becomes of a cluster without rows: ``"keep"`` leaves its center where it is; ``"split"``
            puts it beside the center of the largest cluster, the next one beside that of the second largest,
            both moved apart by 1/1024 as in faiss.
        seed: of the initialisation: an integer, an int64 tensor, or None to draw one.

    Returns:
        centers [K, D], indices int64 [N] and squared distances [N] of the rows to these centers, the inertia
        Σ w·distance [], and the number of updates. Floating point is fp32, or fp64 for fp64.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.

    References:
        Lloyd, Least squares quantization in PCM, 1982; Arthur and Vassilvitskii, k-means++: The advantages of
        careful seeding, SODA 2007; Johnson et al., Billion-scale similarity search with GPUs (faiss),
        https://arxiv.org/abs/1702.08734

    Example:
        >>> x = torch.tensor([[0.0], [0.2], [5.0], [5.2]])
        >>> genssl_fast.kmeans(x, 2, seed=0).centers.sort(0).values
        tensor([[0.1000],
                [5.1000]])
    """
    _check_arguments(x, num_clusters, iterations, tolerance, init, metric, weights, empty)
    x = x.to(compute_dtype(x.dtype))
    weights = None if weights is None else weights.to(x.dtype)
    scale = normalize if metric == "cosine" else _unchanged
    x = scale(x)
    centers = scale(_initial_centers(x, num_clusters, init, weights, seed))
    limit = tolerance * x.var(0, correction=0).mean() if tolerance > 0 else None
    done = 0
    while done < iterations:
        found = nearest_code(x, centers, sums=True, weights=weights)
        moved = scale(_means(found.counts, found.sums, centers, empty))
        shift, centers, done = total((moved - centers).square()), moved, done + 1
        if limit is not None and bool(shift <= limit):
            break
    indices, distances, _, _ = nearest_code(x, centers)
    inertia = total((distances if weights is None else weights * distances).double())
    return KMeans(centers, indices, distances, inertia.to(x.dtype), done)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _means(counts: Tensor, sums: Tensor, centers: Tensor, empty: str) -> Tensor:
    """Means of the clusters; what is empty as the option says. [K, D]"""
    is_empty = counts <= 0
    means = torch.where(is_empty[:, None], centers, sums / torch.where(is_empty, 1, counts)[:, None])
    return _split_largest(means, counts, is_empty) if empty == "split" else means


def _split_largest(means: Tensor, counts: Tensor, is_empty: Tensor) -> Tensor:
    """Empty cluster e and the e-th largest one become the two sides of the latter's mean."""
    largest = counts.argsort(descending=True, stable=True)  # [K]
    emptied = is_empty.to(torch.int8).argsort(descending=True, stable=True)  # the empty ones first
    is_split = is_empty[emptied] & ~is_empty[largest]  # [K]: whether emptied[e] is a half of largest[e]
    even = torch.arange(means.shape[1], device=means.device) % 2 == 0
    aside = torch.where(even, SPLIT, -SPLIT).to(means.dtype) * means[largest]
    aside = torch.where(is_split[:, None], aside, 0)
    other_halves = means[largest] + aside
    means = means.index_copy(0, largest, means[largest] - aside)
    return means.index_copy(0, emptied, torch.where(is_split[:, None], other_halves, means[emptied]))


def _initial_centers(x: Tensor, num_clusters: int, init, weights: Tensor | None, seed) -> Tensor:
    if isinstance(init, Tensor):
        return init.to(x.dtype)
    number, tensor = fold_seed(seed, x.device)
    seed = number if tensor is None else tensor
    if init == "random":
        order = _arrivals(x, weights, seed, 0).argsort(stable=True)
        return x[order[:num_clusters]]
    return _spread_centers(x, num_clusters, weights, seed)


def _spread_centers(x: Tensor, num_clusters: int, weights: Tensor | None, seed) -> Tensor:
    """k-means++: each next center is a row drawn in proportion to its squared distance from the last ones."""
    centers = x.new_empty(num_clusters, x.shape[1])
    rates = weights
    nearest = torch.full_like(x[:, 0], torch.inf)
    for k in range(num_clusters):
        row = _arrivals(x, rates, seed, k).argmin().reshape(1)
        centers[k] = x.index_select(0, row)[0]
        nearest = torch.minimum(nearest, nearest_code(x, centers[k : k + 1]).distances)
        rates = nearest if weights is None else weights * nearest
    return centers


def _arrivals(x: Tensor, rates: Tensor | None, seed, index: int) -> Tensor:
    """Exponential times of arrival [N]; the first is a draw in proportion to the rates, the first K one
    without replacement. They depend on (seed, row) alone, and need no sum over the rows."""
    uniform = random_uniform(
        (len(x),), seed=seed, step=step_counter(Stream.CLUSTER, index), dtype=torch.float64, device=x.device
    )  # fmt: skip
    times = -torch.log1p(-uniform)  # finest near 0, where the first ones are
    return times if rates is None else torch.where(rates > 0, times / rates, torch.inf)


def _check_arguments(x, num_clusters, iterations, tolerance, init, metric, weights, empty) -> None:
    check_dtype("x", x)
    check(x.ndim == 2 and x.shape[1] > 0, "x", "shape [N, D] with D of at least 1", list(x.shape))
    check_count("num_clusters", num_clusters, 1)
    check(num_clusters <= len(x), "num_clusters", f"at most the {len(x)} rows of x", num_clusters)
    check_count("iterations", iterations)
    check(tolerance >= 0, "tolerance", "at least 0", tolerance)
    check_choice("metric", metric, METRICS)
    check_choice("empty", empty, EMPTY)
    if isinstance(init, Tensor):
        check_same("init", init, x, "x", shape=False)
        check_shape("init", init, (num_clusters, x.shape[1]), "[K, D]")
    else:
        check_choice("init", init, INITIALISATIONS)
    if weights is not None:
        check_same("weights", weights, x, "x", shape=False)
        check_shape("weights", weights, x.shape[:1], "[N]")
        if values_are_checked(weights):
            low = float(weights.min())
            check(low >= 0, "weights", "numbers of at least 0", f"a smallest of {low}")
