"""Probes against scikit-learn and against the optimum of their objective."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from genssl_fast.data import load_digits
from genssl_fast.ssl import ConvBackbone, fine_tune, knn_probe, linear_probe


@pytest.fixture(scope="module")
def parts():
    """Features and labels of 300 training and 100 test digits."""
    training, test = load_digits()
    return (
        training.samples[:300].flatten(1), training.labels[:300],
        test.samples[:100].flatten(1), test.labels[:100],
    )  # fmt: skip


def minimum(features, labels, penalty):
    """The objective's value at its optimum, by L-BFGS in fp64."""
    x = features.double()
    std = x.std(0, correction=0)
    x = (x - x.mean(0)) / torch.where(std > 0, std, 1)
    classes = int(labels.max()) + 1
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=2000, tolerance_grad=1e-9, tolerance_change=0,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def objective():
        loss = F.cross_entropy(x @ weight.T + bias, labels) + penalty / 2 * weight.square().sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        return loss

    optimizer.step(objective)
    return objective().item()


@pytest.mark.parametrize("penalty", [1.0, 1e-2])
def test_the_linear_probe_is_at_its_optimum(parts, penalty):
    features, labels, *_ = parts
    assert linear_probe(*parts, penalty=penalty).loss == pytest.approx(
        minimum(features, labels, penalty), abs=1e-4
    )


def test_two_classes_are_at_their_optimum_too(parts):
    features, labels, test, test_labels = parts
    odd = labels % 2, test_labels % 2
    probe = linear_probe(features, odd[0], test, odd[1])
    assert probe.loss == pytest.approx(minimum(features, odd[0], 1.0), abs=1e-4)
    assert probe.weight.shape == (2, 64)


def test_the_linear_probe_is_that_of_scikit_learn(parts):
    features, labels, test, test_labels = parts
    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-12)
    scaled = [torch.nan_to_num((x - mean) / std, posinf=0, neginf=0).numpy() for x in (features, test)]
    expected = LogisticRegression(max_iter=5000).fit(scaled[0], labels).score(scaled[1], test_labels)
    assert linear_probe(*parts).accuracy == pytest.approx(expected, abs=0.021)


def test_labels_need_not_be_numbered_from_zero(parts):
    features, labels, test, test_labels = parts
    shifted = linear_probe(features, 10 * labels + 5, test, 10 * test_labels + 5)
    assert shifted.accuracy == linear_probe(*parts).accuracy
    assert shifted.classes.tolist() == list(range(5, 105, 10))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_neighbours_are_those_of_scikit_learn(parts, k):
    features, labels, test, test_labels = parts
    expected = KNeighborsClassifier(k, metric="cosine").fit(features, labels).score(test, test_labels)
    # scikit-learn gives ties to the smallest class.
    assert knn_probe(*parts, k=k) == pytest.approx(expected, abs=0.0 if k == 1 else 0.021)


def test_ties_go_to_the_nearest():
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    labels = torch.tensor([1, 1, 0, 0])
    assert knn_probe(features, labels, torch.tensor([[1.0, 0.2]]), torch.tensor([1]), k=4) == 1.0
    assert knn_probe(features, labels, torch.tensor([[0.2, 1.0]]), torch.tensor([0]), k=4) == 1.0


def test_fine_tuning_learns_and_leaves_the_backbone(parts):
    images, labels = parts[0].view(-1, 1, 8, 8), parts[1]
    backbone = ConvBackbone(1, (16, 32))
    before = [parameter.clone() for parameter in backbone.parameters()]
    classifier = fine_tune(backbone, images, labels, steps=150, batch=64, learning_rate=1e-2)
    accuracy = (classifier(images).argmax(1) == labels).double().mean()
    assert accuracy > 0.9
    assert all(torch.equal(old, new) for old, new in zip(before, backbone.parameters()))
    again = fine_tune(backbone, images, labels, steps=150, batch=64, learning_rate=1e-2)
    assert torch.equal(classifier(images), again(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(labels=torch.zeros(3, dtype=torch.int64)),
            r"^labels: expected \[300\], one for each of features",
        ),
        (dict(test_labels=torch.zeros(1, dtype=torch.int64)), r"^test_labels: expected \[100\]"),
        (dict(test_features=torch.zeros(100, 3)), r"^test_features: expected shape \[M, F\] = \[100, 64\]"),
        (dict(features=torch.zeros(300)), r"^features: expected a matrix"),
        (dict(k=301), "^k: expected at most 300, the number of features, got 301"),
    ],
)
def test_bad_input_is_named(parts, change, message):
    names = ("features", "labels", "test_features", "test_labels")
    with pytest.raises(ValueError, match=message):
        knn_probe(**dict(zip(names, parts)) | change)


def test_classes_are_integers(parts):
    features, labels, *rest = parts
    with pytest.raises(TypeError, match=r"^labels: expected dtype int64"):
        linear_probe(features, labels.float(), *rest)
    with pytest.raises(ValueError, match=r"^labels: expected at least two classes, got 1"):
        linear_probe(features, torch.zeros_like(labels), *rest)
