"""Densities in the plane by every flow: moons, a checkerboard and two rings.

Trains each flow on 20,000 points and writes a picture of its density beside the points. Names of flows
after the command draw these alone.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot

from genssl_fast.data import DENSITIES, Scale, load_density
from genssl_fast.flow_model import FlowModel, FlowModelConfig
from genssl_fast.progress import ProgressReport
from genssl_fast.training import FlowTrainer, FlowTrainingConfig

PICTURE = Path(__file__).parents[1] / "flow_densities.png"
WIDE = {"hidden": [64, 64]}
FLOWS = {
    "nice": {"layers": 8, **WIDE},
    "realnvp": {"layers": 16, **WIDE},
    "spline": {"layers": 6, "bins": 16, **WIDE},
    "maf": {"layers": 8, **WIDE},
    "iaf": {"layers": 4, **WIDE},
    "planar": {"layers": 32},
    "made": {"hidden": [64, 64]},
}
TRAINING = FlowTrainingConfig(steps=2000, batch=512, learning_rate=2e-3, held_out=0.05, patience=20)
LEARNING_RATES = {"planar": 2e-2}
PIXELS, POINTS = 200, 5000
# Flows start as the identity. There, a density that is symmetric gives an additive coupling no slope.
START_NOISE = 0.05


def main(names: list[str]) -> None:
    figure, axes = pyplot.subplots(
        len(DENSITIES),
        1 + len(names),
        figsize=(2 + 2 * len(names), 2.1 * len(DENSITIES)),
        layout="constrained",
    )
    for row, density in zip(axes, DENSITIES):
        data, held_out = load_density(density), load_density(density, POINTS, seed=1)
        points = data.scale.restore(held_out.samples)
        row[0].scatter(*points.T.numpy(), s=0.3, color="black")
        row[0].set_title(f"{density.replace('_', ' ')}: points", fontsize=8)
        for axis, name in zip(row[1:], names):
            model = train(name, density)
            axis.imshow(picture(model).exp().T.numpy(), origin="lower", extent=2 * data.scale, cmap="magma")
            nats = float(model.log_prob(points).mean())
            axis.set_title(f"{name}: {nats:.2f} nats", fontsize=8)
            print(f"{density:14} {name:10} test log-likelihood {nats:7.3f} nats", flush=True)
        for axis in row:
            axis.set(xlim=data.scale, ylim=data.scale, aspect="equal", xticks=[], yticks=[])
    figure.savefig(PICTURE, dpi=120)
    print(f"picture {PICTURE.name}")


def train(flow: str, density: str) -> FlowModel:
    data = load_density(density)
    training = replace(TRAINING, learning_rate=LEARNING_RATES.get(flow, TRAINING.learning_rate))
    trainer = FlowTrainer(FlowModelConfig((2,), flow, FLOWS[flow], scale=data.scale), training)
    noise = torch.Generator().manual_seed(0)
    for parameter in trainer.model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=noise), alpha=START_NOISE)
    with ProgressReport(f"{density} by {flow}", TRAINING.steps, "steps") as progress:
        while not trainer.finished:
            trainer.train_step(data.samples)
            progress.advance(**trainer.details)
    return trainer.best


def picture(model: FlowModel) -> torch.Tensor:
    """Log-density on a grid [PIXELS, PIXELS], x first."""
    scale: Scale = model.config.scale
    axis = torch.linspace(scale.low, scale.high, PIXELS)
    return model.log_prob(torch.cartesian_prod(axis, axis)).view(PIXELS, PIXELS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flow", nargs="*", help=f"(default: {' '.join(FLOWS)})")
    chosen = parser.parse_args().flow or list(FLOWS)
    if not set(chosen) <= FLOWS.keys():
        parser.error(f"flow: expected some of {', '.join(FLOWS)}, got {' '.join(chosen)}")
    main(chosen)
