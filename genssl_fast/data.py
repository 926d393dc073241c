"""Training data: bundled sets, densities in the plane, NumPy arrays, folders of images."""

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genssl_fast._checks import check, check_choice

__all__ = [
    "DENSITIES",
    "Dataset",
    "Scale",
    "load_breast_cancer",
    "load_dataset",
    "load_density",
    "load_digits",
    "load_nuisance_digits",
]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
NUM_TRAINING_DIGITS = 1437
NUM_TRAINING_PATIENTS = 455
NUISANCE_SIDE = 16


class Scale(NamedTuple):
    """The range of the data that networks see as [-1, 1]: one for all entries of a sample, or one for each.

    Ranges of entries are nested tuples in the shape of a sample; they are applied, and results are, in fp64.

    Example:
        >>> Scale((0.0, -5.0), (1e6, 5.0)).restore(torch.tensor([[0.0, 0.5]])).tolist()
        [[500000.0, 2.5]]
    """

    low: float | tuple
    high: float | tuple

    @classmethod
    def of(cls, low: float | list | tuple, high: float | list | tuple) -> "Scale":
        """From numbers or nested lists of them, as JSON holds a scale."""
        return cls(_nested_tuple(low), _nested_tuple(high))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of a sample where every entry has its range; else ()."""
        return tuple(self._bounds("cpu")[0].shape) if isinstance(self.low, tuple) else ()

    @property
    def overall(self) -> "Scale":
        """One range that holds those of all entries."""
        low, high = self._bounds("cpu")
        return Scale(float(low.min()), float(high.max())) if self.shape else self

    def log_volume(self, shape: tuple[int, ...]) -> float:
        """The logarithm of the volume, in units of the data, of what is a unit volume in [-1, 1].

        Arguments:
            shape: Of a sample.
        """
        low, high = (torch.as_tensor(bound, dtype=torch.float64) for bound in self._bounds("cpu"))
        return float(((high - low) / 2).log().expand(shape).sum())

    def normalize(self, values: Tensor) -> Tensor:
        """From units of the data to [-1, 1].

        Example:
            >>> Scale(0, 16).normalize(torch.tensor([0.0, 4.0, 16.0]))
            tensor([-1.0000, -0.5000,  1.0000])
        """
        low, high = self._bounds(values.device)
        return (values - low) * (2 / (high - low)) - 1

    def restore(self, values: Tensor) -> Tensor:
        """From [-1, 1] to units of the data.

        Example:
            >>> Scale(0, 16).restore(torch.tensor([-1.0, -0.5, 1.0]))
            tensor([ 0.,  4., 16.])
        """
        low, high = self._bounds(values.device)
        return (values + 1) * ((high - low) / 2) + low

    def _bounds(self, device: torch.device | str) -> tuple[float, float] | tuple[Tensor, Tensor]:
        if not isinstance(self.low, tuple):
            return self.low, self.high
        low, high = (torch.tensor(bound, dtype=torch.float64, device=device) for bound in self)
        return low, high


class Dataset(NamedTuple):
    """Samples [N, ...] in fp32, scaled to [-1, 1], and the scale they came from.

    ``num_levels`` counts the equidistant values that discrete data can take, ``scale.low`` and
    ``scale.high`` among them; None for continuous data. ``labels`` are classes, int64 [N], where they are
    known.
    """

    samples: Tensor
    scale: Scale
    num_levels: int | None = None
    labels: Tensor | None = None


def load_digits() -> tuple[Dataset, Dataset]:
    """The handwritten digits bundled with scikit-learn, split into a training and a held-out part.

    The parts are [1437, 1, 8, 8] and [360, 1, 8, 8], after the permutation of
    `numpy.random.RandomState(0)`; grey levels are 0 to 16.

    References:
        | Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998)
        | https://archive.ics.uci.edu/dataset/80

    Example:
        >>> training, held_out = load_digits()
        >>> training.samples.shape
        torch.Size([1437, 1, 8, 8])
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(digits.images)))
    scale = Scale(0.0, 16.0)
    images = scale.normalize(torch.from_numpy(digits.images).float().unsqueeze(1)[order])
    labels = torch.from_numpy(digits.target).long()[order]
    count = NUM_TRAINING_DIGITS
    return Dataset(images[:count], scale, 17, labels[:count]), Dataset(
        images[count:], scale, 17, labels[count:]
    )


