"""Train a score model on data and write a checkpoint of its averaged weights.

Beside OUT, OUT.training holds all that --resume needs. Ctrl-C finishes the step, saves both and stops.
"""

import argparse
import dataclasses
import math
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from genssl_fast._checks import check
from genssl_fast._progress import ProgressReport
from genssl_fast.commands.arguments import (
    add_device,
    add_threads,
    fraction,
    output_path,
    positive,
    positive_int,
    seed,
)
from genssl_fast.commands.device import use_device
from genssl_fast.data import load_dataset
from genssl_fast.diffusion import PARAMETERIZATIONS
from genssl_fast.score_model import PROCESSES, WEIGHTINGS, ScoreModelConfig
from genssl_fast.training import ScoreTrainer, TrainingConfig

__all__ = ["add_arguments", "run"]

# The loss is read, which waits for the device, once in so many steps.
STEPS_PER_REPORT = 20
TRAINING, MODEL = TrainingConfig(), ScoreModelConfig(shape=())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", help="digits (bundled), a .npy or .npz file with samples in rows, or a folder of images"
    )
    parser.add_argument(
        "--out", type=output_path(".safetensors"), required=True, help="the checkpoint, NAME.safetensors"
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--resume", action="store_true", help="go on with the run that OUT.training was saved from"
    )
    begin.add_argument("--overwrite", action="store_true", help="begin anew where OUT exists")
    _add_training_arguments(parser.add_argument_group("training"))
    _add_model_arguments(parser.add_argument_group("model"))
    add_device(parser)
    add_threads(parser)


def _add_training_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--steps", type=positive_int, help=f"steps in all (default: {TRAINING.steps})")
    group.add_argument("--minutes", type=positive, help="stop after so long; --resume goes on")
    group.add_argument("--batch", type=positive_int, help=f"samples in a step (default: {TRAINING.batch})")
    group.add_argument(
        "--learning-rate", type=positive, help=f"highest rate of AdamW (default: {TRAINING.learning_rate})"
    )
    group.add_argument(
        "--ema", type=fraction, help=f"decay of the averaged weights (default: {TRAINING.ema})"
    )
    group.add_argument(
        "--weighting",
        choices=WEIGHTINGS,
        help="of the objective over time: the error of what the network predicts, sigma^2 or g^2 "
        f"(default: {TRAINING.weighting})",
    )
    group.add_argument("--seed", type=seed, help=f"(default: {TRAINING.seed})")
    group.add_argument(
        "--save-every", type=positive, default=60.0, help="seconds between checkpoints (default: 60)"
    )


def _add_model_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--process", choices=PROCESSES, help=f"forward process (default: {MODEL.process})")
    group.add_argument(
        "--parameterization",
        choices=PARAMETERIZATIONS,
        help=f"what the network predicts (default: {MODEL.parameterization})",
    )
    for name, what in (
        ("hidden", "width of the network"),
        ("blocks", "residual blocks"),
        ("embed", "width of the embedding of time"),
        ("time_dim", "sinusoidal features of time"),
    ):
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive_int,
            help=f"{what} (default: {getattr(MODEL, name)})",
        )


def run(arguments: argparse.Namespace) -> None:
    device = use_device(arguments)
    training = _resume(arguments, device) if arguments.resume else _start(arguments, device)
    trainer = training.trainer
    training.save()  # a path that cannot be written shows now, not after the first minute
    with _stop_requests() as requests:
        training.run(requests)
    if requests:
        raise KeyboardInterrupt(f"stopped at step {trainer.step}; {training.next_command}")
    print(f"{arguments.out}: trained for {trainer.step} steps")
    if trainer.step < trainer.config.steps:
        print(training.next_command)


