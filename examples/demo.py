"""Handwritten digits from a small score model, by a plain PyTorch loop and compiled.

Draws the same 4,096 images twice from the same noise, compares speed and pixels, measures how good
they are, and writes a picture of them next to real digits. Run it with `make demo`.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# PyTorch's large temporaries fault page by page under glibc's default thresholds, which would slow the
# plain loop down; both loops run with raised ones.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
if any(os.environ.get(name) != value for name, value in MALLOC.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import plain_pytorch  # noqa: E402
import torch  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import pad  # noqa: E402

from genssl_fast.data import load_digits  # noqa: E402
from genssl_fast.metrics import (  # noqa: E402
    forest_two_sample_accuracy,
    frechet_distance,
    principal_components,
)
from genssl_fast.progress import ProgressReport  # noqa: E402
from genssl_fast.score_model import ScoreModel  # noqa: E402

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "digits_vp.safetensors"
PICTURE = ROOT / "demo_digits.png"
COUNT, STEPS, SEED = 4096, 50, 0
TRIAL_STEPS = 5
BATCHES = (256, 1024, 4096)
Loop = Callable[[int, int, int], Tensor]


def main() -> None:
    model = ScoreModel.load(CHECKPOINT)
    print(f"{COUNT} digits in {STEPS} DDIM steps on {torch.get_num_threads()} CPU threads")

    def plain_loop(begin: int, end: int, steps: int) -> Tensor:
        digits = plain_pytorch.sample(model, prior[begin:end], steps).view(-1, *model.config.shape)
        return model.config.scale.restore(digits)

    def compiled_loop(begin: int, end: int, steps: int) -> Tensor:
        return model.sample(end - begin, steps=steps, seed=SEED, first_sample=begin)

    prior = model.process.prior_sampling((COUNT, *model.config.shape), seed=SEED).flatten(1)
    plain, plain_rate = draw("plain PyTorch", plain_loop)
    compiled, compiled_rate = draw("genssl_fast", compiled_loop)
    print(f"plain PyTorch       {plain_rate:8,.0f} images/s")
    print(f"genssl_fast         {compiled_rate:8,.0f} images/s")
    print(f"ratio               {compiled_rate / plain_rate:8.2f}")
    difference, highest = (plain - compiled).abs().max(), model.config.scale.high
    print(f"largest difference  {difference:8.2g} of {highest:g} grey levels")
    print_quality(model, compiled)
    write_picture(compiled)
    print(f"picture             {PICTURE.relative_to(ROOT)}")


def draw(name: str, loop: Loop) -> tuple[Tensor, float]:
    """All images by one loop in its best batch size, and images per second."""
    batch = max(BATCHES, key=lambda batch: rate(loop, batch))
    with ProgressReport(name, COUNT, "images") as progress:
        images = []
        for begin in range(0, COUNT, batch):
            images.append(loop(begin, begin + batch, STEPS))
            progress.advance(batch)
        return torch.cat(images), progress.rate


def rate(loop: Loop, batch: int) -> float:
    """Images per second of a short trial."""
    start = time.perf_counter()
    loop(0, batch, TRIAL_STEPS)
    return batch / (time.perf_counter() - start)


def print_quality(model: ScoreModel, digits: Tensor) -> None:
    """Both measures, on the 17 grey levels of real digits, beside what real digits would get."""
    training, held_out = (data.scale.restore(data.samples) for data in load_digits())
    components = principal_components(training, 20)

    def distance(samples: Tensor) -> float:
        return frechet_distance(samples, held_out, components=components)

    def accuracy(samples: Tensor) -> float:
        return forest_two_sample_accuracy(samples[: len(held_out)], held_out)

    more = [model.sample(COUNT, steps=STEPS, seed=SEED + i) for i in (1, 2)]
    seeds = ", ".join(f"{distance(samples.round()):.1f}" for samples in (digits, *more))
    print(f"FD20                {seeds} for seeds {SEED}, {SEED + 1}, {SEED + 2}")
    print(f"                    {distance(training):.1f} for real training digits")
    print(f"forest tells apart  {accuracy(digits.round()):8.1%} (samples from real)")
    print(f"                    {accuracy(training):8.1%} (real from real)")


def write_picture(digits: Tensor) -> None:
    real = load_digits()[1]
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
    for axis, title, images in (
        (axes[0], "samples", digits),
        (axes[1], "real digits", real.scale.restore(real.samples)),
    ):
        axis.imshow(contact_sheet(images), cmap="gray_r", vmin=0, vmax=16)
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(PICTURE, dpi=120)


def contact_sheet(images: Tensor, rows: int = 8) -> Tensor:
    """The first images [rows * rows, 1, H, W] as one, with a margin around each."""
    tiles = pad(images[: rows * rows, 0], (1, 1, 1, 1))
    height, width = tiles.shape[1:]
    return tiles.view(rows, rows, height, width).transpose(1, 2).reshape(rows * height, -1)


if __name__ == "__main__":
    main()