def load_nuisance_digits(seed: int = 0) -> tuple[Dataset, Dataset]:
    """The digits of :func:`load_digits`, each at a random place of a canvas of 16×16, half of them inverted.

    The parts are [1437, 1, 16, 16] and [360, 1, 16, 16]. Place and inversion say nothing of the digit, but
    outweigh it in the pixels: of them, a linear classifier learns next to nothing. Features that are learned
    without labels are worth what they ignore.

    Arguments:
        seed: Of places and inversions.

    Example:
        >>> training, held_out = load_nuisance_digits()
        >>> training.samples.shape
        torch.Size([1437, 1, 16, 16])
    """
    parts, generator = load_digits(), np.random.RandomState(seed)
    return tuple(_with_nuisance(part, generator) for part in parts)


def _with_nuisance(digits: Dataset, generator: np.random.RandomState) -> Dataset:
    count, side = len(digits.samples), digits.samples.shape[-1]
    canvas = torch.full((count, 1, NUISANCE_SIDE, NUISANCE_SIDE), -1.0)
    corners = generator.randint(0, NUISANCE_SIDE - side + 1, (count, 2))
    for image, digit, (top, left) in zip(canvas, digits.samples, corners.tolist()):
        image[:, top : top + side, left : left + side] = digit
    inverted = torch.from_numpy(generator.rand(count) < 0.5).view(-1, 1, 1, 1)
    return digits._replace(samples=torch.where(inverted, -canvas, canvas))


def load_breast_cancer() -> tuple[Dataset, Dataset]:
    """The 30 measurements of 569 patients bundled with scikit-learn, split and standardized.

    The parts are [455, 30] and [114, 30], after the permutation of `numpy.random.RandomState(0)`; both
    have the mean of the training part taken off and are divided by its standard deviation.

    References:
        | Breast Cancer Wisconsin, Diagnostic (Wolberg et al., 1993)
        | https://archive.ics.uci.edu/dataset/17

    Example:
        >>> training, held_out = load_breast_cancer()
        >>> held_out.samples.shape
        torch.Size([114, 30])
    """
    from sklearn import datasets

    patients = datasets.load_breast_cancer()
    order = np.random.RandomState(0).permutation(len(patients.data))
    measurements, labels = patients.data[order], torch.from_numpy(patients.target).long()[order]
    training = measurements[:NUM_TRAINING_PATIENTS]
    standardized = torch.from_numpy((measurements - training.mean(0)) / training.std(0)).float()
    # Standardized values are the unit of these data.
    parts = slice(NUM_TRAINING_PATIENTS), slice(NUM_TRAINING_PATIENTS, None)
    return tuple(Dataset(standardized[part], Scale(-1.0, 1.0), labels=labels[part]) for part in parts)


def load_density(name: str, count: int = 20000, *, seed: int = 0) -> Dataset:
    """Samples [count, 2] of a density in the plane: `"moons"`, `"checkerboard"` or `"two_rings"`.

    Two half circles with Gaussian noise; the black squares of a board of 4 by 4; rings of radius 1 and 2
    with Gaussian noise. All that is random depends on the seed alone.

    Example:
        >>> load_density("moons", 5).samples.shape
        torch.Size([5, 2])
    """
    check_choice("name", name, DENSITIES)
    check(count >= 1, "count", "at least 1", count)
    points = DENSITIES[name](count, np.random.default_rng(seed))
    return Dataset(torch.from_numpy(DENSITY_SCALE.normalize(points)).float(), DENSITY_SCALE)


