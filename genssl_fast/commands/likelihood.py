"""Evaluate the log-likelihood of data under a flow, in nats and in bits per dimension.

For discrete data it is a lower bound of the log-probability, which dequantizing noise makes fluctuate;
for continuous data a log-density in units of the data.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genssl_fast._checks import check
from genssl_fast._files import replacing
from genssl_fast._progress import ProgressReport
from genssl_fast.commands.arguments import add_device, add_threads, output_path, positive_int, seed
from genssl_fast.commands.device import use_device
from genssl_fast.data import BUNDLED, load_dataset
from genssl_fast.flow_model import FlowModel

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
    dataset = load_dataset(arguments.data)
    shape = tuple(dataset.samples.shape[1:])
    expected = f"samples of shape {list(model.config.shape)}, like those of the checkpoint"
    check(shape == model.config.shape, "data", expected, f"{arguments.data} with {list(shape)}")
    data = dataset.scale.restore(dataset.samples)
    log_prob = _log_prob(model, data, arguments, device)
    if arguments.out is not None:
        _save(arguments.out, log_prob)
    print(_summary(arguments.data, log_prob, math.prod(shape)))


def _log_prob(model: FlowModel, data: Tensor, arguments: argparse.Namespace, device: torch.device) -> Tensor:
    """Log-likelihoods [N], the means over draws."""
    results = []
    with ProgressReport("evaluating", len(data), "samples") as progress:
        for begin in range(0, len(data), arguments.batch):
            batch = data[begin : begin + arguments.batch].to(device)
            draws = [
                model.log_prob(batch, seed=arguments.seed + draw, first_sample=begin)
                for draw in range(arguments.draws)
            ]
            results.append(torch.stack(draws).mean(0).cpu())
            progress.advance(len(batch))
    return torch.cat(results)


def _summary(name: str, log_prob: Tensor, dimensions: int) -> str:
    values = log_prob.double()
    mean = float(values.mean())
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    bits = -mean / (dimensions * math.log(2))
    return (
        f"{name}: {len(values)} samples, log-likelihood {mean:.3f} ± {error:.3f} nats, "
        f"{bits:.4f} bits per dimension"
    )


def _save(out: Path, log_prob: Tensor) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary, open(temporary, "wb") as file:
            np.save(file, log_prob.float().numpy())
    except OSError as error:
        raise OSError(f"out: expected a path that can be written, got {out} ({error})") from error
