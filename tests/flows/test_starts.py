"""Flows as they come, before and after a short training: near the identity, and sane far from all data."""

import pytest
import torch

from genssl_fast import flows
from genssl_fast.data import load_density


@pytest.mark.parametrize("closed_form", ["log_prob", "sample"])
@pytest.mark.parametrize("context_features", [0, 2])
def test_planar_flows_start_at_the_identity(closed_form, context_features):
    torch.manual_seed(0)
    flow = flows.PlanarFlow(3, layers=32, closed_form=closed_form, context_features=context_features)
    x, context = torch.randn(50, 3), torch.randn(50, 2) if context_features else None
    z, log_abs_det = flow.transform(x, context)
    torch.testing.assert_close(z, x, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(log_abs_det, torch.zeros(50), rtol=0, atol=1e-4)


def fit(flow, steps: int):
    """Trained on two moons."""
    data = load_density("moons", 5000)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for step in range(steps):
        loss = -flow.log_prob(data.samples[torch.arange(step * 250, (step + 1) * 250) % 5000]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow.eval(), loss.item()


def test_planar_flows_train_from_their_start():
    torch.manual_seed(0)
    assert fit(flows.PlanarFlow(2, layers=16), 150)[1] < 0.9  # from 1.98, that of a standard normal


@torch.no_grad()
def lowest_log_density(flow) -> float:
    """Over three times the range of the data, which is [-1, 1]."""
    axis = torch.linspace(-3, 3, 60)
    return flow.log_prob(torch.cartesian_prod(axis, axis)).min().item()


def test_maf_gives_no_point_a_huge_penalty():
    torch.manual_seed(0)
    flow, loss = fit(flows.MAF(2), 300)
    assert loss < 0
    assert lowest_log_density(flow) > -1e5  # -7e3; with clamp="tanh" -1e7
