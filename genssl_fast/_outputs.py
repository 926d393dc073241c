"""What a complete array of samples becomes: a .npy file, a .npz file or a folder of PNG images."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from genssl_fast._checks import check
from genssl_fast._files import replacing
from genssl_fast._partial import PartialArray
from genssl_fast.data import Scale

__all__ = ["check_output", "finish_output", "save_image"]

COPY_BYTES = 1 << 20
IMAGES_AT_ONCE = 64


def check_output(out: Path, shape: tuple[int, ...]) -> None:
    """Fails now if samples of this shape could not go there in the end."""
    if out.suffix:
        check(not out.is_dir(), "out", "a file", f"{out}, which is a folder")
        return
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))
    expected = "NAME.npz or NAME.npy for samples that are no images [H, W] or [C, H, W]"
    check(is_image, "out", expected, f"the folder {out} for shape {list(shape)}")
    free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    check(free, "out", "a new or empty folder", f"{out}, which is not empty")


def finish_output(partial: PartialArray, scale: Scale) -> None:
    """Turns a complete array into its output, at once or not at all, and removes what it was made from."""
    try:
        if partial.out.suffix == ".npy":
            os.replace(partial.data_path, partial.out)
        else:
            with replacing(partial.out) as temporary:
                write = _write_npz if partial.out.suffix == ".npz" else _write_images
                write(partial, temporary, scale)
    except OSError as error:
        raise partial.error(error) from error
    partial.remove()


def save_image(path: Path, pixels: np.ndarray, scale: Scale) -> None:
    """Writes pixels [H, W] or [C, H, W] as an 8-bit PNG; the range of the scale becomes 0 to 255."""
    levels = np.rint((pixels - scale.low) * (255 / (scale.high - scale.low))).clip(0, 255)
    levels = levels.astype(np.uint8)
    if levels.ndim == 3:
        levels = levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)
    Image.fromarray(levels).save(path, format="PNG")


def _write_npz(partial: PartialArray, path: Path, scale: Scale) -> None:
    # ZipInfo's fixed date and no compression: equal samples make equal files.
    entry = zipfile.ZipInfo("samples.npy")
    with (
        open(partial.data_path, "rb") as source,
        zipfile.ZipFile(path, "w") as archive,
        archive.open(entry, "w", force_zip64=True) as member,
    ):
        shutil.copyfileobj(source, member, COPY_BYTES)


def _write_images(partial: PartialArray, folder: Path, scale: Scale) -> None:
    folder.mkdir()
    digits = max(5, len(str(partial.count - 1)))
    with partial:
        for begin in range(0, partial.count, IMAGES_AT_ONCE):
            end = min(begin + IMAGES_AT_ONCE, partial.count)
            for number, pixels in enumerate(partial.read(begin, end), start=begin):
                save_image(folder / f"{number:0{digits}}.png", pixels, scale)
