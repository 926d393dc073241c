"""A whole flow in one call against its layers in PyTorch."""

import copy
import os
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad

from genssl_fast._library import instruction_set
from genssl_fast.flows import GaussianMixture
from genssl_fast.nn import InvertibleLinear, SplineCoupling
from genssl_fast.ops import flow_runners
from genssl_fast.ops.flow_eager import apply_layers
from genssl_fast.ops.flow_layers import PermutationLayer
from genssl_fast.ops.flow_plan import FlowPlan
from genssl_fast.ops.random import random_normal
from genssl_fast.ops.transforms import SplineTransform
from genssl_fast.reference.causal import ACTIVATIONS
from tests.ops.drawn_layers import (
    TRANSFORMS,
    Draw,
    assert_agrees,
    assert_same_bits_in_every_split,
    assert_same_bits_on_every_number_of_threads,
    batch_of,
    mixed_layers,
    moved,
)

needs_kernels = pytest.mark.skipif(instruction_set() is None, reason="compiled kernels are not built")


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestValue:
    @pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
    def test_transforms(self, transform, dtype, inverse):
        layers = moved([Draw().coupling(5, transform)], dtype)
        assert_agrees(layers, batch_of(dtype, 37)[0].clamp(-3, 3), None, inverse)

    @pytest.mark.parametrize("residual", [False, True])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_networks(self, activation, residual, dtype, inverse):
        options = {"activation": activation, "residual": residual, "hidden": (7, 40, 7)}
        layers = moved([Draw().coupling(3, TRANSFORMS["zuko"], **options)], dtype)
        assert_agrees(layers, batch_of(dtype, 50, 3)[0], None, inverse)

    @pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
    def test_autoregressive_transforms(self, transform, dtype, inverse):
        layers = moved([Draw().autoregressive(5, transform)], dtype)
        assert_agrees(layers, batch_of(dtype, 37)[0].clamp(-3, 3), None, inverse)

    @pytest.mark.parametrize("residual", [False, True])
    @pytest.mark.parametrize("context", [0, 2])
    @pytest.mark.parametrize("direction", [False, True])
    def test_autoregressive_networks(self, residual, context, direction, dtype, inverse):
        options = {"activation": "silu", "residual": residual, "hidden": (40,) * 3, "context": context}
        layer = Draw().autoregressive(7, TRANSFORMS["zuko, interleaved"], inverse=direction, **options)
        assert_agrees(moved([layer], dtype), *batch_of(dtype, 50, 7, context), inverse)

    @pytest.mark.parametrize("hidden", [(), (1,), (64,), (31, 65, 3)])
    def test_widths(self, hidden, dtype, inverse):
        layers = moved([Draw().coupling(9, TRANSFORMS["spline"], hidden)], dtype)
        assert_agrees(layers, batch_of(dtype, 50, 9)[0], None, inverse)

    @pytest.mark.parametrize("size", [0, 233])
    def test_mixed_layers(self, size, dtype, inverse):
        assert_agrees(mixed_layers(dtype), *batch_of(dtype, size), inverse)

    def test_layers_without_networks(self, dtype, inverse):
        draw = Draw(dtype)
        layers = [draw.linear(4), PermutationLayer(draw.permutation(4)), draw.elementwise(4)]
        layers[0] = layers[0]._replace(bias=None)
        assert_agrees(layers, batch_of(dtype, 50, 4)[0], None, inverse)

    def test_context_alone(self, dtype, inverse):
        """A single column, transformed by the context."""
        coupling = Draw(dtype).coupling(1, TRANSFORMS["spline"], context=2)
        assert len(coupling.identity) == 0
        assert_agrees([coupling], *batch_of(dtype, 50, 1), inverse)


