"""Evaluate the log-likelihood of data under a flow, in nats.

For discrete data, such as 8-bit images, it is a lower bound of the log-probability, which dequantizing
noise makes fluctuate, and is given in bits per dimension, too; for continuous data it is a log-density in
units of the data.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genssl_fast._checks import check
from genssl_fast._files import replacing
from genssl_fast.commands.arguments import add_device, add_threads, output_path, positive_int, seed
from genssl_fast.commands.device import use_device
from genssl_fast.data import BUNDLED, Dataset, load_dataset
from genssl_fast.flow_model import FlowModel
from genssl_fast.progress import ProgressReport

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="what 'genssl-fast train' wrote")
    parser.add_argument(
        "--data",
        required=True,
        help=f"{', '.join(BUNDLED)} (bundled), each followed by ':test' for its held-out part, a .npy or "
        ".npz file with samples in rows, or a folder of images",
    )
    parser.add_argument(
        "--out", type=output_path(".npy"), help="NAME.npy for the log-likelihoods in nats [N], in fp32"
    )
    parser.add_argument(
        "--draws",
        type=positive_int,
        default=1,
        help="times that noise is drawn to dequantize with; the result is the mean (default: 1)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of that noise (default: 0)")
    parser.add_argument(
        "--batch", type=positive_int, default=1024, help="samples evaluated at once (default: 1024)"
    )
    add_device(parser)
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    device = use_device(arguments)
    model = FlowModel.load(arguments.checkpoint, device=device)
    dataset = load_dataset(arguments.data, scale=model.config.scale)
    shape = tuple(dataset.samples.shape[1:])
    expected = f"samples of shape {list(model.config.shape)}, like those of the checkpoint"
    check(shape == model.config.shape, "data", expected, f"{arguments.data} with {list(shape)}")
    log_prob = _log_prob(model, dataset, arguments, device)
    print(_summary(arguments.data, log_prob, model), flush=True)
    if arguments.out is not None:
        _save(arguments.out, log_prob)


def _log_prob(
    model: FlowModel, dataset: Dataset, arguments: argparse.Namespace, device: torch.device
) -> Tensor:
    """Log-likelihoods [N], the means over draws."""
    samples, results = dataset.samples, []
    with ProgressReport("evaluating", len(samples), "samples") as progress:
        for begin in range(0, len(samples), arguments.batch):
            batch = dataset.scale.restore(samples[begin : begin + arguments.batch].double())
            model.check_levels(batch)  # on the CPU: on a GPU, values may not be looked at
            batch = batch.to(device)
            draws = [
                model.log_prob(batch, seed=arguments.seed + draw, first_sample=begin)
                for draw in range(arguments.draws)
            ]
            results.append(torch.stack(draws).mean(0).cpu())
            progress.advance(len(batch))
    return torch.cat(results)


def _summary(name: str, log_prob: Tensor, model: FlowModel) -> str:
    values, count = log_prob.double(), len(log_prob)
    mean = float(values.mean())
    error = f" ± {float(values.std()) / math.sqrt(count):.3f}" if count > 1 else ""
    nats = f"{name}: {count} {'samples' if count > 1 else 'sample'}, log-likelihood {mean:.3f}{error} nats"
    if model.config.num_levels is None:
        return nats
    return f"{nats}, {-mean / (math.prod(model.config.shape) * math.log(2)):.4f} bits per dimension"


def _save(out: Path, log_prob: Tensor) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary, open(temporary, "wb") as file:
            np.save(file, log_prob.float().numpy())
    except OSError as error:
        raise OSError(f"out: expected a path that can be written, got {out} ({error})") from error
