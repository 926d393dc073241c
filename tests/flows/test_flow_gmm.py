"""Semi-supervised classification by a flow to a mixture."""

import math

import pytest
import torch

from genssl_fast.flows import FlowGMM, GaussianMixture, RealNVP
from tests.flows.models import FLOWS, build, samples


@pytest.fixture
def model():
    return FlowGMM(build(FLOWS["realnvp"], (1, 2, 2)), 3, means=2 * samples(3, 4), scale=0.7)


def test_densities_against_distributions(model):
    x = samples(6, 1, 2, 2)
    z, log_abs_det = model.transform(x)
    normal = torch.distributions.Independent(torch.distributions.Normal(model.base.means, 0.7), 1)
    joint = normal.log_prob(z.flatten(1)[:, None]) - math.log(3) + log_abs_det[:, None]
    torch.testing.assert_close(model.class_log_prob(x), joint)
    torch.testing.assert_close(model.log_prob(x), joint.logsumexp(1))
    assert torch.equal(model.classify(x), joint.argmax(1))


def test_loss_of_labelled_and_unlabelled_data(model):
    x, labels = samples(3, 1, 2, 2), torch.tensor([2, -1, 0])
    joint = model.class_log_prob(x)
    expected = -(joint[0, 2] + joint[1].logsumexp(0) + joint[2, 0]) / 3 / 4
    torch.testing.assert_close(model.loss(x, labels), expected)
    model.loss(x, labels).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_samples_of_classes_are_classified_as_such():
    torch.manual_seed(0)
    model = FlowGMM(build(FLOWS["realnvp"], 16, torch.float32), 3, scale=0.5)
    labels = torch.tensor([0, 1, 2] * 20)
    x = model.sample_classes(labels, seed=0)
    assert (model.classify(x) == labels).float().mean() > 0.98
    share = model.sample_classes(labels[10:], seed=0, first_sample=10)
    torch.testing.assert_close(share, x[10:], rtol=1e-5, atol=1e-5)


def test_mixture_samples():
    means = torch.tensor([[-4.0, 0.0], [4.0, 1.0]])
    base = GaussianMixture((2,), means, scale=0.5)
    z = base.sample(4000, seed=0, like=means)
    right = z[:, 0] > 0
    assert abs(right.float().mean() - 0.5) < 0.03
    torch.testing.assert_close(z[right].mean(0), means[1], rtol=0, atol=0.05)
    torch.testing.assert_close(z[~right].std(0), torch.full((2,), 0.5), rtol=0, atol=0.03)
    assert torch.equal(base.sample(10, seed=0, first_sample=20, like=means), z[20:30])


def test_few_labels_teach_many_points():
    torch.manual_seed(0)
    labels = torch.arange(400) % 2
    angle = math.pi * torch.rand(400)
    side = 1 - 2.0 * labels
    x = torch.stack([side * angle.cos() + labels - 0.5, side * angle.sin() - 0.5 * side * 0.5], 1)
    x = x + 0.05 * torch.randn(400, 2)
    known = torch.where(torch.arange(400) < 12, labels, -1)
    means = torch.tensor([[-2.5, 0.0], [2.5, 0.0]])
    model = FlowGMM(RealNVP(2, layers=6, hidden=(32, 32)), 2, means=means)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(x, known) + model.loss(x[:12], known[:12])
        loss.backward()
        optimizer.step()
    assert (model.eval().classify(x) == labels).float().mean() > 0.9


def test_mixture_takes_the_type_of_the_flow():
    model = FlowGMM(RealNVP(2, layers=2, hidden=(8,)).double(), 3)
    assert model.base.means.dtype == torch.float64
    assert model.class_log_prob(samples(4, 2)).dtype == torch.float64
    given = FlowGMM(RealNVP(2, layers=2, hidden=(8,)), 3, means=samples(3, 2))
    assert given.sample(4, seed=0).dtype == torch.float32


def test_model_comes_back_from_its_flow_and_its_state():
    flow = RealNVP(2, layers=2, hidden=(8,))
    model = FlowGMM(flow, 3, scale=0.5).eval()
    assert model.config is None
    again = FlowGMM(type(flow)(**flow.config), 3).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.sample(5, seed=0), model.sample(5, seed=0))
    x = samples(4, 2, dtype=torch.float32)
    assert torch.equal(again.class_log_prob(x), model.class_log_prob(x))


def test_bad_kinds():
    with pytest.raises(TypeError, match="flow: expected a Flow, got Linear"):
        FlowGMM(torch.nn.Linear(2, 2), 3)
    with pytest.raises(TypeError, match="labels: expected a tensor, got list"):
        FlowGMM(RealNVP(2), 3).loss(torch.zeros(2, 2), [0, 1])


def test_labels_must_be_integers():
    with pytest.raises(TypeError, match="labels: expected dtype int64"):
        FlowGMM(RealNVP(2), 3).loss(torch.zeros(2, 2), torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowGMM(RealNVP(2), 1), "num_classes: expected at least 2, got 1"),
        (
            lambda: FlowGMM(RealNVP(2), 3, means=torch.zeros(3, 3)),
            r"means: expected shape \[K, D\] = \[3, 2\]",
        ),
        (lambda: FlowGMM(RealNVP(2), 3, scale=0.0), "scale: expected a positive number"),
        (
            lambda: FlowGMM(RealNVP(2), 3).loss(torch.zeros(2, 2), torch.zeros(3).long()),
            r"labels: expected shape \[B\] = \[2\]",
        ),
        (
            lambda: FlowGMM(RealNVP(2), 3).loss(torch.zeros(2, 2), torch.tensor([0, 3])),
            r"labels: expected numbers from -1 to 2, got \[3\]",
        ),
        (
            lambda: FlowGMM(RealNVP(2), 3).loss(torch.zeros(2, 2), torch.tensor([-2, 0])),
            r"labels: expected numbers from -1 to 2, got \[-2\]",
        ),
        (
            lambda: FlowGMM(RealNVP(2), 3).sample_classes(torch.tensor([-1, 0])),
            r"labels: expected numbers from 0 to 2, got \[-1\]",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_density_integrates_to_one():
    model = FlowGMM(build(FLOWS["realnvp"], 2, spread=0.1), 3)
    axis = torch.linspace(-14, 14, 501, dtype=torch.float64)
    with torch.no_grad():
        total = model.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]).square()
    assert abs(total - 1) < 2e-3
