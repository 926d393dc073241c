"""A flow as CUDA graphs: the layers' results, replays, changed weights, no synchronisation."""

import pytest
import torch

from genssl_fast.ops.flow_eager import apply_layers
from genssl_fast.ops.flow_plan import FlowPlan
from tests.ops.drawn_layers import batch_of, image_layers, mixed_layers, moved

pytestmark = pytest.mark.gpu


def on_gpu(dtype=torch.float32, size=33):
    x, context = batch_of(dtype, size)
    return moved(mixed_layers(dtype), "cuda"), x.cuda(), context.cuda()


@pytest.mark.parametrize("inverse", [False, True])
def test_graphs_give_the_layers_results(inverse):
    layers, x, context = on_gpu(torch.float64)
    plan = FlowPlan(layers)
    run = plan.inverse if inverse else plan.transform
    for size in (1, 33, 7, 33):
        expected = apply_layers(layers, x[:size], context[:size], inverse=inverse)
        torch.testing.assert_close(run(x[:size], context[:size]), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
def test_images(inverse):
    shape = (4, 6, 9)
    layers, (x, context) = moved(image_layers(shape), "cuda"), batch_of(torch.float64, 5, 4 * 6 * 9)
    x, context = x.cuda().clamp(-3, 3), context.cuda()
    plan = FlowPlan(layers)
    expected = apply_layers(layers, x, context, inverse=inverse)
    found = (plan.inverse if inverse else plan.transform)(x, context)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_results_outlive_the_next_replay():
    layers, x, context = on_gpu()
    plan = FlowPlan(layers)
    first = plan.log_prob(x, context)
    kept = first.clone()
    plan.log_prob(x + 1, context)
    assert torch.equal(first, kept)


def test_samples_are_those_of_the_cpu():
    layers, _, context = on_gpu(torch.float64)
    x, log_prob = FlowPlan(layers).sample_and_log_prob(33, seed=3, context=context)
    on_cpu = FlowPlan(mixed_layers()).sample_and_log_prob(33, seed=3, context=context.cpu())
    torch.testing.assert_close((x.cpu(), log_prob.cpu()), on_cpu, rtol=1e-4, atol=1e-4)


def test_notices_changed_weights():
    layers, x, context = on_gpu()
    plan = FlowPlan(layers)
    before = plan.log_prob(x, context)
    layers[2].weight.mul_(1.1)
    after = plan.log_prob(x, context)
    assert not torch.equal(before, after)
    assert torch.equal(after, FlowPlan(layers).log_prob(x, context))


def test_replays_do_not_synchronise():
    layers, x, context = on_gpu()
    plan = FlowPlan(layers)
    plan.log_prob(x, context)
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan.log_prob(x, context)
    finally:
        torch.cuda.set_sync_debug_mode("default")