def _moons(count: int, generator: np.random.Generator) -> np.ndarray:
    angle, upper = generator.uniform(0, np.pi, count), generator.random(count) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    return 1.6 * np.stack([x, y], axis=1) + generator.normal(0, 0.12, (count, 2))


def _checkerboard(count: int, generator: np.random.Generator) -> np.ndarray:
    column, row = generator.integers(0, 4, count), generator.integers(0, 2, count)
    corner = np.stack([column, 2 * row + column % 2], axis=1)
    return 1.5 * (corner + generator.random((count, 2)) - 2)


def _two_rings(count: int, generator: np.random.Generator) -> np.ndarray:
    angle, radius = generator.uniform(0, 2 * np.pi, count), generator.choice([1.0, 2.0], count)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return radius[:, None] * circle + generator.normal(0, 0.08, (count, 2))


DENSITIES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "moons": _moons,
    "checkerboard": _checkerboard,
    "two_rings": _two_rings,
}
# The range of the data is a convention here: moons and rings have tails.
DENSITY_SCALE = Scale(-3.0, 3.0)


def load_dataset(source: str | Path, *, scale: Scale | None = None, per_entry: bool = False) -> Dataset:
    """The data that `--data` names.

    Arguments:
        source: `"digits"`, `"nuisance_digits"`, `"breast_cancer"`, `"moons"`, `"checkerboard"` or
            `"two_rings"` for the training part of what is bundled, followed by `":test"` for the held-out
            part; a `.npy` or `.npz` file with an array [N, ...] of real numbers, and in a `.npz` file
            perhaps integers `labels` [N]; or a folder of images of one size.
        scale: What becomes [-1, 1]; by default that of the data.
        per_entry: Whether every entry of the samples of a continuous array has its own scale.

    Returns:
        The samples and their scale: 0 to 255, and 256 levels, for 8-bit values, else from the smallest
        value to the largest. An entry that never varies gets the range of its magnitude around it.

    Raises:
        ValueError: If the source is none of these or its content cannot be used.
        OSError: If a file cannot be read.
    """
    name, colon, part = str(source).partition(":")
    if name in BUNDLED and part in (("test",) if colon else ("",)):
        return _rescaled(BUNDLED[name]()[part == "test"], scale, source)
    path = Path(source)
    if path.is_dir():
        return _dataset(_read_images(path), path, scale, per_entry)
    if path.suffix in (".npy", ".npz"):
        array, labels = _read_array(path)
        return _dataset(array, path, scale, per_entry)._replace(labels=labels)
    got = f"{path}" if path.exists() else f"{path}, which does not exist"
    names = ", ".join(BUNDLED)
    raise ValueError(f"data: expected one of {names}, a .npy or .npz file or a folder of images, got {got}")


def _load_density_parts(name: str) -> tuple[Dataset, Dataset]:
    return load_density(name), load_density(name, 5000, seed=1)


BUNDLED: dict[str, Callable[[], tuple[Dataset, Dataset]]] = {
    "digits": load_digits,
    "nuisance_digits": load_nuisance_digits,
    "breast_cancer": load_breast_cancer,
} | {name: partial(_load_density_parts, name) for name in DENSITIES}


def _rescaled(dataset: Dataset, scale: Scale | None, source: str | Path) -> Dataset:
    if scale is None or scale == dataset.scale:
        return dataset
    values = dataset.scale.restore(dataset.samples.double())
    return _normalized(values, scale, dataset.num_levels, source)._replace(labels=dataset.labels)


def _normalized(values: Tensor, scale: Scale, num_levels: int | None, source: str | Path) -> Dataset:
    shape = tuple(values.shape[1:])
    expected = f"samples of shape {list(scale.shape)}, that of the scale"
    check(scale.shape in ((), shape), "data", expected, f"{source} with {list(shape)}")
    return Dataset(scale.normalize(values).float(), scale, num_levels)


