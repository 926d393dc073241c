"""Training that can stop at any step and go on as if it had not: score models and flows."""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from genssl_fast._checks import check, check_choice, check_integer, check_number
from genssl_fast._random import Stream, step_counter
from genssl_fast.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from genssl_fast.flow_model import FlowModel, FlowModelConfig
from genssl_fast.ops.ema import ema_update
from genssl_fast.ops.random import random_uniform
from genssl_fast.score_model import WEIGHTINGS, ScoreModel, ScoreModelConfig

__all__ = [
    "AveragingTrainer",
    "FlowTrainer",
    "FlowTrainingConfig",
    "ScoreTrainer",
    "Trainer",
    "TrainingConfig",
    "check_schedule",
]


@dataclass(frozen=True)
class TrainingConfig:
    """How a score model is trained.

    Arguments:
        steps: The number of steps, over which the learning rate falls to zero along a cosine.
        batch: The number of samples in a step.
        learning_rate: The highest learning rate of AdamW.
        warmup: The number of steps over which the learning rate rises.
        ema: The decay of the exponential moving average of the weights.
        weighting: See :meth:`ScoreModel.loss`.
        seed: The seed of weights, batches, times and noise.
    """

    steps: int = 20000
    batch: int = 128
    learning_rate: float = 4e-3
    warmup: int = 200
    ema: float = 0.999
    weighting: str = "prediction"
    seed: int = 0

    def __post_init__(self) -> None:
        check_schedule(self)
        check(0 <= self.ema < 1, "ema", "a number in [0, 1)", self.ema)
        check_choice("weighting", self.weighting, WEIGHTINGS)


