"""How well flows explain data they have not seen: digits in bits per dimension, breast_cancer in nats.

`python examples/flow_quality.py [CASE ...]` trains three seeds of every case, or of those named, stops each
when a held-out part of the training data is explained no better, and prints what the test data get.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from genssl_fast.data import BUNDLED
from genssl_fast.flow_model import FlowModel, FlowModelConfig
from genssl_fast.progress import ProgressReport
from genssl_fast.training import FlowTrainer, FlowTrainingConfig

__all__ = ["CASES", "Case", "bits_per_dim", "log_likelihood", "quality", "train"]

SEEDS, DRAWS = (0, 1, 2), 4


def bits_per_dim(model: FlowModel, data: Tensor) -> float:
    """Of discrete data, the mean over a few draws of the noise; lower is better."""
    return sum(float(model.bits_per_dim(data, seed=seed).mean()) for seed in range(DRAWS)) / DRAWS


def log_likelihood(model: FlowModel, data: Tensor) -> float:
    """Mean log-density in nats; higher is better."""
    return float(model.log_prob(data).mean())


@dataclass(frozen=True)
class Case:
    """A flow, the data it is trained on, and the measure of the test data."""

    data: str
    flow: str
    measure: Callable[[FlowModel, Tensor], float]
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


PERCEPTRON = {"activation": "silu", "dropout": 0.2}
CASES = {
    "digits-realnvp": Case("digits", "realnvp", bits_per_dim, PERCEPTRON, {"steps": 2000}),
    "digits-spline": Case(
        "digits",
        "spline",
        bits_per_dim,
        PERCEPTRON | {"layers": 4, "bound": 4.0, "linear": False, "actnorm": True},
        {"steps": 1000},
    ),
    "breast-cancer-realnvp": Case(
        "breast_cancer",
        "realnvp",
        log_likelihood,
        PERCEPTRON | {"layers": 6, "hidden": [64, 64], "linear": True},
        {"steps": 2000, "ema": 0.99},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", help=f"(default: {' '.join(CASES)})")
    chosen = parser.parse_args().case or list(CASES)
    if not set(chosen) <= CASES.keys():
        parser.error(f"case: expected some of {', '.join(CASES)}, got {' '.join(chosen)}")
    for name in chosen:
        case = CASES[name]
        for seed in SEEDS:
            start = time.process_time()
            trainer = train(case, seed)
            seconds, value = time.process_time() - start, quality(case, trainer.best)
            unit = case.measure.__name__.replace("_", " ")
            print(
                f"{name:24} seed {seed}  test {unit} {value:7.3f}  "
                f"best step {trainer.best_step:5}  {seconds:5.0f} s of CPU time"
            )


def train(case: Case, seed: int, **training: Any) -> FlowTrainer:
    """A trainer that has finished; `training` changes how."""
    dataset = BUNDLED[case.data]()[0]
    shape = dataset.samples.shape[1:]
    model = FlowModelConfig(shape, case.flow, case.options, dataset.num_levels, scale=dataset.scale)
    trainer = FlowTrainer(model, FlowTrainingConfig(seed=seed, **case.training | training))
    with ProgressReport(f"{case.data} by {case.flow}", trainer.config.steps, "steps") as progress:
        while not trainer.finished:
            trainer.train_step(dataset.samples)
            progress.advance(**trainer.details)
    return trainer


def quality(case: Case, model: FlowModel) -> float:
    """The measure of the test data, in their own units."""
    dataset = BUNDLED[case.data]()[1]
    return case.measure(model, dataset.scale.restore(dataset.samples))


if __name__ == "__main__":
    main()
