"""What features are worth that each method learns from nuisance digits without labels.

`python examples/ssl_quality.py [METHOD ...]` trains by the bundled recipes, prints what a vote of the five
nearest neighbours and a linear classifier make of the test features, and draws these in the plane.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

from genssl_fast._memory import keep_freed_memory
from genssl_fast.data import Dataset, load_nuisance_digits
from genssl_fast.pictures import save_embedding
from genssl_fast.progress import ProgressReport
from genssl_fast.ssl import METHODS, check_collapse, knn_probe, linear_probe, load_recipe
from genssl_fast.ssl_model import SSLModel, SSLModelConfig
from genssl_fast.ssl_training import SSLTrainer, SSLTrainingConfig

__all__ = ["Quality", "quality", "train"]

PICTURE = Path("ssl_{}.png")


class Quality(NamedTuple):
    """Accuracies on the test part."""

    neighbours: float
    linear: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", nargs="*", help=f"(default: {' '.join(METHODS)})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    chosen = options.method or list(METHODS)
    if not set(chosen) <= METHODS.keys():
        parser.error(f"method: expected some of {', '.join(METHODS)}, got {' '.join(chosen)}")
    training, test = load_nuisance_digits()
    pixels = _probed(training.samples.flatten(1), training, test.samples.flatten(1), test)
    untrained = quality(train("simclr", 0, learning_rate=1e-12, steps=1))
    for what, found in (("pixels", pixels), ("untrained", untrained)):
        print(f"{what:14}         neighbours {found.neighbours:6.1%}  linear {found.linear:6.1%}")
    changes = {} if options.steps is None else {"steps": options.steps}
    for name in chosen:
        for seed in options.seeds:
            begin, used = time.perf_counter(), time.process_time()
            model = train(name, seed, **changes)
            seconds, used = time.perf_counter() - begin, time.process_time() - used
            found = quality(model)
            print(
                f"{name:14} seed {seed}  neighbours {found.neighbours:6.1%}  linear {found.linear:6.1%}  "
                f"{seconds:4.0f} s, {used:4.0f} s of CPU time",
                flush=True,
            )
        features = model.embed(test.scale.restore(test.samples))
        check_collapse(f"features of {name}", features)
        save_embedding(Path(str(PICTURE).format(name)), features, test.labels, "tsne")


def train(name: str, seed: int, **training) -> SSLModel:
    """A model by its recipe; `training` changes how it is trained."""
    dataset, recipe = load_nuisance_digits()[0], load_recipe(name)
    model = recipe._asdict()
    config = SSLTrainingConfig(**model.pop("training") | {"seed": seed} | training)
    shape = dataset.samples.shape[1:]
    trainer = SSLTrainer(SSLModelConfig(shape, scale=dataset.scale, **model), config)
    with ProgressReport(name, config.steps, "steps") as progress:
        while not trainer.finished:
            trainer.train_step(dataset.samples)
            progress.advance()
    return trainer.best


def quality(model: SSLModel) -> Quality:
    """Of the features of nuisance digits."""
    training, test = load_nuisance_digits()
    features, test_features = (model.embed(part.scale.restore(part.samples)) for part in (training, test))
    return _probed(features, training, test_features, test)


def _probed(features, training: Dataset, test_features, test: Dataset) -> Quality:
    parts = features, training.labels, test_features, test.labels
    return Quality(knn_probe(*parts), linear_probe(*parts).accuracy)


if __name__ == "__main__":
    main()