@dataclass(frozen=True)
class FlowTrainingConfig:
    """How a flow is trained, until a part of the data that it does not see is explained no better.

    Arguments:
        steps: The greatest number of steps, over which the learning rate falls to zero along a cosine.
        batch: The number of samples in a step.
        learning_rate: The highest learning rate of AdamW.
        weight_decay: That of AdamW.
        warmup: The number of steps over which the learning rate rises.
        ema: The decay of the exponential moving average of the weights.
        held_out: The fraction of the samples to validate with, rounded to every second, third, ...; 0 trains
            on all of them to the last step.
        validate_every: Steps between validations.
        patience: Validations without a new best after which training stops.
        seed: The seed of weights, batches and noise.
    """

    steps: int = 5000
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: int = 100
    ema: float = 0.995
    held_out: float = 0.1
    validate_every: int = 50
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_schedule(self)
        check(0 <= self.ema < 1, "ema", "a number in [0, 1)", self.ema)
        check(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        check(0 <= self.held_out <= 0.5, "held_out", "a number in [0, 0.5]", self.held_out)
        check(self.validate_every >= 1, "validate_every", "at least 1", self.validate_every)
        check(self.patience >= 1, "patience", "at least 1", self.patience)


def check_schedule(config: Any) -> None:
    """What every configuration of a training has; and that its numbers are numbers."""
    checks = {int: check_integer, float: check_number}
    for field in fields(config):
        if field.type in checks:
            checks[field.type](field.name, getattr(config, field.name))
    check(config.steps >= 1, "steps", "at least 1", config.steps)
    check(config.batch >= 1, "batch", "at least 1", config.batch)
    check(config.learning_rate > 0, "learning_rate", "a positive number", config.learning_rate)


class Trainer:
    """What training needs whatever is trained; a run that was stopped and resumed ends with the same weights.

    Everything random is drawn on counters from (seed, step), so the state is the tensors of
    :meth:`save` and the number of the step.

    Arguments:
        model: The configuration of the model.
        config: How to train.
        device: Where to train.
    """

    kind: ClassVar[str]
    model_type: ClassVar[type[nn.Module]]
    model_config_type: ClassVar[type]
    config_type: ClassVar[type]

    def __init__(self, model: Any, config: Any, *, device: torch.device | str = "cpu") -> None:
        self.config, self.step = config, 0
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.model = self.model_type(model).to(device)
        decay = getattr(config, "weight_decay", 0.0)
        self.optimizer = torch.optim.AdamW(self._parameters(), weight_decay=decay, foreach=True)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.step >= self.config.steps

    @property
    def details(self) -> dict[str, float]:
        """Numbers that say how training goes, beside the loss, in :attr:`unit`."""
        return {}

    @property
    def unit(self) -> str:
        """The unit that losses are reported in; empty where they have none."""
        return ""

    def in_unit(self, loss: float) -> float:
        """What :meth:`train_step` returned, in :attr:`unit`."""
        return loss

    def prepare(self, samples: Tensor) -> None:
        """Does what precedes the first step; wrong options and too few samples show here."""

    @property
    def best(self) -> nn.Module:
        """The model that training is for."""
        return self.model

    def train_step(self, samples: Tensor) -> Tensor:
        """One step on a batch drawn from samples [N, *shape] in [-1, 1].

        Returns:
            The loss, a scalar that has not been waited for.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        loss = self._loss(samples[self._batch(len(samples), samples.device)])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._after_step()
        return loss.detach()

    def save_model(self, path: str | Path, **facts: Any) -> None:
        """Writes the weights to use, those of :attr:`best`."""
        self.best.save(path, training=asdict(self.config) | dict(step=self.step), **facts)

    def save(self, path: str | Path, **facts: Any) -> None:
        """Writes all that :meth:`load` needs to go on; `facts` come back from it."""
        config = dict(
            kind=self.kind,
            model=asdict(self.model.config),
            training=asdict(self.config),
            step=self.step,
            facts=facts,
        )
        save_checkpoint(path, self._tensors(), config)

    @classmethod
    def load(
        cls, path: str | Path, *, device: torch.device | str = "cpu", **changes: Any
    ) -> tuple[Self, dict[str, Any]]:
        """Takes up a run that :meth:`save` wrote; `Trainer.load` itself takes up a run of any kind.

        Arguments:
            path: The file.
            device: Where to train.
            changes: Fields of the configuration that are to differ from now on.

        Returns:
            The trainer and the facts that were saved with it.
        """
        tensors, config = load_checkpoint(path)
        types = {trainer.kind: trainer for trainer in _leaves(cls)}
        kind = config.get("kind")
        if kind not in types:
            raise CheckpointError(f"resume: expected a {' or '.join(types)}, got {kind!r} in {path}")
        cls = types[kind]
        training = cls.config_type(**config["training"] | changes)
        trainer = cls(cls.model_config_type(**config["model"]), training, device=device)
        trainer._restore(tensors, config["step"])
        return trainer, config["facts"]

    def _loss(self, batch: Tensor) -> Tensor:
        raise NotImplementedError

    def _after_step(self) -> None:
        """What follows the optimizer's step."""

    def _parameters(self) -> Iterable[Any]:
        """What the optimizer trains: parameters, or groups of them."""
        return self.model.parameters()

    def _stored(self, model: nn.Module) -> nn.Module:
        """The part of a model that is trained and saved."""
        return model

    def _batch(self, count: int, device: torch.device) -> Tensor:
        return (self._numbers(self.config.batch, device) * count).long().clamp(max=count - 1)

    def _numbers(self, count: int, device: torch.device) -> Tensor:
        """Uniform numbers [count] that choose the batch of this step."""
        # The complement of the seed keeps these numbers apart from those of the objective.
        step = step_counter(Stream.DATA, self.step)
        return random_uniform((count,), seed=~self.config.seed, step=step, device=device)

    def _learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / max(self.config.warmup, 1))
        decay = 0.5 * (1 + math.cos(math.pi * min(self.step / self.config.steps, 1.0)))
        return self.config.learning_rate * warmup * decay

    def _tensors(self) -> dict[str, Tensor]:
        model = self._stored(self.model)
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def _restore(self, tensors: dict[str, Tensor], step: int) -> None:
        self.step = step
        self._stored(self.model).load_state_dict(_under("model.", tensors))
        keys = ("step", "exp_avg", "exp_avg_sq")
        moments = {key: _under(f"optimizer.{key}.", tensors) for key in keys}
        for name, parameter in self._stored(self.model).named_parameters():
            if name in moments["step"]:
                state = {key: moments[key][name].to(parameter.device) for key in keys}
                # AdamW counts on the CPU.
                self.optimizer.state[parameter] = state | dict(step=moments["step"][name])


class AveragingTrainer(Trainer):
    """Training for the exponential moving average of the weights; see :class:`Trainer`.

    Attributes:
        average: The model with averaged weights.
    """

    def __init__(self, model: Any, config: Any, *, device: torch.device | str = "cpu") -> None:
        super().__init__(model, config, device=device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)

    @property
    def best(self) -> nn.Module:
        """The averaged weights."""
        return self.average

    def _after_step(self) -> None:
        # The first weights are far from any good: a short memory forgets them.
        ema_update(self.average, self.model, min(self.config.ema, (1 + self.step) / (10 + self.step)))

    def _tensors(self) -> dict[str, Tensor]:
        average = self._stored(self.average).state_dict()
        return super()._tensors() | {f"average.{k}": v for k, v in average.items()}

    def _restore(self, tensors: dict[str, Tensor], step: int) -> None:
        super()._restore(tensors, step)
        self._stored(self.average).load_state_dict(_under("average.", tensors))


class ScoreTrainer(AveragingTrainer):
    """Trains a :class:`ScoreModel`; see :class:`Trainer`.

    Example:
        >>> from genssl_fast.data import load_digits
        >>> from genssl_fast.score_model import ScoreModelConfig
        >>> data = load_digits()[0]
        >>> model = ScoreModelConfig(data.samples.shape[1:], hidden=16, blocks=1, scale=data.scale)
        >>> trainer = ScoreTrainer(model, TrainingConfig(steps=2, batch=8))
        >>> losses = [trainer.train_step(data.samples) for _ in range(2)]
        >>> trainer.step
        2
    """

    kind = "training_state"
    model_type, model_config_type, config_type = ScoreModel, ScoreModelConfig, TrainingConfig

    def _loss(self, batch: Tensor) -> Tensor:
        config = self.config
        return self.model.loss(batch, weighting=config.weighting, seed=config.seed, step=self.step)

    def _stored(self, model: nn.Module) -> nn.Module:
        return model.network


