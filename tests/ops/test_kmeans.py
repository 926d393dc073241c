"""k-means: scikit-learn's centers, seeds, weights, empty clusters, the cosine metric, bad input."""

import pytest
import torch

import genssl_fast

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def blobs(rows=600, clusters=6, dim=5, spread=8.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    centers = spread * torch.randn(clusters, dim, generator=generator)
    noise = torch.randn(rows, dim, generator=generator)
    return (centers[torch.arange(rows) % clusters] + noise).to(dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_equals_scikit_learn(iterations, weighted):
    cluster = pytest.importorskip("sklearn.cluster")
    x = blobs(spread=1.5, dtype=torch.float64)
    weights = torch.rand(600, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = weights if weighted else None
    theirs = cluster.KMeans(
        8, init=x[:8].numpy(), n_init=1, max_iter=iterations, algorithm="lloyd", tol=1e-4
    ).fit(x.numpy(), sample_weight=None if weights is None else weights.numpy())
    ours = genssl_fast.kmeans(x, 8, init=x[:8], iterations=iterations, weights=weights)
    torch.testing.assert_close(ours.centers, torch.from_numpy(theirs.cluster_centers_))
    assert ours.indices.tolist() == theirs.labels_.tolist()
    assert ours.inertia.item() == pytest.approx(theirs.inertia_, rel=1e-12)
    assert ours.iterations == theirs.n_iter_


@pytest.mark.parametrize("dtype", FLOATING)
def test_finds_the_clusters(dtype):
    x = blobs(dtype=dtype)
    found = genssl_fast.kmeans(x, 6, seed=0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.centers.dtype == found.distances.dtype == found.inertia.dtype == wide
    members = torch.arange(600) % 6
    assert all(found.indices[members == k].unique().numel() == 1 for k in range(6))
    assert found.indices.unique().numel() == 6
    again = genssl_fast.nearest_code(x.to(wide), found.centers)
    assert torch.equal(found.indices, again.indices)
    assert found.inertia.item() == pytest.approx(again.distances.sum().item(), rel=1e-6)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_seed_fixes_every_bit(init):
    x, threads = blobs(5000), torch.get_num_threads()
    first = genssl_fast.kmeans(x, 20, init=init, seed=3, iterations=5)
    torch.set_num_threads(3)
    again = genssl_fast.kmeans(x, 20, init=init, seed=torch.tensor(3), iterations=5)
    torch.set_num_threads(threads)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, again))
    other = genssl_fast.kmeans(x, 20, init=init, seed=4, iterations=5)
    assert not torch.equal(first.centers, other.centers)


def starts(x, num_clusters, init, seed, weights=None):
    return genssl_fast.kmeans(x, num_clusters, init=init, seed=seed, weights=weights, iterations=0).centers


def test_spread_starts_in_proportion_to_squared_distances():
    """From 0, the next one is 1 or 3 with probabilities 1/10 and 9/10."""
    x = torch.tensor([[0.0], [1.0], [3.0]])
    weights = torch.tensor([1e6, 1.0, 1.0])  # the first one is 0
    draws = torch.cat([starts(x, 2, "k-means++", seed, weights) for seed in range(2000)], 1)
    assert (draws[0] == 0).all()
    share = (draws[1] == 3).double().mean().item()
    assert abs(share - 0.9) < 4 * (0.09 / 2000) ** 0.5


def test_starts_are_different_rows():
    x = torch.arange(30.0)[:, None]
    for init in ("k-means++", "random"):
        assert starts(x, 30, init, seed=0).sort(0).values.equal(x)
    weights = (torch.arange(30) < 10).float()
    for init in ("k-means++", "random"):
        assert starts(x, 10, init, seed=0, weights=weights).max() < 10


def test_empty_cluster_keeps_its_center():
    x, far = blobs(), torch.full((1, 5), 1e3)
    found = genssl_fast.kmeans(x, 7, init=torch.cat([x[:6], far]))
    assert torch.equal(found.centers[6:], far)


def test_empty_clusters_split_the_largest():
    x = torch.cat([torch.randn(400, 2) + 50, torch.randn(50, 2) - 50])
    init = torch.tensor([[50.0, 50.0], [-50.0, -50.0], [1e4, 1e4], [1e4, 2e4]])
    found = genssl_fast.kmeans(x, 4, init=init, empty="split", iterations=20, tolerance=0)
    counts = found.indices.bincount(minlength=4)
    assert (counts > 0).all()
    assert counts[0] + counts[2] == 400
    assert counts[1] + counts[3] == 50
    once = genssl_fast.kmeans(x, 4, init=init, empty="split", iterations=1).centers
    mean = x[:400].mean(0)
    aside = mean * torch.tensor([1.0, -1.0]) / 1024
    torch.testing.assert_close(once[0], mean - aside)
    torch.testing.assert_close(once[2], mean + aside)


def test_more_clusters_than_points_stays_finite():
    x = torch.tensor([[0.0, 1.0]]).repeat(9, 1)
    for empty in ("keep", "split"):
        found = genssl_fast.kmeans(x, 5, empty=empty, seed=0)
        assert found.centers.isfinite().all()
        assert found.inertia < 1e-4


def test_weights_repeat_rows():
    x, weights = blobs(200), (torch.arange(200) % 3).float()
    repeated = x.repeat_interleave(weights.long(), 0)
    ours = genssl_fast.kmeans(x, 6, init=x[:6], weights=weights)
    expected = genssl_fast.kmeans(repeated, 6, init=x[:6])
    torch.testing.assert_close(ours.inertia, expected.inertia)


def test_cosine_ignores_lengths():
    x = torch.nn.functional.normalize(blobs(), dim=-1)
    lengths = 0.1 + torch.rand(600, 1, generator=torch.Generator().manual_seed(0))
    unit = genssl_fast.kmeans(x, 6, metric="cosine", init=x[:6])
    scaled = genssl_fast.kmeans(lengths * x, 6, metric="cosine", init=x[:6])
    torch.testing.assert_close(unit.centers, scaled.centers)
    torch.testing.assert_close(unit.centers.norm(dim=1), torch.ones(6))
    cosine = (x * unit.centers[unit.indices]).sum(-1)
    torch.testing.assert_close(unit.distances, 2 - 2 * cosine, rtol=0, atol=1e-6)


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clusters": 4}, "num_clusters: expected at most the 3 rows of x, got 4"),
        ({"num_clusters": 0}, "num_clusters: expected at least 1, got 0"),
        ({"iterations": -1}, "iterations: expected at least 0, got -1"),
        ({"tolerance": -1.0}, "tolerance: expected at least 0, got -1.0"),
        ({"init": "plus"}, r"init: expected one of 'k-means\+\+', 'random', got 'plus'"),
        ({"init": torch.zeros(3, 2)}, r"init: expected shape \[K, D\] = \[2, 2\], got \[3, 2\]"),
        ({"metric": "dot"}, "metric: expected one of 'euclidean', 'cosine', got 'dot'"),
        ({"empty": "drop"}, "empty: expected one of 'keep', 'split', got 'drop'"),
        ({"weights": torch.ones(2)}, r"weights: expected shape \[N\] = \[3\], got \[2\]"),
        ({"weights": -torch.ones(3)}, "weights: expected numbers of at least 0, got a smallest of -1.0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        genssl_fast.kmeans(X, **{"num_clusters": 2} | options)