def _dataset(array: np.ndarray, path: Path, scale: Scale | None, per_entry: bool) -> Dataset:
    check(array.dtype.kind in "fiub", "data", "real numbers", f"{path} with dtype {array.dtype}")
    expected = "an array [N, ...] with samples in rows"
    check(array.ndim >= 2 and array.size > 0, "data", expected, f"{path} with shape {array.shape}")
    is_bytes = array.dtype == np.uint8
    # fp64 until ranges are taken off: entries differ in magnitude, and differences are small beside values.
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32 if is_bytes else np.float64))
    finite = bool(values.float().isfinite().all())
    check(finite, "data", "finite numbers", f"NaN, infinity or more than fp32 can hold in {path}")
    if scale is None:
        low, high = (0.0, 255.0) if is_bytes else map(float, values.aminmax())
        check(low < high, "data", "values that differ", f"{path} where all are {low}")
        scale = _entry_scale(values, array.dtype) if per_entry and not is_bytes else Scale(low, high)
    return _normalized(values, scale, 256 if is_bytes else None, path)


def _entry_scale(values: Tensor, dtype: np.dtype) -> Scale:
    """The range of every entry of samples [N, *shape]; what differs by rounding alone does not vary."""
    low, high = values.amin(0), values.amax(0)
    magnitude = torch.maximum(low.abs(), high.abs())
    rounding = np.finfo(dtype).eps if dtype.kind == "f" else 0.0
    varies = high - low > rounding * magnitude
    margin = torch.where(varies, 0.0, torch.where(magnitude > 0, magnitude, 1.0))
    return Scale.of((low - margin).tolist(), (high + margin).tolist())


def _nested_tuple(values: float | list | tuple) -> float | tuple:
    return tuple(map(_nested_tuple, values)) if isinstance(values, list | tuple) else values


def _read_array(path: Path) -> tuple[np.ndarray, Tensor | None]:
    """The samples in a file, and their labels if it has some."""
    try:
        content = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"data: expected an array, got {path}, which does not exist") from None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"data: expected a NumPy array, got {path}, which cannot be read ({error})"
        ) from error
    if isinstance(content, np.ndarray):
        return content, None
    names = content.files
    found = len(names) == 1 or "samples" in names
    check(found, "data", "one array or one called 'samples'", f"{names} in {path}")
    samples = content["samples" if "samples" in names else names[0]]
    return samples, _labels(content["labels"], len(samples), path) if "labels" in names else None


def _labels(labels: np.ndarray, count: int, path: Path) -> Tensor:
    fits = labels.dtype.kind in "iu" and labels.shape == (count,)
    expected = f"integers 'labels' of shape [{count}], one for each sample"
    check(fits, "data", expected, f"dtype {labels.dtype} and shape {list(labels.shape)} in {path}")
    return torch.from_numpy(labels.astype(np.int64))


def _read_images(folder: Path) -> np.ndarray:
    """Images of a folder [N, C, H, W] in 8 bits, in order of their names: grey if all are, else RGB."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    expected = f"images ({', '.join(sorted(IMAGE_SUFFIXES))})"
    check(len(paths) > 0, "data", expected, f"{folder} with none")
    images = [_read_image(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        expected = f"images of one size, {_size(images[0])} as {paths[0].name}"
        got = f"{path.name} of {_size(image)}; resize them first"
        check(image.size == images[0].size, "data", expected, got)
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    pixels = np.stack([np.asarray(image.convert(mode)) for image in images])
    return pixels[:, None] if mode == "L" else pixels.transpose(0, 3, 1, 2)


def _read_image(path: Path):
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            expected, got = "8-bit images", f"{path} of mode {image.mode}; save such images as an array"
            check(image.mode[0] not in "IF", "data", expected, got)
            return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"data: expected an image, got {path} ({error})") from error


def _size(image) -> str:
    return f"{image.width}x{image.height}"