class FlowTrainer(AveragingTrainer):
    """Trains a :class:`FlowModel` and keeps the averaged weights that validated best; see :class:`Trainer`.

    Attributes:
        best_loss: The lowest validation loss so far, in bits per entry of a sample.
        best_step: The step it was found after.

    Example:
        >>> from genssl_fast.data import load_density
        >>> from genssl_fast.flow_model import FlowModelConfig
        >>> data = load_density("moons", 1000)
        >>> trainer = FlowTrainer(FlowModelConfig((2,)), FlowTrainingConfig(steps=2, batch=8))
        >>> losses = [trainer.train_step(data.samples) for _ in range(2)]
        >>> trainer.finished
        True
    """

    kind = "flow_training_state"
    model_type, model_config_type, config_type = FlowModel, FlowModelConfig, FlowTrainingConfig

    def __init__(
        self,
        model: FlowModelConfig,
        config: FlowTrainingConfig,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(model, config, device=device)
        self.average.eval()
        self._best = copy.deepcopy(self.average)
        self.best_loss, self.best_step = math.inf, 0

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or patience has run out."""
        config = self.config
        waited = self.step - self.best_step
        return super().finished or (config.held_out > 0 and waited >= config.patience * config.validate_every)

    @property
    def details(self) -> dict[str, float]:
        return {"validation": self.in_unit(self.best_loss)} if self.best_step else {}

    @property
    def unit(self) -> str:
        return self.model.unit

    def in_unit(self, loss: float) -> float:
        return self.model.in_unit(loss)

    def prepare(self, samples: Tensor) -> None:
        """Fits what depends on the data alone, and so runs the flow once."""
        spacing = self._validation_spacing or 1
        check(len(samples) >= spacing, "samples", f"at least {spacing}, to hold one out", len(samples))
        training = samples[self._training(torch.arange(self._num_training(len(samples))))]
        with self._seeded():
            self.model.fit(training, seed=self.config.seed)
        self.average.load_state_dict(self.model.state_dict())

    @property
    def best(self) -> FlowModel:
        """The averaged weights that validated best; the latest ones before and without any validation."""
        return self._best if self.best_step else self.average

    def train_step(self, samples: Tensor) -> Tensor:
        if self.step == 0:
            self.prepare(samples)
        loss = super().train_step(samples)
        due = self.step % self.config.validate_every == 0 or self.step == self.config.steps
        if due and self._validation_spacing:
            self._validate(samples)
        return loss

    def _loss(self, batch: Tensor) -> Tensor:
        with self._seeded():
            return self.model.loss(batch, seed=self.config.seed, step=self.step)

    @torch.no_grad()
    def _validate(self, samples: Tensor) -> None:
        held_out = samples[self._validation_spacing - 1 :: self._validation_spacing]
        # The same noise every time: differences are those of the weights.
        loss = float(self.average.loss(held_out, seed=~self.config.seed, step=0))
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            self._best.load_state_dict(self.average.state_dict())

    def _batch(self, count: int, device: torch.device) -> Tensor:
        return self._training(super()._batch(self._num_training(count), device))

    @property
    def _validation_spacing(self) -> int:
        """Every so-many-th sample validates; 0 for none."""
        return round(1 / self.config.held_out) if self.config.held_out else 0

    def _num_training(self, count: int) -> int:
        return count - count // self._validation_spacing if self._validation_spacing else count

    def _training(self, numbers: Tensor) -> Tensor:
        """Where the training samples of these numbers are among all samples."""
        spacing = self._validation_spacing
        return numbers + numbers // (spacing - 1) if spacing else numbers

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Dropout, too, depends on (seed, step) alone, and leaves the default generator as it was."""
        device = next(self.model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed((self.config.seed << 24 ^ self.step) % (1 << 63))
            yield

    def _tensors(self) -> dict[str, Tensor]:
        validation = torch.tensor([self.best_loss, self.best_step], dtype=torch.float64)
        best = {f"best.{k}": v for k, v in self._best.state_dict().items()}
        return super()._tensors() | best | {"validation": validation}

    def _restore(self, tensors: dict[str, Tensor], step: int) -> None:
        super()._restore(tensors, step)
        self._best.load_state_dict(_under("best.", tensors))
        self.best_loss, best_step = tensors["validation"].tolist()
        self.best_step = int(best_step)


def _leaves(cls: type[Trainer]) -> list[type[Trainer]]:
    """The classes below this one that nothing derives from, or itself."""
    return [leaf for below in cls.__subclasses__() for leaf in _leaves(below)] or [cls]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
