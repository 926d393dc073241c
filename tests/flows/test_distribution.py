"""Flows as PyTorch distributions."""

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution, transforms

from genssl_fast import flows
from tests.flows.models import FLOWS, build, samples


def realnvp(**options):
    return build(FLOWS["realnvp"], (2, 2), **options)


def test_shapes_and_densities():
    flow = realnvp()
    density = flow.distribution()
    assert (density.batch_shape, density.event_shape) == ((), (2, 2))
    x = density.sample((3, 4))
    assert x.shape == (3, 4, 2, 2)
    assert not x.requires_grad
    assert density.rsample().requires_grad
    torch.testing.assert_close(density.log_prob(x), flow.log_prob(x.view(12, 2, 2)).view(3, 4))


def test_context_makes_a_batch():
    flow = realnvp(context_features=3)
    contexts = samples(5, 3)
    density = flow.distribution(contexts)
    assert density.batch_shape == (5,)
    x = density.sample((4,))
    assert x.shape == (4, 5, 2, 2)
    expected = torch.stack([flow.log_prob(row, contexts) for row in x])
    torch.testing.assert_close(density.log_prob(x), expected)
    one = flow.distribution(contexts[0])
    torch.testing.assert_close(one.log_prob(x[:, 0]), expected[:, 0])
    wider = density.expand((4, 5))
    assert wider.batch_shape == (4, 5)
    torch.testing.assert_close(wider.log_prob(x), expected)


def test_expands_without_context():
    density = realnvp().distribution().expand((6,))
    assert density.batch_shape == (6,)
    x = density.sample((2,))
    assert x.shape == (2, 6, 2, 2)
    assert density.log_prob(x).shape == (2, 6)
    assert density.log_prob(x[0, 0]).shape == (6,)


def test_torch_seeds_make_samples_reproducible():
    density = realnvp().distribution()
    torch.manual_seed(7)
    first = density.sample((3,))
    torch.manual_seed(7)
    assert torch.equal(density.sample((3,)), first)


def test_within_other_distributions():
    flow = realnvp()
    shifted = TransformedDistribution(
        flow.distribution(), [transforms.AffineTransform(1.0, 2.0, event_dim=2)]
    )
    x = samples(3, 2, 2)
    expected = flow.log_prob((x - 1) / 2) - 4 * torch.tensor(2.0).double().log()
    torch.testing.assert_close(shifted.log_prob(x), expected)


def test_an_untrained_flow_is_standard_normal():
    density = flows.NeuralSplineFlow(3, layers=2, linear=False).double().distribution()
    x = samples(10, 3)
    normal = Independent(Normal(torch.zeros(3).double(), 1.0), 1)
    torch.testing.assert_close(density.log_prob(x), normal.log_prob(x), rtol=1e-6, atol=1e-6)


def test_expanded_distributions_keep_their_checks():
    for validated in (False, True):
        density = flows.FlowDistribution(realnvp(), validate_args=validated)
        assert density.expand((2,))._validate_args is validated


def test_nothing_to_draw():
    density = realnvp().distribution()
    x = density.sample((0,))
    assert x.shape == (0, 2, 2)
    assert density.log_prob(x).shape == (0,)
    empty = realnvp(context_features=3).distribution(samples(0, 3))
    assert empty.log_prob(empty.sample((4,))).shape == (4, 0)


def test_says_what_it_is():
    assert repr(realnvp().distribution()) == "FlowDistribution(RealNVP, batch_shape=(), event_shape=(2, 2))"


def test_contexts_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"context: expected shape \[\*batch, 3\], got \[5, 2\]"):
        realnvp(context_features=3).distribution(samples(5, 2))
    with pytest.raises(ValueError, match=r"context: expected shape \[\*batch, 0\]"):
        realnvp().distribution(samples(5, 2))
