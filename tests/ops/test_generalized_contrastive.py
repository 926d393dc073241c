"""Losses of squared distances: the battery, the identities that pin sign and scale, users' functions."""

import pytest
import torch

import genssl_fast
from genssl_fast.ops.similarity import raw_gram_pair_sum, raw_gram_pair_sum_backward
from genssl_fast.reference.contrast import losses as plain
from tests.battery import Case
from tests.ops.composite_battery import CompositeBattery
from tests.ops.test_contrastive import DTYPES, assert_same, both_gradients, rows, views


def pair_of(phi, psi, epsilon=1.0):
    """The operation and its reference as functions of z, z_positive, log temperature and margin."""
    function = psi.function if isinstance(psi, genssl_fast.Psi) else psi
    return (
        lambda z, p, t, m: genssl_fast.generalized_contrastive(
            z, p, phi, psi, temperature=t.exp(), margin=m, epsilon=epsilon
        ),
        lambda z, p, t, m: plain.generalized_contrastive(z, p, phi, function, t.exp(), m, epsilon),
    )


def raw_sum(z, positive, temperature, margin):
    return raw_gram_pair_sum, (z, temperature, z[:, 0].contiguous(), positive[:, 0].contiguous(), 2)


def raw_sum_backward(z, positive, temperature, margin):
    _, arguments = raw_sum(z, positive, temperature, margin)
    return raw_gram_pair_sum_backward, (z[:, 1].contiguous(), *arguments)


def rounded(u):
    return torch.sqrt(1 + u * u)


INPUTS = rows(2, 2, scalars=[2.0, 0.3])
ALL = (0, 1, 2, 3)


class TestGeneralizedContrastive(CompositeBattery):
    cases = {
        "soft_triplet": Case(*pair_of("log", "exponential"), INPUTS, ALL, None, DTYPES),
        "softplus": Case(*pair_of("identity", "softplus"), INPUTS, ALL, raw_sum, DTYPES),
        "sigmoid_log": Case(*pair_of("log", "sigmoid", 0.5), INPUTS, ALL, raw_sum_backward, DTYPES),
        "user": Case(*pair_of("log", genssl_fast.Psi(rounded), 0.5), INPUTS, ALL, None, DTYPES),
    }
    errors = {
        "phi": (
            lambda: genssl_fast.generalized_contrastive(torch.ones(3, 2), torch.ones(3, 2), "exp"),
            ValueError,
            "phi: expected one of 'identity', 'log', got 'exp'",
        ),
        "psi": (
            lambda: genssl_fast.generalized_contrastive(torch.ones(3, 2), torch.ones(3, 2), psi="exp"),
            ValueError,
            "psi: expected one of 'exponential', .* got 'exp'",
        ),
        "psi shape": (
            lambda: genssl_fast.generalized_contrastive(torch.ones(3, 2), torch.ones(3, 2), psi=torch.sum),
            ValueError,
            r"psi: expected shape that of its argument, \[rows, N\] = \[3, 3\], got \[\]",
        ),
        "positive shape": (
            lambda: genssl_fast.info_nce_distance(torch.ones(3, 2), torch.ones(4, 2)),
            ValueError,
            r"z_positive: expected shape that of z = \[3, 2\], got \[4, 2\]",
        ),
        "temperature": (
            lambda: genssl_fast.info_nce_distance(torch.ones(3, 2), torch.ones(3, 2), 0.0),
            ValueError,
            "temperature: expected more than 0, got 0.0",
        ),
    }


@pytest.mark.parametrize("psi", ["hinge", "linear", "exponential", "softplus", "sigmoid", "quadratic"])
def test_every_psi(psi):
    z, positive = views(9, 4, 0)
    numbers = torch.tensor(0.8).double(), torch.tensor(0.4).double()
    ours, reference = pair_of("identity", psi)
    assert_same(both_gradients(ours, z, positive, *numbers), both_gradients(reference, z, positive, *numbers))


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_info_nce_of_distances(epsilon):
    """T1: the loss as the source text writes it, to 1e-12."""
    z, positive = views(8, 3, 1)
    tau = 0.7

    def formula(z, positive):
        near = torch.exp(-(z - positive).square().sum(1) / tau)
        far = torch.exp(-(z[:, None] - z).square().sum(2) / tau)
        others = far.masked_fill(torch.eye(8, dtype=torch.bool), 0.0).sum(1)
        return -tau * torch.log(near / (epsilon * near + others)).sum()

    ours = both_gradients(lambda a, b: genssl_fast.info_nce_distance(a, b, tau, epsilon), z, positive)
    assert_same(ours, both_gradients(formula, z, positive), 1e-11)


def test_a_step_draws_the_positive_near():
    z, positive = views(8, 3, 2)
    for psi in ("exponential", "softplus", "sigmoid", "linear"):
        z = z.detach().requires_grad_()
        moved = positive.clone().requires_grad_()
        loss = genssl_fast.generalized_contrastive(z, moved, "identity", psi, temperature=4.0)
        (grad,) = torch.autograd.grad(loss, moved)
        before = (z - moved).square().sum(1)
        after = (z - (moved - 1e-3 * grad)).square().sum(1)
        assert (after < before).all(), psi


