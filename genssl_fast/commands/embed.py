"""Turn data into features by a backbone that was trained without labels, and say what they are worth.

Where the data have labels, 5 nearest neighbours and a linear classifier are tried: on the held-out part of
bundled data, on the data of --test, or else on every fifth sample, which they then do not learn from.
"""

import argparse
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from genssl_fast._checks import check
from genssl_fast._files import replacing
from genssl_fast.commands.arguments import add_device, add_threads, output_path, positive_int
from genssl_fast.commands.collapse import collapse_warnings
from genssl_fast.commands.device import use_device
from genssl_fast.data import BUNDLED, Dataset, load_dataset
from genssl_fast.pictures import save_embedding
from genssl_fast.progress import ProgressReport
from genssl_fast.ssl import check_collapse, knn_probe, linear_probe
from genssl_fast.ssl_model import SSLModel

__all__ = ["add_arguments", "run"]

HELD_OUT = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="what 'genssl-fast train' wrote")
    parser.add_argument(
        "--data",
        required=True,
        help=f"{', '.join(BUNDLED)} (bundled), each followed by ':test' for its held-out part, a .npy file, "
        "a .npz file, perhaps with integers 'labels', or a folder of images",
    )
    parser.add_argument(
        "--test", help="labelled data to try classifiers of the features on, named as for --data"
    )
    parser.add_argument(
        "--out",
        type=output_path(".npz", ".safetensors"),
        help="NAME.npz or NAME.safetensors: 'features' [N, F] and, where known, 'labels' [N]",
    )
    parser.add_argument("--picture", type=output_path(".png"), help="NAME.png: the features in the plane")
    parser.add_argument(
        "--projection",
        choices=("pca", "tsne"),
        default="pca",
        help="how they come into the plane: principal components or t-SNE, which takes longer (default: pca)",
    )
    parser.add_argument(
        "--batch", type=positive_int, default=1024, help="samples embedded at once (default: 1024)"
    )
    add_device(parser)
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    device = use_device(arguments)
    model = SSLModel.load(arguments.checkpoint, device=device)
    dataset, test = _load("data", arguments.data, model), _test(arguments, model)
    features = _embed(model, dataset, arguments.batch)
    with collapse_warnings("embed"):
        print(f"{arguments.data}: {_summary(features)}", flush=True)
    if arguments.out is not None:
        _save(arguments.out, features, dataset.labels)
    if dataset.labels is not None:
        _probe(features, dataset.labels, model, test, arguments)
    if arguments.picture is not None:
        save_embedding(arguments.picture, features, dataset.labels, arguments.projection)


def _summary(features: Tensor) -> str:
    """How many there are, and whether they have collapsed, of which it warns."""
    count, width = features.shape
    if count == 1:
        return f"1 sample, {width} features"
    report = check_collapse("features", features)
    spread, rank = f"spread {report.spread:.3g}", f"effective rank {report.effective_rank:.3g} of {width}"
    return f"{count} samples, {width} features; {spread}, {rank}"


def _load(name: str, source: str, model: SSLModel) -> Dataset:
    dataset = load_dataset(source, scale=model.config.scale)
    shape = tuple(dataset.samples.shape[1:])
    expected = f"samples of shape {list(model.config.shape)}, like those of the checkpoint"
    check(shape == model.config.shape, name, expected, f"{source} with {list(shape)}")
    return dataset


def _test(arguments: argparse.Namespace, model: SSLModel) -> tuple[str, Dataset] | None:
    """The data that classifiers of the features are tried on, and their name; None for a part of the data."""
    source = arguments.test
    if source is None and arguments.data in BUNDLED:
        source = f"{arguments.data}:test"
    if source is None:
        return None
    dataset = _load("test", source, model)
    has_labels = dataset.labels is not None or arguments.test is None
    check(has_labels, "test", "labelled data", f"{source} without labels")
    return source, dataset


def _embed(model: SSLModel, dataset: Dataset, batch: int) -> Tensor:
    """Features [N, F] on the CPU."""
    parts = []
    with ProgressReport("embedding", len(dataset.samples), "samples") as progress:
        for samples in dataset.samples.split(batch):
            parts.append(model.embed(dataset.scale.restore(samples), batch=batch).cpu())
            progress.advance(len(samples))
    features = torch.cat(parts)
    if not features.isfinite().all():
        raise ArithmeticError("features: expected finite numbers, got NaN or infinity")
    return features


def _probe(
    features: Tensor,
    labels: Tensor,
    model: SSLModel,
    test: tuple[str, Dataset] | None,
    arguments: argparse.Namespace,
) -> None:
    if test is None:
        held_out = torch.arange(len(labels)) % HELD_OUT == HELD_OUT - 1
        name, parts = "every fifth sample", (features[held_out], labels[held_out])
        features, labels = features[~held_out], labels[~held_out]
    else:
        name, dataset = test
        parts = _embed(model, dataset, arguments.batch), dataset.labels
    if len(parts[1]) == 0 or len(labels) < HELD_OUT or len(labels.unique()) < 2:
        print("too few labels to try classifiers")
        return
    neighbours = knn_probe(features, labels, *parts)
    linear = linear_probe(features, labels, *parts).accuracy
    found = f"5 nearest neighbours {neighbours:.1%}, linear probe {linear:.1%}"
    print(f"{found} of {len(parts[1])}, {name}", flush=True)


def _save(out: Path, features: Tensor, labels: Tensor | None) -> None:
    arrays = {"features": features} | ({} if labels is None else {"labels": labels})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            if out.suffix == ".npz":
                with open(temporary, "wb") as file:
                    np.savez(file, **{name: array.numpy() for name, array in arrays.items()})
            else:
                safetensors.torch.save_file(arrays, temporary)
    except OSError as error:
        raise OSError(f"out: expected a path that can be written, got {out} ({error})") from error
