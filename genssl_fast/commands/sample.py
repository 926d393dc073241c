"""Draw samples from a checkpoint, in units of its training data.

Sample number k depends on the seed and k alone: not on the batch, the threads, the number of processes
(start several with torchrun) or interruptions. An interrupted run goes on where it was when the same
command is given again; OUT appears when it is complete. All this is bit for bit for score models and, on
the CPU, for flows that run as one compiled plan: all but planar. For others, samples are the
same within rounding, and a run goes on with the same --batch, --threads and processes only.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genssl_fast._checks import check
from genssl_fast._outputs import check_output, finish_output
from genssl_fast._partial import PartialArray
from genssl_fast._workers import Workers
from genssl_fast.commands.arguments import add_device, add_threads, output_path, positive_int, seed
from genssl_fast.commands.device import use_device
from genssl_fast.commands.model import load_model
from genssl_fast.diffusion import SAMPLERS
from genssl_fast.flow_model import FlowModel
from genssl_fast.progress import ProgressReport
from genssl_fast.score_model import ScoreModel

__all__ = ["add_arguments", "run"]

Model = ScoreModel | FlowModel

# "identity" leaves all work to a corrector, which the command line has not.
CHOICES = tuple(name for name in SAMPLERS if name != "identity")
# How score models are sampled; a flow leaves nothing to choose.
DEFAULTS = {"sampler": "ddim", "steps": 50, "clip": True, "backend": "auto"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="what 'genssl-fast train' wrote")
    parser.add_argument("--count", type=positive_int, required=True, help="how many samples")
    parser.add_argument(
        "--out",
        type=output_path(".npz", ".npy", ""),
        required=True,
        help="NAME.npz (array 'samples'), NAME.npy, or a new folder for PNG images",
    )
    parser.add_argument("--seed", type=seed, default=0, help="(default: 0)")
    parser.add_argument(
        "--batch", type=positive_int, default=1024, help="samples drawn at once (default: 1024)"
    )
    _add_score_arguments(parser.add_argument_group("score models"))
    add_device(parser)
    add_threads(parser)


def _add_score_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--sampler", choices=CHOICES, help=f"(default: {DEFAULTS['sampler']})")
    group.add_argument("--steps", type=positive_int, help=f"sampler steps (default: {DEFAULTS['steps']})")
    group.add_argument(
        "--no-clip",
        dest="clip",
        action="store_const",
        const=False,
        help="let denoised predictions leave the range of the data",
    )
    group.add_argument(
        "--backend",
        choices=("auto", "compiled", "eager"),
        help="compiled: the whole loop as one operation; eager: a loop in Python; auto: the first "
        "where possible (default)",
    )


def run(arguments: argparse.Namespace) -> None:
    device = use_device(arguments)
    model = load_model(arguments.checkpoint, device)
    options = _options(model, arguments)
    check_output(arguments.out, model.config.shape)
    dtype = np.float64 if model.config.scale.shape else np.float32
    partial = PartialArray(arguments.out, arguments.count, model.config.shape, dtype)
    workers = Workers.connect()
    try:
        workers.first_does(lambda: partial.prepare(_job(model, arguments, options, workers)))
        _fill(partial, model, arguments, options, workers)
        workers.wait_for_all()
        workers.first_does(lambda: finish_output(partial, model.config.scale.overall))
    finally:
        workers.disconnect()
    if workers.is_first:
        print(f"{arguments.out}: {arguments.count} samples")


def _options(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the kind of model leaves to choose."""
    given = {name: getattr(arguments, name) for name in DEFAULTS}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(model, ScoreModel):
        return DEFAULTS | given
    for name, value in given.items():
        check(False, name, f"no such option for {arguments.checkpoint}, which is a flow", value)
    return {}


def _fill(
    partial: PartialArray,
    model: Model,
    arguments: argparse.Namespace,
    options: dict[str, Any],
    workers: Workers,
) -> None:
    """Draws this process's share of the samples, all but those that are on disk already."""
    share = workers.share(arguments.count)
    with partial:
        if workers.is_first:
            partial.lock()
        done = partial.num_done(share)
        report = ProgressReport("drawing", len(share), "samples", done=done, quiet=not workers.is_first)
        try:
            with report:
                for samples in partial.pending(share, arguments.batch):
                    partial.write(samples.start, _draw(model, samples, arguments.seed, options))
                    report.advance(len(samples))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_interrupted(partial)) from None
        except OSError as error:
            raise partial.error(error) from error


def _draw(model: Model, samples: range, seed: int, options: dict[str, Any]) -> np.ndarray:
    if isinstance(model, ScoreModel):
        options = options | dict(check_finite=True)
    drawn = model.sample(len(samples), seed=seed, first_sample=samples.start, **options).numpy(force=True)
    if not np.isfinite(drawn).all():
        raise ArithmeticError(
            f"samples: expected finite numbers, got NaN or infinity in {samples.start} to {samples.stop - 1}"
        )
    return drawn


def _job(
    model: Model, arguments: argparse.Namespace, options: dict[str, Any], workers: Workers
) -> dict[str, Any]:
    """All that the bits of the samples depend on."""
    with open(arguments.checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    job = options | {
        "count": arguments.count,
        "seed": arguments.seed,
        "checkpoint": digest,
        "device": next(model.parameters()).device.type,
    }
    if isinstance(model, ScoreModel) or model.samples_are_exact:
        return job
    return job | {"batch": arguments.batch, "threads": torch.get_num_threads(), "processes": workers.count}


def _interrupted(partial: PartialArray) -> str:
    partial.mark()
    done = partial.num_done(range(partial.count))
    return (
        f"interrupted; {done} of {partial.count} samples are safe in {partial.data_path}; "
        "give the same command again to go on"
    )
