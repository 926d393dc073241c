"""Self-supervised training that can stop at any step and go on as if it had not."""

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genssl_fast._checks import check
from genssl_fast.ssl import CollapseReport, CollapseWarning, collapse_report
from genssl_fast.ssl_model import SSLModel, SSLModelConfig
from genssl_fast.training import Trainer, check_schedule

__all__ = ["SSLTrainer", "SSLTrainingConfig"]


@dataclass(frozen=True)
class SSLTrainingConfig:
    """How a backbone is trained without labels.

    Arguments:
        steps: The number of steps, over which the learning rate falls to zero along a cosine.
        batch: The number of samples in a step, all different.
        learning_rate: The highest learning rate of AdamW.
        weight_decay: Its decay of matrices and convolutions; other parameters have none.
        warmup: The number of steps over which the learning rate rises, and before which no collapse is
            reported.
        seed: The seed of weights, batches and views.
    """

    steps: int = 500
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        check_schedule(self)
        check(self.batch >= 2, "batch", "at least 2", self.batch)
        check(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        check(self.warmup >= 0, "warmup", "at least 0", self.warmup)


class SSLTrainer(Trainer):
    """Trains an :class:`SSLModel` and says when its embeddings collapse; see :class:`Trainer`.

    Example:
        >>> from genssl_fast.data import load_nuisance_digits
        >>> from genssl_fast.ssl_model import SSLModelConfig
        >>> data = load_nuisance_digits()[0]
        >>> model = SSLModelConfig(data.samples.shape[1:], "vicreg", backbone={"widths": (4, 8)})
        >>> trainer = SSLTrainer(model, SSLTrainingConfig(steps=2, batch=8))
        >>> losses = [trainer.train_step(data.samples) for _ in range(2)]
        >>> sorted(trainer.details)
        ['rank', 'spread']
    """

    kind = "ssl_training_state"
    model_type, model_config_type, config_type = SSLModel, SSLModelConfig, SSLTrainingConfig

    def __init__(
        self, model: SSLModelConfig, config: SSLTrainingConfig, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(model, config, device=device)
        self._report: tuple[int, CollapseReport] | None = None
        self._has_warned = False

    @property
    def details(self) -> dict[str, float]:
        """Spread and effective rank of the latest embeddings, see :class:`CollapseReport`."""
        report = self.collapse_report
        return {} if report is None else {"spread": report.spread, "rank": report.effective_rank}

    @property
    def collapse_report(self) -> CollapseReport | None:
        """Of the latest embeddings of training; warns once when they have collapsed. None before any."""
        embeddings = self.model.method.embeddings
        if embeddings is None:
            return None
        if self._report is None or self._report[0] != self.step:
            self._report = self.step, collapse_report(embeddings)
            self._warn(self._report[1])
        return self._report[1]

    def prepare(self, samples: Tensor) -> None:
        """Refuses batches that the samples do not fill, and what a first step shows to be wrong."""
        expected = f"at most {len(samples)}, the number of samples"
        check(self.config.batch <= len(samples), "batch", expected, self.config.batch)
        # On a copy: a forward pass changes statistics.
        with torch.no_grad():
            copy.deepcopy(self.model).loss(samples[: self.config.batch], seed=0, step=0)

    def _warn(self, report: CollapseReport) -> None:
        if report.message is None or self._has_warned or self.step < self.config.warmup:
            return
        self._has_warned = True
        method = self.model.config.method
        message = f"embeddings of {method} have {report.message}, at step {self.step}"
        warnings.warn(message, CollapseWarning, stacklevel=4)

    def _loss(self, batch: Tensor) -> Tensor:
        return self.model.loss(batch, seed=self.config.seed, step=self.step)

    def _after_step(self) -> None:
        self.model.method.after_step(self.step / self.config.steps)

    def _batch(self, count: int, device: torch.device) -> Tensor:
        """Samples that are all different: twins in a batch would be negatives of each other."""
        return self._numbers(count, device).argsort()[: self.config.batch]

    def _parameters(self) -> Iterable[Any]:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim > 1]
        others = [parameter for parameter in trained if parameter.ndim < 2]
        return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]

    def _restore(self, tensors: dict[str, Tensor], step: int) -> None:
        super()._restore(tensors, step)
        self.model.method.progress = step / self.config.steps
