"""Flows under autocast and in 16 bits, where the map and its log-determinant keep their precision."""

import pytest
import torch

from genssl_fast import flows
from tests.flows.models import FLOWS, IMAGE_FLOWS, build, samples


def flow_and_data(name, dtype=torch.float32):
    make = {**FLOWS, **IMAGE_FLOWS}[name]
    flow = build(make, (1, 4, 4) if name in IMAGE_FLOWS else 6, dtype)
    return flow, samples(8, *flow.shape, dtype=dtype)


@pytest.mark.parametrize("name", [*FLOWS, *IMAGE_FLOWS])
def test_autocast(name):
    flow, x = flow_and_data(name)
    with torch.no_grad():
        expected = build({**FLOWS, **IMAGE_FLOWS}[name], flow.shape, torch.float32).log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        log_prob = flow.log_prob(x)
        (-log_prob.mean()).backward()
        z, log_abs_det = flow.transform(x)
        back, back_log_abs_det = flow.inverse(z)
        with torch.no_grad():
            flow.log_prob(x)
            assert flow.sample(3, seed=0).dtype == torch.float32
    assert log_prob.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)
    torch.testing.assert_close(log_prob, expected, rtol=0.05, atol=0.1 * flow.base.shape[0] ** 0.5)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(back_log_abs_det, -log_abs_det, rtol=1e-5, atol=2e-5)
    with torch.no_grad():  # what was kept under autocast is as good as any
        torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-5, atol=1e-5)


def test_autocast_trains_a_classifier():
    flow, x = flow_and_data("realnvp")
    model = flows.FlowGMM(flow, num_classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(x, torch.arange(8) % 3).backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*FLOWS, *IMAGE_FLOWS])
def test_sixteen_bits(name, dtype):
    flow, x = flow_and_data(name, dtype)
    log_prob = flow.log_prob(x)
    (-log_prob.mean()).backward()
    assert log_prob.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), log_prob.detach(), rtol=1e-3, atol=1e-3)
        sample, of_sample = flow.sample_and_log_prob(3, seed=0)
    assert (sample.dtype, of_sample.dtype) == (dtype, torch.float32)
