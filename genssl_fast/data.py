"""Training data: the bundled digits, NumPy arrays, folders of images."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genssl_fast._checks import check

__all__ = ["Dataset", "Scale", "load_dataset", "load_digits"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
NUM_TRAINING_DIGITS = 1437


class Scale(NamedTuple):
    """The range of the data that networks see as [-1, 1]."""

    low: float
    high: float

    def normalize(self, values: Tensor) -> Tensor:
        """From units of the data to [-1, 1].

        Example:
            >>> Scale(0, 16).normalize(torch.tensor([0.0, 4.0, 16.0]))
            tensor([-1.0000, -0.5000,  1.0000])
        """
        return (values - self.low) * (2 / (self.high - self.low)) - 1

    def restore(self, values: Tensor) -> Tensor:
        """From [-1, 1] to units of the data.

        Example:
            >>> Scale(0, 16).restore(torch.tensor([-1.0, -0.5, 1.0]))
            tensor([ 0.,  4., 16.])
        """
        return (values + 1) * ((self.high - self.low) / 2) + self.low


class Dataset(NamedTuple):
    """Samples [N, ...] in fp32, scaled to [-1, 1], and the scale they came from."""

    samples: Tensor
    scale: Scale


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

    images = torch.from_numpy(datasets.load_digits().images).float().unsqueeze(1)
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(images)))
    scale = Scale(0.0, 16.0)
    images = scale.normalize(images[order])
    training, held_out = images[:NUM_TRAINING_DIGITS], images[NUM_TRAINING_DIGITS:]
    return Dataset(training, scale), Dataset(held_out, scale)


def load_dataset(source: str | Path) -> Dataset:
    """The data that `--data` names.

    Arguments:
        source: `"digits"` for the training part of the bundled digits, a `.npy` or `.npz` file with an
            array [N, ...] of real numbers, or a folder of images of one size.

    Returns:
        The samples and their scale: 0 to 255 for 8-bit values, else from the smallest value to the
        largest.

    Raises:
        ValueError: If the source is none of these or its content cannot be used.
        OSError: If a file cannot be read.
    """
    if str(source) == "digits":
        return load_digits()[0]
    path = Path(source)
    if path.is_dir():
        return _dataset(_read_images(path), path)
    if path.suffix in (".npy", ".npz"):
        return _dataset(_read_array(path), path)
    got = f"{path}" if path.exists() else f"{path}, which does not exist"
    raise ValueError(f"data: expected 'digits', a .npy or .npz file or a folder of images, got {got}")


def _dataset(array: np.ndarray, path: Path) -> Dataset:
    check(array.dtype.kind in "fiub", "data", "real numbers", f"{path} with dtype {array.dtype}")
    expected = "an array [N, ...] with samples in rows"
    check(array.ndim >= 2 and array.size > 0, "data", expected, f"{path} with shape {array.shape}")
    samples = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    finite = bool(samples.isfinite().all())
    check(finite, "data", "finite numbers", f"NaN or infinity in {path}")
    low, high = (0.0, 255.0) if array.dtype == np.uint8 else map(float, samples.aminmax())
    check(low < high, "data", "values that differ", f"{path} where all are {low}")
    scale = Scale(low, high)
    return Dataset(scale.normalize(samples), scale)


def _read_array(path: Path) -> np.ndarray:
    try:
        content = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"data: expected an array, got {path}, which does not exist") from None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"data: expected a NumPy array, got {path}, which cannot be read ({error})"
        ) from error
    if isinstance(content, np.ndarray):
        return content
    names = content.files
    found = len(names) == 1 or "samples" in names
    check(found, "data", "one array or one called 'samples'", f"{names} in {path}")
    return content["samples" if "samples" in names else names[0]]


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