def _start(arguments: argparse.Namespace, device: torch.device) -> "_Training":
    if arguments.data is None:
        raise ValueError("data: expected --data digits, --data PATH or --resume, got none of them")
    begun = _state_path(arguments.out).exists() or arguments.out.exists()
    expected = "a new path, --resume to go on or --overwrite to begin anew"
    check(arguments.overwrite or not begun, "out", expected, f"{arguments.out}, which exists")
    dataset = load_dataset(arguments.data)
    model = ScoreModelConfig(
        shape=dataset.samples.shape[1:], scale=dataset.scale, **_given(arguments, ScoreModelConfig)
    )
    trainer = ScoreTrainer(model, TrainingConfig(**_given(arguments, TrainingConfig)), device=device)
    facts = {"data": arguments.data, "command": shlex.join(["genssl-fast", *arguments.argv])}
    return _Training(trainer, dataset.samples.to(device), facts, arguments)


def _resume(arguments: argparse.Namespace, device: torch.device) -> "_Training":
    changes = {} if arguments.steps is None else {"steps": arguments.steps}
    trainer, facts = ScoreTrainer.load(_state_path(arguments.out), device=device, **changes)
    expected = f"at least {trainer.step}, which the run has done"
    check(trainer.step <= trainer.config.steps, "steps", expected, trainer.config.steps)
    begun = facts | dataclasses.asdict(trainer.model.config) | dataclasses.asdict(trainer.config)
    given = _given(arguments, ScoreModelConfig) | _given(arguments, TrainingConfig)
    given["data"] = arguments.data or facts["data"]
    for name, value in given.items():
        expected = f"{begun[name]!r}, with which the run was begun"
        check(value == begun[name], name, expected, repr(value))
    samples = load_dataset(facts["data"]).samples.to(device)
    return _Training(trainer, samples, facts, arguments)


def _given(arguments: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of a configuration that the command line sets."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if value is not None}


def _state_path(out: Path) -> Path:
    return out.with_name(out.name + ".training")


class _Training:
    """One run of a trainer: its clock, its progress and its checkpoints."""

    def __init__(
        self,
        trainer: ScoreTrainer,
        samples: torch.Tensor,
        facts: dict[str, str],
        arguments: argparse.Namespace,
    ) -> None:
        self.trainer, self.samples, self.facts, self.arguments = trainer, samples, facts, arguments
        limit = math.inf if arguments.minutes is None else 60 * arguments.minutes
        self.stop_time = time.monotonic() + limit

    def run(self, requests: list[int]) -> None:
        """Trains to the last step, the time limit or the first request to stop, and saves."""
        trainer, saved = self.trainer, time.monotonic()
        total = trainer.config.steps
        with ProgressReport("training", total, "steps", done=trainer.step) as progress:
            while trainer.step < total and not requests and time.monotonic() < self.stop_time:
                loss = trainer.train_step(self.samples)
                save = time.monotonic() - saved > self.arguments.save_every
                if save or requests or trainer.step % STEPS_PER_REPORT == 0 or trainer.step == total:
                    progress.advance(trainer.step - progress.done, loss=self._finite(loss))
                if save:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def save(self) -> None:
        """Writes the state first: it alone decides where a resumed run goes on."""
        out = self.arguments.out
        try:
            self.trainer.save(_state_path(out), **self.facts)
            self.trainer.save_model(out, **self.facts)
        except OSError as error:
            raise OSError(f"out: expected a path that can be written, got {out} ({error})") from error

    @property
    def next_command(self) -> str:
        out = self.arguments.out
        return f"{out} is usable; 'genssl-fast train --resume --out {out}' goes on"

    def _finite(self, loss: torch.Tensor) -> float:
        value = float(loss)
        if not math.isfinite(value):
            raise ArithmeticError(
                f"loss: expected a finite number, got {value} at step {self.trainer.step}; "
                f"try a lower --learning-rate; {self.arguments.out} is as it was last saved"
            )
        return value


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """The signals that asked to stop: a step is never cut in half, so a resumed run is exact."""
    requests: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: requests.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield requests
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
