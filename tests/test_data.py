"""What `--data` accepts, what it becomes, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

from genssl_fast.data import (
    BUNDLED,
    DENSITIES,
    Scale,
    load_breast_cancer,
    load_dataset,
    load_density,
    load_digits,
    load_nuisance_digits,
)


def test_digits_are_split_by_the_agreed_permutation():
    from sklearn import datasets

    images = datasets.load_digits().images
    order = np.random.RandomState(0).permutation(1797)
    training, held_out = load_digits()
    assert training.samples.shape == (1437, 1, 8, 8)
    assert held_out.samples.shape == (360, 1, 8, 8)
    restored = training.scale.restore(training.samples[0, 0]).numpy()
    np.testing.assert_array_equal(restored, images[order[0]])
    np.testing.assert_array_equal(
        held_out.samples[-1, 0].numpy(), (images[order[-1]] / 8 - 1).astype(np.float32)
    )


def test_labels_are_those_of_scikit_learn():
    from sklearn import datasets

    for source in ("digits", "nuisance_digits", "breast_cancer"):
        bundled = datasets.load_breast_cancer() if source == "breast_cancer" else datasets.load_digits()
        order = np.random.RandomState(0).permutation(len(bundled.target))
        found = torch.cat([load_dataset(source).labels, load_dataset(f"{source}:test").labels])
        np.testing.assert_array_equal(found, bundled.target[order])
    assert load_dataset("moons").labels is None
    rescaled = load_dataset("digits", scale=Scale(0.0, 32.0))
    assert torch.equal(rescaled.labels, load_dataset("digits").labels)


def test_nuisance_digits_are_digits_at_a_place():
    for digits, part in zip(load_digits(), load_nuisance_digits()):
        canvas, digits = part.samples, digits.samples
        assert canvas.shape == (len(digits), 1, 16, 16)
        assert 0.4 < (canvas.median(3).values.median(2).values > 0).double().mean() < 0.6
        windows = canvas.unfold(2, 8, 1).unfold(3, 8, 1).flatten(1, 3)
        matches = torch.stack([(windows == sign * digits).all(3).all(2) for sign in (1, -1)])
        assert matches.any(2).any(0).all()
        assert matches.any(2).double().mean(1).min() > 0.4


def test_nuisance_digits_depend_on_their_seed_alone():
    first, again, other = (load_nuisance_digits(seed)[1].samples for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pixels_of_nuisance_digits_say_little():
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    training, held_out = load_nuisance_digits()
    pixels, test = training.samples.flatten(1), held_out.samples.flatten(1)
    neighbours = KNeighborsClassifier(5).fit(pixels, training.labels).score(test, held_out.labels)
    linear = LogisticRegression(max_iter=2000).fit(pixels, training.labels).score(test, held_out.labels)
    assert neighbours == pytest.approx(0.42, abs=0.03)
    assert linear == pytest.approx(0.16, abs=0.03)


def test_arrays_may_have_labels(tmp_path):
    np.savez(
        tmp_path / "a.npz", samples=np.random.RandomState(0).rand(3, 2), labels=np.array([2, 0, 1], np.int8)
    )
    labels = load_dataset(tmp_path / "a.npz").labels
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("labels", [np.zeros(2, np.int64), np.zeros(3), np.zeros((3, 1), np.int64)])
def test_labels_that_do_not_fit_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", samples=np.random.RandomState(0).rand(3, 2), labels=labels)
    with pytest.raises(
        ValueError, match=r"^data: expected integers 'labels' of shape \[3\], one for each sample"
    ):
        load_dataset(tmp_path / "a.npz")


def test_breast_cancer_is_split_by_the_agreed_permutation_and_standardized():
    from sklearn import datasets

    order = np.random.RandomState(0).permutation(569)
    measurements = datasets.load_breast_cancer().data[order]
    training, held_out = load_breast_cancer()
    assert (training.samples.shape, held_out.samples.shape) == ((455, 30), (114, 30))
    mean, std = measurements[:455].mean(0), measurements[:455].std(0)
    np.testing.assert_allclose(held_out.samples, (measurements[455:] - mean) / std, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(held_out.scale.restore(held_out.samples), held_out.samples)
    # A standard normal density explains the held-out part as badly as it should.
    log_prob = -0.5 * held_out.samples.square().sum(1).mean() - 15 * np.log(2 * np.pi)
    assert float(log_prob) == pytest.approx(-44.47, abs=0.01)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_depend_on_their_seed_alone(name):
    samples, scale, num_levels, _ = load_density(name, 500)
    assert samples.shape == (500, 2)
    assert scale == Scale(-3.0, 3.0)
    assert num_levels is None
    assert torch.equal(samples, load_density(name, 500).samples)
    assert not torch.equal(samples, load_density(name, 500, seed=1).samples)
    assert samples.abs().max() < 1.3


def test_densities_have_their_shapes():
    def points(name):
        density = load_density(name, 4000)
        return density.scale.restore(density.samples).double()

    square = (points("checkerboard") / 1.5).floor() + 2
    assert square.unique(dim=0).shape == (8, 2)
    assert (square.sum(1) % 2 == 0).all()
    radius = points("two_rings").norm(dim=1)
    assert torch.minimum((radius - 1).abs(), (radius - 2).abs()).max() < 0.5
    assert 0.45 < (radius < 1.5).double().mean() < 0.55
    moons = points("moons")
    upper = (moons[:, 0] + 0.8).square() + (moons[:, 1] + 0.4).square()
    lower = (moons[:, 0] - 0.8).square() + (moons[:, 1] - 0.4).square()
    assert torch.minimum((upper.sqrt() - 1.6).abs(), (lower.sqrt() - 1.6).abs()).max() < 0.65


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_data_have_a_held_out_part(name):
    training, held_out = load_dataset(name), load_dataset(f"{name}:test")
    assert training.samples.shape[1:] == held_out.samples.shape[1:]
    assert len(training.samples) > len(held_out.samples)
    assert training[1:3] == held_out[1:3]
    assert (training.labels is None) == (held_out.labels is None)
    with pytest.raises(ValueError, match=f"expected one of digits, .*got {name}:training"):
        load_dataset(f"{name}:training")


def test_scale_restores_what_it_normalized():
    scale = Scale(-3.0, 7.0)
    values = torch.tensor([-3.0, 0.0, 7.0])
    torch.testing.assert_close(scale.normalize(values), torch.tensor([-1.0, -0.4, 1.0]))
    torch.testing.assert_close(scale.restore(scale.normalize(values)), values)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_are_scaled_by_their_range(tmp_path, suffix):
    array = np.array([[0.0, 5.0], [10.0, 2.5]])
    path = tmp_path / f"data{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, values=array)
    samples, scale, num_levels, _ = load_dataset(path)
    assert samples.dtype == torch.float32
    assert samples.tolist() == [[-1.0, 0.0], [1.0, -0.5]]
    assert scale == Scale(0.0, 10.0)
    assert num_levels is None


def test_every_entry_may_have_its_scale(tmp_path):
    """Columns of all magnitudes, one on a large offset, one that is constant but for rounding."""
    generator = np.random.RandomState(0)
    columns = [1e6 * generator.randn(50), 1e-6 * generator.randn(50), 1.7e9 + generator.randn(50)]
    columns += [np.full(50, 0.3) * (1 + 1e-17 * generator.randn(50)), np.zeros(50)]
    array = np.stack(columns, axis=1)
    np.save(tmp_path / "table.npy", array)
    samples, scale, *_ = load_dataset(tmp_path / "table.npy", per_entry=True)
    assert samples.dtype == torch.float32
    assert samples[:, :3].amax(0).tolist() == [1, 1, 1]
    assert samples[:, :3].amin(0).tolist() == [-1, -1, -1]
    assert [len(samples[:, k].unique()) for k in range(5)] == [50, 50, 50, 1, 1]
    np.testing.assert_allclose(scale.restore(samples.double())[:, :3], array[:, :3], rtol=0, atol=0.2)
    assert scale.shape == (5,)
    assert scale.overall == Scale(array.min(), array.max())
    expected = np.log(np.ptp(array[:, :3], axis=0) / 2).sum() + np.log(0.3)
    assert scale.log_volume((5,)) == pytest.approx(expected)
    assert Scale.of(*[list(bound) for bound in scale]) == scale
    assert load_dataset(tmp_path / "table.npy", scale=scale)[1:] == (scale, None, None)


def test_a_given_scale_is_used(tmp_path):
    np.save(tmp_path / "one.npy", np.array([[1.0, 3.0]]))
    samples, scale, *_ = load_dataset(tmp_path / "one.npy", scale=Scale((0, 2), (4, 4)))
    assert samples.tolist() == [[-0.5, 0.0]]
    assert scale == Scale((0, 2), (4, 4))
    digits = load_dataset("digits", scale=Scale(0.0, 32.0))
    torch.testing.assert_close(digits.samples, (load_digits()[0].samples - 1) / 2)
    with pytest.raises(ValueError, match=r"data: expected samples of shape \[3\], .* with \[2\]"):
        load_dataset(tmp_path / "one.npy", scale=Scale((0, 0, 0), (1, 1, 1)))


def test_eight_bit_arrays_span_their_type(tmp_path):
    np.save(tmp_path / "bytes.npy", np.full((2, 3), 51, dtype=np.uint8))
    samples, scale, num_levels, _ = load_dataset(tmp_path / "bytes.npy")
    assert scale == Scale(0.0, 255.0)
    assert num_levels == 256
    torch.testing.assert_close(samples, torch.full((2, 3), -0.6))


def test_archive_with_several_arrays_needs_one_called_samples(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.eye(2), b=np.eye(2))
    with pytest.raises(ValueError, match=r"called 'samples', got \['a', 'b'\]"):
        load_dataset(tmp_path / "two.npz")
    np.savez(tmp_path / "named.npz", samples=np.eye(2), b=np.eye(3))
    assert load_dataset(tmp_path / "named.npz").samples.shape == (2, 2)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folder_of_images(tmp_path, mode, channels):
    for name, grey in (("b.png", 255), ("a.png", 0)):
        Image.new("L", (5, 4), grey).convert(mode).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    samples, scale, num_levels, _ = load_dataset(tmp_path)
    assert samples.shape == (2, channels, 4, 5)
    assert samples[0].unique() == -1
    assert samples[1].unique() == 1
    assert scale == Scale(0.0, 255.0)
    assert num_levels == 256


def test_images_of_two_sizes_are_refused(tmp_path):
    Image.new("L", (5, 4)).save(tmp_path / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"5x4 as a\.png, got b\.png of 4x4; resize"):
        load_dataset(tmp_path)


def test_images_of_more_than_eight_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 5), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"^data: expected 8-bit images, got .*deep\.png of mode I;16"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4), r"samples in rows, got .* shape \(4,\)"),
        (np.zeros((0, 4)), "samples in rows"),
        (np.array([[1.0, np.nan]]), "finite numbers"),
        (np.array([[1j, 0]]), "real numbers, got .* complex128"),
        (np.ones((2, 2)), "values that differ"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(ValueError, match=f"^data: expected .*{message}"):
        load_dataset(tmp_path / "bad.npy")


def test_other_sources_are_refused(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"nothing of the kind")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"cut\.npz, which cannot be read"):
        load_dataset(tmp_path / "cut.npz")
    (tmp_path / "image.png").write_bytes(b"nor this")
    with pytest.raises(ValueError, match=r"bad\.npy, which cannot be read"):
        load_dataset(tmp_path / "bad.npy")
    with pytest.raises(ValueError, match=r"an image, got .*image\.png"):
        load_dataset(tmp_path)
    for missing in ("missing", "missing.npy"):
        with pytest.raises(ValueError, match="which does not exist"):
            load_dataset(tmp_path / missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="with none"):
        load_dataset(tmp_path / "empty")
