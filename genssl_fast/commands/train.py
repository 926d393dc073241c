"""Train a score model, a normalizing flow or a self-supervised backbone and write a checkpoint.

Of score models and flows it holds the averaged weights. A flow is trained until held-out data are explained
no better, and the checkpoint is the best on these. A backbone is trained as its recipe says.
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

import torch

from genssl_fast._checks import check
from genssl_fast._memory import keep_freed_memory
from genssl_fast.commands.arguments import (
    add_device,
    add_threads,
    fraction,
    output_path,
    positive,
    positive_int,
    seed,
)
from genssl_fast.commands.collapse import collapse_warnings
from genssl_fast.commands.device import use_device
from genssl_fast.commands.flow_options import (
    FLOW_OPTIONS,
    add_flow_arguments,
    flow_arguments,
    flow_defaults,
    flow_options,
    given,
)
from genssl_fast.data import BUNDLED, Dataset, load_dataset
from genssl_fast.diffusion import PARAMETERIZATIONS
from genssl_fast.flow_model import FlowModelConfig
from genssl_fast.flows import FLOWS
from genssl_fast.progress import ProgressReport
from genssl_fast.score_model import PROCESSES, WEIGHTINGS, ScoreModelConfig
from genssl_fast.ssl import METHODS, load_recipe
from genssl_fast.ssl_model import SSLModelConfig
from genssl_fast.ssl_training import SSLTrainer, SSLTrainingConfig
from genssl_fast.training import (
    FlowTrainer,
    FlowTrainingConfig,
    ScoreTrainer,
    Trainer,
    TrainingConfig,
)

__all__ = ["add_arguments", "run"]

# The loss is read, which waits for the device, once in so many steps.
STEPS_PER_REPORT = 20
SCORE = "score"
TRAINING, FLOW_TRAINING = TrainingConfig(), FlowTrainingConfig()
MODEL = ScoreModelConfig(shape=())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        help=f"{', '.join(BUNDLED)} (bundled), a .npy or .npz file with samples in rows, or a folder of "
        "images",
    )
    parser.add_argument(
        "--out", type=output_path(".safetensors"), required=True, help="the checkpoint, NAME.safetensors"
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--resume", action="store_true", help="go on with the run that OUT.training was saved from"
    )
    begin.add_argument("--overwrite", action="store_true", help="begin anew where OUT exists")
    parser.add_argument("--model", choices=(SCORE, *FLOWS, *METHODS), help=f"(default: {SCORE})")
    _add_training_arguments(parser.add_argument_group("training"))
    _add_score_arguments(parser.add_argument_group("score model"))
    add_flow_arguments(parser.add_argument_group("flows"))
    group = parser.add_argument_group("self-supervised learning")
    group.add_argument(
        "--recipe",
        help="what the method and its training are made with: a .toml file, or the name of a bundled one "
        "(default: that of the method)",
    )
    add_device(parser)
    add_threads(parser)


def _add_training_arguments(group: argparse._ArgumentGroup) -> None:
    def default(name: str) -> str:
        values = f"{getattr(TRAINING, name)}, flows {getattr(FLOW_TRAINING, name)}"
        return f"(default: {values}, self-supervision what its recipe says)"

    averaged = f"(default: {TRAINING.ema}, flows {FLOW_TRAINING.ema})"
    group.add_argument("--steps", type=positive_int, help=f"steps at most {default('steps')}")
    group.add_argument("--minutes", type=positive, help="stop after so long; --resume goes on")
    group.add_argument("--batch", type=positive_int, help=f"samples in a step {default('batch')}")
    group.add_argument(
        "--learning-rate", type=positive, help=f"highest rate of AdamW {default('learning_rate')}"
    )
    group.add_argument("--ema", type=fraction, help=f"decay of the averaged weights {averaged}")
    group.add_argument("--seed", type=seed, help=f"(default: {TRAINING.seed})")
    group.add_argument(
        "--save-every", type=positive, default=60.0, help="seconds between checkpoints (default: 60)"
    )


def _add_score_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--process", choices=PROCESSES, help=f"forward process (default: {MODEL.process})")
    group.add_argument(
        "--parameterization",
        choices=PARAMETERIZATIONS,
        help=f"what the network predicts (default: {MODEL.parameterization})",
    )
    group.add_argument(
        "--weighting",
        choices=WEIGHTINGS,
        help="of the objective over time: the error of what the network predicts, sigma^2 or g^2 "
        f"(default: {TRAINING.weighting})",
    )
    for name, what in (
        ("hidden", "width of the network, or of every hidden layer of a flow's networks"),
        ("blocks", "residual blocks"),
        ("embed", "width of the embedding of time"),
        ("time_dim", "sinusoidal features of time"),
    ):
        others = ", flows each their own" if name == "hidden" else ""
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive_int,
            help=f"{what} (default: {getattr(MODEL, name)}{others})",
        )


def run(arguments: argparse.Namespace) -> None:
    device = use_device(arguments)
    keep_freed_memory()
    training = _resume(arguments, device) if arguments.resume else _start(arguments, device)
    trainer = training.trainer
    if trainer.step == 0:
        trainer.prepare(training.samples)  # options that no flow can be made with show before there are files
    training.save()  # a path that cannot be written shows now, not after the first minute
    with _stop_requests() as requests, collapse_warnings("train"):
        training.run(requests)
    if requests:
        raise KeyboardInterrupt(f"stopped at step {trainer.step}; {training.next_command}")
    details = [f"{name} {value:.4g} {trainer.unit}".rstrip() for name, value in trainer.details.items()]
    print(f"{arguments.out}: {'; '.join([f'trained for {trainer.step} steps', *details])}")
    if not trainer.finished:
        print(training.next_command)


def _start(arguments: argparse.Namespace, device: torch.device) -> "_Training":
    if arguments.data is None:
        raise ValueError("data: expected --data digits, --data PATH or --resume, got none of them")
    begun = _state_path(arguments.out).exists() or arguments.out.exists()
    expected = "a new path, --resume to go on or --overwrite to begin anew"
    check(arguments.overwrite or not begun, "out", expected, f"{arguments.out}, which exists")
    dataset = load_dataset(arguments.data, per_entry=arguments.model in FLOWS)
    trainer = _new_trainer(arguments, dataset, device)
    facts = {"data": arguments.data, "command": shlex.join(["genssl-fast", *arguments.argv])}
    if arguments.model in METHODS:
        facts["recipe"] = arguments.recipe or arguments.model
    return _Training(trainer, dataset.samples.to(device), facts, arguments)


def _new_trainer(arguments: argparse.Namespace, dataset: Dataset, device: torch.device) -> Trainer:
    name, shape = arguments.model or SCORE, dataset.samples.shape[1:]
    _check_options_belong_to(name, arguments)
    if name == SCORE:
        config = ScoreModelConfig(
            shape=shape, scale=dataset.scale, **given(arguments, _fields(ScoreModelConfig))
        )
        training = TrainingConfig(**given(arguments, _fields(TrainingConfig)))
        return ScoreTrainer(config, training, device=device)
    if name in METHODS:
        return _new_ssl_trainer(name, arguments, dataset, device)
    is_used = arguments.alpha is None or dataset.num_levels is not None
    check(is_used, "alpha", "no such option for continuous data", arguments.alpha)
    config = FlowModelConfig(
        shape=shape,
        flow=name,
        options=flow_arguments(flow_options(arguments, flow_defaults(name))),
        num_levels=dataset.num_levels,
        scale=dataset.scale,
        **given(arguments, ("alpha",)),
    )
    training = FlowTrainingConfig(**given(arguments, _fields(FlowTrainingConfig)))
    return FlowTrainer(config, training, device=device)


def _new_ssl_trainer(
    name: str, arguments: argparse.Namespace, dataset: Dataset, device: torch.device
) -> SSLTrainer:
    recipe = load_recipe(arguments.recipe or name)
    check(
        recipe.method == name, "recipe", f"one for --model {name}", f"{arguments.recipe} for {recipe.method}"
    )
    model, training = recipe._asdict(), recipe.training | given(arguments, _fields(SSLTrainingConfig))
    del model["training"]
    try:
        config = SSLModelConfig(dataset.samples.shape[1:], scale=dataset.scale, **model)
        return SSLTrainer(config, SSLTrainingConfig(**training), device=device)
    except TypeError as error:  # an argument that there is not
        raise ValueError(f"recipe: expected arguments of its method, got {error}") from error


def _resume(arguments: argparse.Namespace, device: torch.device) -> "_Training":
    changes = {} if arguments.steps is None else {"steps": arguments.steps}
    trainer, facts = Trainer.load(_state_path(arguments.out), device=device, **changes)
    expected = f"at least {trainer.step}, which the run has done"
    check(trainer.step <= trainer.config.steps, "steps", expected, trainer.config.steps)
    begun = facts | dataclasses.asdict(trainer.model.config) | dataclasses.asdict(trainer.config)
    begun["model"] = begun.get("flow") or begun.get("method") or SCORE
    _check_options_belong_to(begun["model"], arguments)
    chosen = given(arguments, begun.keys() - {"command"})
    if begun["model"] in FLOWS:
        defaults = flow_defaults(begun["model"])
        used = {name: begun["options"].get(FLOW_OPTIONS[name], value) for name, value in defaults.items()}
        chosen |= flow_options(arguments, used)
        begun |= used
    for name, value in chosen.items():
        expected = f"{begun[name]!r}, with which the run was begun"
        check(value == begun[name], name, expected, repr(value))
    samples = load_dataset(facts["data"], scale=trainer.model.config.scale).samples.to(device)
    return _Training(trainer, samples, facts, arguments)


def _check_options_belong_to(model: str, arguments: argparse.Namespace) -> None:
    """An option of another kind of model would go unnoticed."""
    score = _fields(ScoreModelConfig) | _fields(TrainingConfig)
    flow = {"alpha"} | _fields(FlowTrainingConfig)
    method = {"recipe"} | _fields(SSLTrainingConfig)
    everything = score | flow | method | {"depth", *FLOW_OPTIONS}
    accepted = score if model == SCORE else method
    if model in FLOWS:
        accepted = flow | flow_defaults(model).keys()
        if isinstance(flow_defaults(model).get("hidden"), list):
            accepted.add("depth")
    for name in sorted(everything - accepted):
        value = getattr(arguments, name, None)
        check(value is None, name, f"no such option with --model {model}", value)


def _fields(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _state_path(out: Path) -> Path:
    return out.with_name(out.name + ".training")


class _Training:
    """One run of a trainer: its clock, its progress and its checkpoints."""

    def __init__(
        self,
        trainer: Trainer,
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
        what = f"training, loss in {trainer.unit}" if trainer.unit else "training"
        with ProgressReport(what, total, "steps", done=trainer.step) as progress:
            while not trainer.finished and not requests and time.monotonic() < self.stop_time:
                loss = self._step()
                save = time.monotonic() - saved > self.arguments.save_every
                if save or requests or trainer.step % STEPS_PER_REPORT == 0 or trainer.finished:
                    count = trainer.step - progress.done
                    loss = trainer.in_unit(self._finite(loss))
                    progress.advance(count, loss=loss, **trainer.details)
                if save:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def _step(self) -> torch.Tensor:
        try:
            return self.trainer.train_step(self.samples)
        except ValueError as error:  # of an operation, for weights that have left its range
            raise self._diverged(str(error)) from error

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
            raise self._diverged(f"loss: expected a finite number, got {value}")
        return value

    def _diverged(self, what: str) -> ArithmeticError:
        return ArithmeticError(
            f"{what} at step {self.trainer.step}; try a lower --learning-rate; "
            f"{self.arguments.out} is as it was last saved"
        )


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
