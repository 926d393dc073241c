"""Training of score models that can stop at any step and go on as if it had not."""

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genssl_fast._checks import check, check_choice
from genssl_fast._random import Stream, step_counter
from genssl_fast.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from genssl_fast.ops.random import random_uniform
from genssl_fast.score_model import WEIGHTINGS, ScoreModel, ScoreModelConfig

__all__ = ["ScoreTrainer", "TrainingConfig"]

KIND = "training_state"


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
        check(self.steps >= 1, "steps", "at least 1", self.steps)
        check(self.batch >= 1, "batch", "at least 1", self.batch)
        check(self.learning_rate > 0, "learning_rate", "a positive number", self.learning_rate)
        check(0 <= self.ema < 1, "ema", "a number in [0, 1)", self.ema)
        check_choice("weighting", self.weighting, WEIGHTINGS)


class ScoreTrainer:
    """Trains a :class:`ScoreModel`; a run that was stopped and resumed ends with the same weights.

    Everything random is drawn on counters from (seed, step), so the state is the tensors of
    :meth:`save` and the number of the step.

    Arguments:
        model: The configuration of the model.
        config: How to train.
        device: Where to train.

    Example:
        >>> from genssl_fast.data import load_digits
        >>> data = load_digits()[0]
        >>> model = ScoreModelConfig(data.samples.shape[1:], hidden=16, blocks=1, scale=data.scale)
        >>> trainer = ScoreTrainer(model, TrainingConfig(steps=2, batch=8))
        >>> losses = [trainer.train_step(data.samples) for _ in range(2)]
        >>> trainer.step
        2
    """

    def __init__(
        self,
        model: ScoreModelConfig,
        config: TrainingConfig,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.step = config, 0
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.model = ScoreModel(model).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.0, foreach=True)

    def train_step(self, samples: Tensor) -> Tensor:
        """One step on a batch drawn from samples [N, *shape] in [-1, 1].

        Returns:
            The loss, a scalar that has not been waited for.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        loss = self.model.loss(
            samples[self._batch(len(samples), samples.device)],
            weighting=config.weighting,
            seed=config.seed,
            step=self.step,
        )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return loss.detach()

    def save_model(self, path: str | Path, **facts: Any) -> None:
        """Writes the averaged weights, which are the ones to sample from."""
        self.average.save(path, training=asdict(self.config) | dict(step=self.step), **facts)

    def save(self, path: str | Path, **facts: Any) -> None:
        """Writes all that :meth:`load` needs to go on; `facts` come back from it."""
        config = dict(
            kind=KIND,
            model=asdict(self.model.config),
            training=asdict(self.config),
            step=self.step,
            facts=facts,
        )
        save_checkpoint(path, self._tensors(), config)

    @classmethod
    def load(
        cls, path: str | Path, *, device: torch.device | str = "cpu", **changes: Any
    ) -> tuple["ScoreTrainer", dict[str, Any]]:
        """Takes up a run that :meth:`save` wrote.

        Arguments:
            path: The file.
            device: Where to train.
            changes: Fields of :class:`TrainingConfig` that are to differ from now on.

        Returns:
            The trainer and the facts that were saved with it.
        """
        tensors, config = load_checkpoint(path)
        if config.get("kind") != KIND:
            raise CheckpointError(f"resume: expected a {KIND}, got {config.get('kind')!r} in {path}")
        training = TrainingConfig(**config["training"] | changes)
        trainer = cls(ScoreModelConfig(**config["model"]), training, device=device)
        trainer._restore(tensors, config["step"])
        return trainer, config["facts"]

    def _batch(self, count: int, device: torch.device) -> Tensor:
        # The complement of the seed keeps these numbers apart from those of the objective.
        numbers = random_uniform(
            (self.config.batch,),
            seed=~self.config.seed,
            step=step_counter(Stream.DATA, self.step),
            device=device,
        )
        return (numbers * count).long().clamp(max=count - 1)

    def _learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / max(self.config.warmup, 1))
        decay = 0.5 * (1 + math.cos(math.pi * min(self.step / self.config.steps, 1.0)))
        return self.config.learning_rate * warmup * decay

    @torch.no_grad()
    def _update_average(self) -> None:
        # The first weights are far from any good: a short memory forgets them.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        averaged, current = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{k}": v for k, v in self.model.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.network.state_dict().items()}
        for name, parameter in self.model.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def _restore(self, tensors: dict[str, Tensor], step: int) -> None:
        self.step = step

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.network.load_state_dict(under("model."))
        self.average.network.load_state_dict(under("average."))
        keys = ("step", "exp_avg", "exp_avg_sq")
        moments = {key: under(f"optimizer.{key}.") for key in keys}
        for name, parameter in self.model.network.named_parameters():
            if name in moments["step"]:
                state = {key: moments[key][name].to(parameter.device) for key in keys}
                # AdamW counts on the CPU.
                self.optimizer.state[parameter] = state | dict(step=moments["step"][name])