def test_temperature_is_twice_that_of_cosines():
    """T2: on the unit sphere −d/τ = 2 (cos − 1)/τ, so InfoNCE at τ is a cross-entropy at τ/2, times τ."""
    z, positive = (torch.nn.functional.normalize(t) for t in views(8, 3, 3))
    tau = 0.6
    logits = z @ z.mT / (tau / 2)
    logits.fill_diagonal_(-torch.inf)
    logits = torch.cat([((z * positive).sum(1) / (tau / 2))[:, None], logits], 1)
    expected = tau * torch.nn.functional.cross_entropy(
        logits, torch.zeros(8, dtype=torch.int64), reduction="sum"
    )
    torch.testing.assert_close(genssl_fast.info_nce_distance(z, positive, tau), expected)


def test_nt_xent_and_dcl_are_made_of_distances():
    """T3: with the other views appended, ε = 1 is NT-Xent and ε = 0 is DCL, at half the temperature."""
    first, second = (torch.nn.functional.normalize(t) for t in views(5, 3, 4))
    tau, count = 0.8, 5
    both = torch.cat([first, second])
    other = torch.cat([second, first])
    distance = (both[:, None] - both).square().sum(2)
    near = (both - other).square().sum(1)
    itself = torch.eye(count, dtype=torch.bool).repeat(2, 2)
    for epsilon in (0.0, 1.0):
        negatives = torch.where(itself, 0.0, torch.exp((near[:, None] - distance) / tau)).sum(1)
        expected = torch.log(epsilon + negatives).mean()
        found = genssl_fast.nt_xent(first, second, tau / 2, epsilon=epsilon)
        torch.testing.assert_close(found, expected)


def test_triplet_and_tuplet():
    z, positive = views(6, 3, 5)
    near = (z - positive).square().sum(1)
    difference = near[:, None] - (z[:, None] - z).square().sum(2)
    others = ~torch.eye(6, dtype=torch.bool)
    triplet = torch.relu(difference + 0.5)[others].sum()
    found = genssl_fast.generalized_contrastive(z, positive, "identity", "hinge", margin=0.5)
    torch.testing.assert_close(found, triplet)
    tuplet = torch.log1p(torch.where(others, difference.exp(), 0.0).sum(1)).sum()
    torch.testing.assert_close(genssl_fast.generalized_contrastive(z, positive), tuplet)


def test_functions_of_a_user(monkeypatch):
    z, positive = views(9, 4, 6)
    monkeypatch.setattr("genssl_fast.ops.generalized_contrastive.PAIRS_AT_ONCE", 20)  # tiles of two rows
    temperature, margin = torch.tensor([0.9, 0.2], dtype=torch.float64).unbind()
    _, reference = pair_of("log", "sigmoid", 0.5)

    def phi(sums):
        return 0.9 * torch.log(0.5 + sums)

    def psi(x):
        return torch.sigmoid((x + 0.2) / 0.9)

    def ours(z, positive):
        return genssl_fast.generalized_contrastive(z, positive, phi, psi)

    expected = both_gradients(lambda z, p: reference(z, p, temperature.log(), margin), z, positive)
    assert_same(both_gradients(ours, z, positive), expected)
    wanted = z[:3].clone().requires_grad_(), positive[:3].clone().requires_grad_()
    torch.autograd.gradcheck(ours, wanted)
    torch.autograd.gradgradcheck(ours, wanted)


@pytest.mark.parametrize("psi", [genssl_fast.Psi(rounded), rounded], ids=["Psi", "function"])
def test_functions_compute_in_the_precision_of_rows(psi):
    z, positive = (t.float() for t in views(30, 8, 6))
    expected = genssl_fast.generalized_contrastive(z, positive, "identity", psi)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(genssl_fast.generalized_contrastive(z, positive, "identity", psi), expected)


def test_far_from_the_origin():
    """Distances do not cancel: the rows are taken relative to their mean."""
    z, positive = (t.float() for t in views(50, 4, 7))
    near = genssl_fast.info_nce_distance(z, positive, 2.0)
    far = genssl_fast.info_nce_distance(z + 1024, positive + 1024, 2.0)
    exact = genssl_fast.info_nce_distance((z + 1024).double(), (positive + 1024).double(), 2.0)
    assert abs(far - exact) <= 2e-5 * abs(exact)
    assert abs(far - near) <= 1e-3 * abs(near)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("psi", ["exponential", "softplus", "hinge", "sigmoid", "quadratic", "linear"])
def test_no_number_stays_none(psi, dtype):
    z, positive = (t.to(dtype) for t in views(20, 3, 9))
    z[7, 1] = torch.nan
    assert genssl_fast.generalized_contrastive(z, positive, "identity", psi).isnan()


def test_huge_differences_are_finite():
    z, positive = views(6, 3, 8)
    value, *grads = both_gradients(genssl_fast.info_nce_distance, 100 * z.float(), -100 * positive.float())
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in grads)