class TestDensity:
    def test_samples_and_densities_agree(self):
        plan, (_, context) = FlowPlan(mixed_layers()), batch_of(torch.float64, 50)
        x, log_prob = plan.sample_and_log_prob(50, seed=3, context=context)
        z = random_normal((50, 5), seed=3, dtype=torch.float64)
        torch.testing.assert_close(plan.transform(x, context)[0], z, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(plan.log_prob(x, context), log_prob, rtol=1e-9, atol=1e-9)
        assert torch.equal(plan.sample(50, seed=3, context=context), x)

    def test_density_is_that_of_the_formula(self):
        layers, (x, context) = mixed_layers(), batch_of(torch.float64, 20)
        z, log_abs_det = apply_layers(layers, x, context)
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_abs_det
        torch.testing.assert_close(FlowPlan(layers).log_prob(x, context), expected, rtol=1e-12, atol=1e-12)

    def test_integrates_to_one(self):
        draw = Draw()
        spline = partial(draw.coupling, 2, TRANSFORMS["spline"])
        plan = FlowPlan([spline(), PermutationLayer(torch.tensor([1, 0])), spline(), draw.elementwise(2)])
        axis = torch.linspace(-16, 16, 801, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        total = plan.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
        assert abs(total - 1) < 2e-3

    def test_one_context_for_all(self):
        plan, (x, _) = FlowPlan(mixed_layers()), batch_of(torch.float64, 20)
        context = torch.tensor([0.3, -1.2], dtype=torch.float64)
        assert torch.equal(plan.log_prob(x, context), plan.log_prob(x, context.expand(20, 2)))

    def test_far_out_is_finite(self):
        draw = Draw(torch.float32)
        plan = FlowPlan([draw.coupling(4, TRANSFORMS[name]) for name in ("spline", "tanh, scale first")])
        x = torch.tensor([[1e4, -1e4, 3.0, -3.0]])
        for result in (*plan.transform(x), *plan.inverse(x), plan.log_prob(x)):
            assert torch.isfinite(result).all()


class MixtureFlow(torch.nn.Module):
    """Layers whose noise is a mixture of two Gaussians."""

    def __init__(self, layers, features):
        super().__init__()
        self.layers = layers
        means = torch.stack([torch.full((features,), m, dtype=torch.float64) for m in (-1.5, 2.0)])
        self.base = GaussianMixture((features,), means, 0.7)

    def plan_layers(self):
        return self.layers


class TestBase:
    """Noise that is not standard normal."""

    def test_density_and_samples(self):
        flow, (x, context) = MixtureFlow(mixed_layers(), 5), batch_of(torch.float64, 20)
        plan = FlowPlan(flow)
        z, log_abs_det = apply_layers(flow.layers, x, context)
        expected = flow.base.log_prob(z) + log_abs_det
        torch.testing.assert_close(plan.log_prob(x, context), expected, rtol=1e-12, atol=1e-12)
        drawn, log_prob = plan.sample_and_log_prob(20, seed=4, first_sample=3, context=context)
        noise = flow.base.sample(20, seed=4, first_sample=3, like=x)
        torch.testing.assert_close(plan.transform(drawn, context)[0], noise, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(plan.log_prob(drawn, context), log_prob, rtol=1e-9, atol=1e-9)
        assert torch.equal(plan.sample(20, seed=4, first_sample=3, context=context), drawn)

    def test_integrates_to_one(self):
        draw = Draw()
        layers = [draw.autoregressive(2, TRANSFORMS["spline"]), draw.coupling(2, TRANSFORMS["spline"])]
        axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
        log_prob = FlowPlan(MixtureFlow(layers, 2)).log_prob(torch.cartesian_prod(axis, axis))
        assert abs(log_prob.exp().sum() * (axis[1] - axis[0]) ** 2 - 1) < 2e-3


@needs_kernels
class TestBits:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_do_not_depend_on_the_split(self, dtype):
        wide = Draw(dtype).coupling(5, TRANSFORMS["spline"], hidden=(140, 150))
        masked = Draw(dtype).autoregressive(5, TRANSFORMS["spline"], hidden=(140, 150), context=2)
        plan, (x, context) = FlowPlan([*mixed_layers(dtype), wide, masked]), batch_of(dtype, 233)
        splits = [(0, 1), (1, 2), (30, 3), (7, 50), (100, 13), (3, 110), (232, 1)]
        assert_same_bits_in_every_split(plan, x, context, splits)

    def test_do_not_depend_on_threads(self):
        plan, (x, context) = FlowPlan(mixed_layers(torch.float32)), batch_of(torch.float32, 2000)
        assert_same_bits_on_every_number_of_threads(plan, x, context)

    def test_do_not_depend_on_strides(self):
        plan, (x, context) = FlowPlan(mixed_layers(torch.float32)), batch_of(torch.float32, 7)
        expected = plan.log_prob(x, context)
        assert torch.equal(plan.log_prob(x.t().contiguous().t(), context.t().contiguous().t()), expected)

    def test_fresh_memory_is_written(self, poisoned_memory):
        assert_agrees(mixed_layers(torch.float32), *batch_of(torch.float32, 50), inverse=True)

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("isa", ["avx2", "baseline"])
    def test_other_instruction_sets(self, isa):
        environment = {**os.environ, "GENSSL_ISA": isa}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
        subprocess.run([*command, "-k", "TestValue or TestDensity or split"], env=environment, check=True)


class TestPacking:
    def test_notices_weights_changed_in_place(self):
        layers, (x, context) = mixed_layers(), batch_of(torch.float64, 3)
        plan = FlowPlan(layers)
        before = plan.transform(x, context)[0]
        layers[0].network.weights[1].mul_(1.5)
        layers[2].weight[0].mul_(2)
        after = plan.transform(x, context)[0]
        assert not torch.equal(after, before)
        assert torch.equal(after, FlowPlan(layers).transform(x, context)[0])

    def test_notices_weights_replaced_at_their_address(self):
        layers, (x, context) = mixed_layers(), batch_of(torch.float64, 3)
        plan, bias = FlowPlan(layers), layers[0].network.biases[0]
        for _ in range(3):
            plan.log_prob(x, context)
            bias.data = torch.randn_like(bias)
            assert torch.equal(plan.log_prob(x, context), FlowPlan(layers).log_prob(x, context))

    def test_notices_changes_that_have_no_version(self):
        layers, (x, context) = mixed_layers(), batch_of(torch.float64, 3)
        plan = FlowPlan(layers)
        before = plan.log_prob(x, context)
        layers[0].network.weights[1].numpy()[...] *= 1.5
        assert not torch.equal(plan.log_prob(x, context), before)
        assert torch.equal(plan.log_prob(x, context), FlowPlan(layers).log_prob(x, context))

    def test_large_batches_and_refresh_see_single_entries(self):
        layers, (x, context) = mixed_layers(), batch_of(torch.float64, 512)
        plan, weight = FlowPlan(layers), layers[0].network.weights[1]
        for batch in (512, 3):
            weight.numpy()[7, 3] += 1.5
            if batch < 512:
                plan.refresh()
            expected = FlowPlan(layers).log_prob(x[:batch], context[:batch])
            assert torch.equal(plan.log_prob(x[:batch], context[:batch]), expected)

    @pytest.mark.parametrize(
        ("change", "exception", "message"),
        [
            (lambda layer: layer.weights[0].resize_(2000, 4), ValueError, r"biases\[0\]: expected shape"),
            (
                lambda layer: setattr(layer.biases[0], "data", torch.zeros(1)),
                (ValueError, TypeError),
                "expected",
            ),
            (lambda layer: setattr(layer.weights[0], "data", layer.weights[0].float()), TypeError, "dtype"),
        ],
    )
    def test_changed_shapes_and_dtypes_are_refused(self, change, exception, message):
        layers, (x, context) = mixed_layers(), batch_of(torch.float64, 3)
        plan = FlowPlan(layers)
        change(layers[0].network)
        with pytest.raises(exception, match=message):
            plan.log_prob(x, context)

    def test_packs_in_full_precision_under_autocast(self):
        modules = [InvertibleLinear(4), SplineCoupling([True, True, False, False])]
        plan, x = FlowPlan(modules), torch.randn(3, 4)
        expected = plan.log_prob(x)
        plan.refresh()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(plan.log_prob(x), expected)

    def test_refresh_packs_anew(self):
        layers, (x, context) = mixed_layers(), batch_of(torch.float64, 3)
        plan = FlowPlan(layers)
        plan.refresh()
        assert torch.equal(plan.log_prob(x, context), FlowPlan(layers).log_prob(x, context))

    def test_inference_tensors_are_read_anew(self):
        with torch.inference_mode():
            layers, (x, context) = mixed_layers(), batch_of(torch.float64, 3)
            plan = FlowPlan(layers)
            plan.log_prob(x, context)
            layers[0].network.weights[1].mul_(1.5)
            assert torch.equal(plan.log_prob(x, context), FlowPlan(layers).log_prob(x, context))

    def test_copies_pack_for_themselves(self):
        x, context = batch_of(torch.float64, 3)
        plan = FlowPlan(mixed_layers())
        expected = plan.log_prob(x, context)
        for copied in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
            assert torch.equal(copied.log_prob(x, context), expected)

    def test_seed_may_be_a_tensor(self):
        plan, context = FlowPlan(mixed_layers()), torch.zeros(2, dtype=torch.float64)
        expected = plan.sample(4, seed=7, context=context)
        assert torch.equal(plan.sample(4, seed=torch.tensor(7), context=context), expected)
        assert not torch.equal(plan.sample(4, context=context), expected)


class TestEager:
    """Without the compiled library the layers run in PyTorch, and on CUDA as graphs."""

    def test_gives_the_same(self, monkeypatch):
        layers, (x, context) = mixed_layers(), batch_of(torch.float64, 9)
        compiled = FlowPlan(layers)
        monkeypatch.setattr(flow_runners, "native_module", None)
        eager = FlowPlan(layers)
        pairs = [
            (compiled.transform(x, context), eager.transform(x, context)),
            (compiled.inverse(x, context), eager.inverse(x, context)),
            (compiled.log_prob(x, context), eager.log_prob(x, context)),
            (
                compiled.sample_and_log_prob(5, seed=2, context=context[:5]),
                eager.sample_and_log_prob(5, seed=2, context=context[:5]),
            ),
            (compiled.sample(5, seed=2, context=context[0]), eager.sample(5, seed=2, context=context[0])),
        ]
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)

    def test_keeps_a_graph_for_each_direction_and_batch_size(self, monkeypatch):
        captured = []

        class Graph:
            def __init__(self, function, *inputs):
                captured.append(tuple(inputs[0].shape))
                self.replay = function

        monkeypatch.setattr(flow_runners, "_Graph", Graph)
        monkeypatch.setattr(flow_runners, "CompiledFlow", flow_runners.CapturedFlow)
        monkeypatch.setattr(flow_runners, "native_module", object())
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        layers = mixed_layers(context=0)
        plan = FlowPlan(layers)
        x, _ = batch_of(torch.float64, 3, context=0)
        for _ in range(2):
            plan.log_prob(x), plan.inverse(x), plan.transform(x[:2]), plan.sample(0)
        assert captured == [(3, 5), (3, 5), (2, 5)]
        for size in range(1, 20):
            plan.log_prob(x[:1].expand(size, 5))
        assert len(plan._runner(1).graphs) == flow_runners.MAX_GRAPHS
        torch.testing.assert_close(plan.transform(x), apply_layers(layers, x))


LAYERS = mixed_layers(torch.float32, context=0)
X = torch.zeros(2, 5)
PLAN = FlowPlan(LAYERS)
WITH_CONTEXT = FlowPlan(mixed_layers(torch.float32))


def changed(position, **fields):
    return lambda: FlowPlan(
        [*LAYERS[:position], LAYERS[position]._replace(**fields), *LAYERS[position + 1 :]]
    )


changed_masked = partial(changed, 6)


def masked_blocks():
    """Residual blocks whose degrees are not those of what they are added to."""
    layer = Draw(torch.float32).autoregressive(5, TRANSFORMS["spline"], (9, 9, 9), residual=True)
    return FlowPlan([layer._replace(degrees=(*layer.degrees[:3], layer.degrees[3].flip(0)))])


def changed_network(**fields):
    return changed(0, network=LAYERS[0].network._replace(**fields))


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda: FlowPlan([]), ValueError, "flow: expected at least one layer"),
        (lambda: FlowPlan([LAYERS[1]]), ValueError, "flow: expected a layer with weights"),
        (lambda: FlowPlan(torch.nn.Linear(2, 2)), TypeError, r"flow: expected a module with plan_layers\(\)"),
        (lambda: FlowPlan([*LAYERS, torch.nn.ReLU()]), TypeError, r"layers\[9\]: expected a layer descr"),
        (lambda: FlowPlan([torch.nn.ReLU()]), TypeError, r"layers\[0\]: expected a layer description"),
        (changed(1, index=torch.tensor([0, 1, 2, 3, 3])), ValueError, r"layers\[1\].index: expected every"),
        (changed(0, transformed=torch.arange(5)), ValueError, r"layers\[0\].identity, .*: expected every"),
        (changed(2, weight=torch.zeros(5, 5)), ValueError, r"layers\[2\].weight: expected an invertible"),
        (changed(2, weight=torch.zeros(4, 4)), ValueError, r"layers\[2\].weight: expected shape \[D, D\]"),
        (changed(4, shift=torch.zeros(4)), ValueError, r"layers\[4\].shift: expected shape \[D\] = \[5\]"),
        (changed(4, shift=torch.zeros(5).double()), TypeError, "expected the dtype of the others"),
        (changed(0, context_features=1), ValueError, r"network.weights\[0\]: expected shape \[out, in\]"),
        (changed(0, transform=TRANSFORMS["zuko"]), ValueError, "parameters: expected 3"),
        (changed(0, transform=SplineTransform(bins=5, bound=-1.0)), ValueError, "bound: expected a positive"),
        (changed_masked(degrees=()), ValueError, r"layers\[6\].degrees: expected 3 tensors"),
        (
            changed_masked(degrees=(torch.arange(5),) * 3),
            ValueError,
            r"degrees\[1\]: expected shape \[units\]",
        ),
        (changed_masked(transform=TRANSFORMS["tanh, scale first"]), ValueError, "parameters: expected 5"),
        (changed_masked(context_weight=torch.zeros(5, 1)), ValueError, r"context_weight: expected shape"),
        (masked_blocks, ValueError, "degrees: expected those of a block's units equal"),
        (changed(2, weight_inverse=torch.eye(1)), ValueError, r"layers\[2\].weight_inverse: expected shape"),
        (changed(2, weight_inverse=torch.eye(9)), ValueError, r"layers\[2\].weight_inverse: expected shape"),
        (changed(2, weight=torch.eye(5).long()), TypeError, r"layers\[2\].weight: expected the dtype"),
        (changed(2, weight=torch.eye(5) + 0j), TypeError, r"layers\[2\].weight: expected the dtype"),
        (changed(1, index=torch.arange(5.0)), TypeError, r"layers\[1\].index: expected dtype int64"),
        (
            changed_network(biases=[b.to(torch.int8) for b in LAYERS[0].network.biases]),
            TypeError,
            r"layers\[0\].network.biases\[0\]: expected the dtype of the others",
        ),
        (changed_network(activation="sine"), ValueError, "network.activation: expected one of 'relu'"),
        (changed_network(residual=True), ValueError, "network.weights: expected pairs between"),
        (changed_network(biases=()), ValueError, "network.biases: expected 3 tensors"),
        (lambda: PLAN.log_prob(torch.zeros(2, 4)), ValueError, r"x: expected shape \[B, \*\[5\]\]"),
        (lambda: PLAN.inverse(torch.zeros(())), ValueError, r"z: expected shape \[B, \*\[5\]\]"),
        (lambda: PLAN.log_prob(X.double()), TypeError, "x: expected the dtype of the weights"),
        (lambda: PLAN.log_prob([0.0]), TypeError, "x: expected a tensor, got list"),
        (lambda: PLAN.log_prob(X, torch.zeros(2, 1)), ValueError, "context: expected None"),
        (lambda: WITH_CONTEXT.log_prob(X), ValueError, r"context: expected shape \[B, 2\], got None"),
        (
            lambda: WITH_CONTEXT.log_prob(X, torch.zeros(3, 2)),
            ValueError,
            r"context: expected shape \[B, 2\] or \[2\], got \[3, 2\]",
        ),
        (lambda: PLAN.sample(-1), ValueError, "n: expected at least 0, got -1"),
        (lambda: PLAN.sample(1, first_sample=-1), ValueError, "first_sample: expected an integer"),
        (lambda: FlowPlan(moved(LAYERS, torch.bfloat16)), ValueError, "flow: expected dtype"),
    ],
)
def test_errors_name_the_argument(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def test_refuses_tangents():
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="has no derivative"):
        PLAN.log_prob(forward_ad.make_dual(X, X))


@pytest.mark.parametrize(
    "call",
    [
        lambda: PLAN.log_prob(X.clone().requires_grad_()),
        lambda: WITH_CONTEXT.log_prob(X, torch.zeros(2, 2, requires_grad=True)),
        lambda: torch.func.grad(lambda x: PLAN.log_prob(x).sum())(X),
        lambda: torch.func.vmap(lambda x: PLAN.log_prob(x[None]))(X),
    ],
)
def test_refuses_gradients_and_transforms(call):
    with pytest.raises(RuntimeError, match="has no derivative and no transforms"):
        call()
    with torch.no_grad():
        PLAN.log_prob(X.clone().requires_grad_())


def test_samples_carry_no_gradients():
    context = torch.zeros(2, 2)
    expected = WITH_CONTEXT.sample(2, seed=0, context=context)
    found = WITH_CONTEXT.sample(2, seed=0, context=context.requires_grad_())
    assert torch.equal(found, expected)
    assert not found.requires_grad
