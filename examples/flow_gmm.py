"""Handwritten digits from five labels of each: a flow whose noise is a mixture, one component per class.

The flow learns from all 1,437 training images and 50 labels. It raises the likelihood of images, with
their labels where known, and is asked to be linear between images, in the manner of interpolation
consistency training: a mixture of two images should get the same mixture of class probabilities.

References:
    | Izmailov et al., Semi-Supervised Learning with Normalizing Flows, https://arxiv.org/abs/1912.13025
    | Verma et al., Interpolation Consistency Training, https://arxiv.org/abs/1903.03825
"""

import argparse
import copy

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from genssl_fast.data import load_digits
from genssl_fast.flows import FlowGMM, RealNVP
from genssl_fast.preprocessing import Preprocessing
from genssl_fast.progress import ProgressReport

__all__ = ["accuracy", "linear_accuracy", "train"]

LABELS_PER_CLASS, CLASSES = 5, 10
STEPS, BATCH, LEARNING_RATE, EMA = 600, 128, 1e-3, 0.99
LABEL_WEIGHT, CONSISTENCY_WEIGHT, CONSISTENCY_WARMUP = 0.05, 10.0, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", nargs="*", type=int, default=[0], help="(default: 0)")
    seeds = parser.parse_args().seed
    count = CLASSES * LABELS_PER_CLASS
    print(f"linear classifier     {linear_accuracy():6.1%} of test digits, from {count} labels")
    for seed in seeds:
        print(f"FlowGMM, seed {seed}       {accuracy(*train(seed)):6.1%}")


def labels() -> tuple[Tensor, Tensor]:
    """Of all training and test digits."""
    training, test = load_digits()
    return training.labels, test.labels


def labelled() -> Tensor:
    """The numbers [50] of the training digits whose label is known: the first five of each class."""
    training, _ = labels()
    return torch.cat([(training == k).nonzero()[:LABELS_PER_CLASS, 0] for k in range(CLASSES)])


def linear_accuracy() -> float:
    """Test accuracy of logistic regression on the same labels."""
    (training, test), (known, wanted) = load_digits(), labels()
    chosen = labelled()
    classifier = LogisticRegression(max_iter=5000)
    classifier.fit(training.samples[chosen].flatten(1), known[chosen])
    return classifier.score(test.samples.flatten(1), wanted)


def train(seed: int, steps: int = STEPS) -> tuple[FlowGMM, Preprocessing]:
    """The averaged model after training, and what images go through before it."""
    torch.manual_seed(seed)
    images, known = load_digits()[0].samples, labels()[0][labelled()]
    preprocessing = fitted_preprocessing(images, seed)
    model = initial_model(preprocessing(images[labelled()], seed=seed)[0], known)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    with ProgressReport("FlowGMM", steps, "steps") as progress:
        for step in range(steps):
            batch = preprocessing(images[torch.randint(len(images), (BATCH,))], seed=seed, step=step)[0]
            given = preprocessing(images[labelled()], seed=~seed, step=step)[0]
            loss = likelihood_loss(model, batch, given, known)
            weight = CONSISTENCY_WEIGHT * min(1.0, step / CONSISTENCY_WARMUP)
            loss = loss + weight * consistency_loss(model, average, batch)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (step + 1) / 100, 2 - 2 * step / steps)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            update_average(average, model, step)
            progress.advance(loss=float(loss.detach()))
    return average, preprocessing


def fitted_preprocessing(images: Tensor, seed: int) -> Preprocessing:
    """One mean and one scale for all pixels: distances between images stay what they are."""
    preprocessing = Preprocessing(tuple(images.shape[1:]), 17)
    values, _ = preprocessing(images, seed=seed)
    preprocessing.mean.fill_(values.mean())
    preprocessing.std.fill_(values.std())
    return preprocessing


def initial_model(images: Tensor, classes: Tensor) -> FlowGMM:
    """Components are where an untrained flow puts the mean image of each class."""
    flow = RealNVP((1, 8, 8), 6, (128, 128), activation="silu", dropout=0.2, actnorm=False)
    means = torch.stack([images[classes == k].mean(0).flatten() for k in range(CLASSES)])
    return FlowGMM(flow, CLASSES, means=means)


def likelihood_loss(model: FlowGMM, images: Tensor, given: Tensor, known: Tensor) -> Tensor:
    """Images without and with labels, and the labels at their images once more."""
    unlabelled = model.loss(images, torch.full((len(images),), -1))
    cross_entropy = torch.nn.functional.cross_entropy(model.class_log_prob(given), known)
    return unlabelled + model.loss(given, known) + LABEL_WEIGHT * cross_entropy


def consistency_loss(model: FlowGMM, teacher: FlowGMM, images: Tensor) -> Tensor:
    """Between two images, class probabilities should be the teacher's between those of the two."""
    share = torch.rand(len(images), 1, 1, 1)
    probabilities = teacher.class_log_prob(images).softmax(1)
    wanted = torch.lerp(probabilities, probabilities.roll(1, 0), share.flatten(1))
    mixed = torch.lerp(images, images.roll(1, 0), share)
    return (model.class_log_prob(mixed).softmax(1) - wanted).square().sum(1).mean()


@torch.no_grad()
def update_average(average: FlowGMM, model: FlowGMM, step: int) -> None:
    decay = min(EMA, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def accuracy(model: FlowGMM, preprocessing: Preprocessing) -> float:
    """The fraction of test digits that are recognized."""
    images = load_digits()[1].samples
    draws = [preprocessing(images, seed=seed)[0] for seed in range(8)]
    probabilities = sum(model.class_log_prob(values).softmax(1) for values in draws)
    return float((probabilities.argmax(1) == labels()[1]).double().mean())


if __name__ == "__main__":
    main()
