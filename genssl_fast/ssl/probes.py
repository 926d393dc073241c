"""What features are worth to a classifier: nearest neighbours, a linear probe, fine-tuning."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genssl_fast._checks import check, check_count, check_dtype, check_shape, check_tensor
from genssl_fast.ssl.method import backbone_features

__all__ = ["LinearProbe", "fine_tune", "knn_probe", "linear_probe"]


class LinearProbe(NamedTuple):
    """The result of :func:`linear_probe`.

    ``weight`` [K, F] and ``bias`` [K] are those of standardized features, in the order of ``classes``.
    """

    accuracy: float
    loss: float
    weight: Tensor
    bias: Tensor
    classes: Tensor


@torch.no_grad()
def knn_probe(
    features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, *, k: int = 5
) -> float:
    """Accuracy of the majority of the k nearest features, by cosine; ties go to the class of the nearest.

    Arguments:
        features: [N, F] of the samples to compare with.
        labels: int64 [N].
        test_features: [M, F].
        test_labels: int64 [M].
        k: How many neighbours vote, at most N.

    Returns:
        The share of test samples that get their label.

    Example:
        >>> features, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([3, 7])
        >>> knn_probe(features, labels, torch.tensor([[2.0, 1.0]]), torch.tensor([3]), k=1)
        1.0
    """
    _check_labelled(features, labels, test_features, test_labels)
    check_count("k", k, 1)
    check(k <= len(features), "k", f"at most {len(features)}, the number of features", k)
    classes, numbers = labels.unique(return_inverse=True)
    cosines = F.normalize(test_features.float(), dim=1) @ F.normalize(features.float(), dim=1).T
    neighbours = numbers[cosines.topk(k, dim=1).indices]
    # Less than one vote in all, more for the nearer: decides ties alone.
    weights = 1 + torch.arange(k, 0, -1, device=neighbours.device) / (k + 1) ** 2
    votes = weights.new_zeros(len(neighbours), len(classes))
    votes.scatter_add_(1, neighbours, weights.expand(len(neighbours), k))
    return float((classes[votes.argmax(1)] == test_labels).double().mean())


def linear_probe(
    features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, *, penalty: float = 1.0
) -> LinearProbe:
    r"""Accuracy of logistic regression on standardized features, at its optimum.

    scikit-learn minimizes, to the last digits, over weights and biases of standardized features

    .. math:: \sum_i \ell_i + \tfrac{\lambda}{2} \|W\|^2

    with :math:`\ell_i` the cross-entropy of training sample i and :math:`\lambda` the penalty.

    Arguments:
        features: [N, F] to train on.
        labels: int64 [N], two classes or more.
        test_features: [M, F].
        test_labels: int64 [M].
        penalty: λ.

    Returns:
        Test accuracy, the objective divided by N, and the classifier.

    Example:
        >>> features, labels = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
        >>> linear_probe(features, labels, torch.eye(4), torch.arange(4)).accuracy
        1.0
    """
    from sklearn.linear_model import LogisticRegression

    _check_labelled(features, labels, test_features, test_labels)
    check(penalty > 0, "penalty", "a positive number", penalty)
    classes = labels.unique()
    check(len(classes) > 1, "labels", "at least two classes", f"{len(classes)}")
    training, test = (values.double().cpu() for values in (features, test_features))
    mean, std = training.mean(0), training.std(0, correction=0)
    # A feature that does not vary says nothing.
    training, test = ((values - mean) / torch.where(std > 0, std, 1) for values in (training, test))
    # Of two classes it has one logit, the difference of ours: half its square is the sum of their squares.
    is_binary = len(classes) == 2
    regression = LogisticRegression(C=(1 + is_binary) / penalty, max_iter=10_000, tol=1e-6)
    regression.fit(training.numpy(), labels.numpy(force=True))
    weight, bias = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
    if is_binary:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    targets = torch.searchsorted(classes.cpu(), labels.cpu())
    loss = F.cross_entropy(training @ weight.T + bias, targets)
    loss = loss + penalty / 2 * weight.square().sum() / len(training)
    found = classes.cpu()[(test @ weight.T + bias).argmax(1)]
    accuracy = float((found == test_labels.cpu()).double().mean())
    return LinearProbe(accuracy, float(loss), weight, bias, classes)


def fine_tune(
    backbone: nn.Module,
    samples: Tensor,
    labels: Tensor,
    *,
    steps: int = 200,
    batch: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
    features: int | None = None,
) -> nn.Sequential:
    """A classifier: a copy of the backbone and a linear layer, both trained on labelled samples.

    The learning rate falls to zero along a cosine. Batches depend on the seed alone.

    Arguments:
        backbone: From samples to features [B, F]; stays as it is.
        samples: [N, ...], as the backbone takes them.
        labels: int64 [N], classes from 0 on.
        steps: Steps of AdamW.
        batch: Samples in a step, all of them where there are fewer.
        learning_rate: The highest.
        weight_decay: Of AdamW.
        seed: Of batches and of the linear layer.
        features: F; by default the backbone's attribute `features`.

    Returns:
        The classifier, from samples to logits [B, K], in evaluation mode.

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> images, labels = torch.randn(8, 1, 16, 16), torch.arange(8) % 2
        >>> fine_tune(ConvBackbone(1, (8,)), images, labels, steps=2)(images).shape
        torch.Size([8, 2])
    """
    check_tensor("samples", samples)
    _check_labels("labels", labels, len(samples), "samples")
    check(len(samples) > 1, "samples", "at least two", len(samples))
    check(int(labels.min()) >= 0, "labels", "classes from 0 on", int(labels.min()))
    check_count("steps", steps, 1)
    check_count("batch", batch, 2)
    generator = torch.Generator(samples.device).manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(backbone_features(backbone, features), int(labels.max()) + 1).to(samples.device)
    classifier = nn.Sequential(copy.deepcopy(backbone), head).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        classifier.parameters(), learning_rate, weight_decay=weight_decay, foreach=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randperm(len(samples), generator=generator, device=samples.device)[:batch]
        optimizer.zero_grad()
        F.cross_entropy(classifier(samples[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


def _check_labelled(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    for name, values in (("features", features), ("test_features", test_features)):
        check_tensor(name, values)
        check(values.ndim == 2 and len(values) > 0, name, "a matrix [N, F] with rows", list(values.shape))
    width = features.shape[1]
    check_shape("test_features", test_features, (len(test_features), width), "[M, F]")
    _check_labels("labels", labels, len(features), "features")
    _check_labels("test_labels", test_labels, len(test_features), "test_features")


def _check_labels(name: str, labels: Tensor, count: int, of: str) -> None:
    check_dtype(name, labels, (torch.int64,))
    expected = f"[{count}], one for each of {of}"
    check(tuple(labels.shape) == (count,), name, expected, list(labels.shape))
