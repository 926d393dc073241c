"""Draw samples from a checkpoint, in units of its training data.

Sample number k depends on the seed and k alone: not on the batch, the threads, the number of processes
(start several with torchrun) or interruptions. An interrupted run goes on where it was when the same
command is given again; OUT appears when it is complete.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genssl_fast._outputs import check_output, finish_output
from genssl_fast._partial import PartialArray
from genssl_fast._progress import ProgressReport
from genssl_fast._workers import Workers
from genssl_fast.commands.arguments import add_device, add_threads, output_path, positive_int, seed
from genssl_fast.commands.device import use_device
from genssl_fast.diffusion import SAMPLERS
from genssl_fast.score_model import ScoreModel

__all__ = ["add_arguments", "run"]

# "identity" leaves all work to a corrector, which the command line has not.
CHOICES = tuple(name for name in SAMPLERS if name != "identity")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="what 'genssl-fast train' wrote")
    parser.add_argument("--count", type=positive_int, required=True, help="how many samples")
    parser.add_argument(
        "--out",
        type=output_path(".npz", ".npy", ""),
        required=True,
        help="NAME.npz (array 'samples'), NAME.npy, or a new folder for PNG images",
    )
    parser.add_argument("--sampler", choices=CHOICES, default="ddim", help="(default: ddim)")
    parser.add_argument("--steps", type=positive_int, default=50, help="sampler steps (default: 50)")
    parser.add_argument("--seed", type=seed, default=0, help="(default: 0)")
    parser.add_argument(
        "--batch", type=positive_int, default=1024, help="samples drawn at once (default: 1024)"
    )
    parser.add_argument(
        "--no-clip",
        dest="clip",
        action="store_false",
        help="let denoised predictions leave the range of the data",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "compiled", "eager"),
        default="auto",
        help="compiled: the whole loop as one operation; eager: a loop in Python; auto: the first "
        "where possible (default)",
    )
    add_device(parser)
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    device = use_device(arguments)
    model = ScoreModel.load(arguments.checkpoint, device=device)
    check_output(arguments.out, model.config.shape)
    partial = PartialArray(arguments.out, arguments.count, model.config.shape)
    workers = Workers.connect()
    try:
        workers.first_does(lambda: partial.prepare(_job(arguments, device)))
        _fill(partial, model, arguments, workers)
        workers.wait_for_all()
        workers.first_does(lambda: finish_output(partial, model.config.scale))
    finally:
        workers.disconnect()
    if workers.is_first:
        print(f"{arguments.out}: {arguments.count} samples")


def _fill(partial: PartialArray, model: ScoreModel, arguments: argparse.Namespace, workers: Workers) -> None:
    """Draws this process's share of the samples, all but those that are on disk already."""
    share = workers.share(arguments.count)
    with partial:
        if workers.is_first:
            partial.lock()
        done = partial.num_done(share)
        report = ProgressReport("drawing", len(share), "images", done=done, quiet=not workers.is_first)
        try:
            with report:
                for samples in partial.pending(share, arguments.batch):
                    partial.write(samples.start, _draw(model, samples, arguments))
                    report.advance(len(samples))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_interrupted(partial)) from None
        except OSError as error:
            raise partial.error(error) from error


def _draw(model: ScoreModel, samples: range, arguments: argparse.Namespace) -> np.ndarray:
    drawn = model.sample(
        len(samples),
        sampler=arguments.sampler,
        steps=arguments.steps,
        seed=arguments.seed,
        first_sample=samples.start,
        clip=arguments.clip,
        backend=arguments.backend,
        check_finite=True,
    )
    return drawn.numpy(force=True)


def _job(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All that the samples depend on."""
    names = ("count", "sampler", "steps", "seed", "clip", "backend")
    with open(arguments.checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {name: getattr(arguments, name) for name in names} | {
        "checkpoint": digest,
        "device": device.type,
    }


def _interrupted(partial: PartialArray) -> str:
    partial.mark()
    done = partial.num_done(range(partial.count))
    return (
        f"interrupted; {done} of {partial.count} samples are safe in {partial.data_path}; "
        "give the same command again to go on"
    )
