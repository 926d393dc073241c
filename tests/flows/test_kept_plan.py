"""When a flow runs by its compiled plan: the same results, and never stale ones."""

import copy
import pickle

import pytest
import torch

from genssl_fast import FlowPlan, nn
from genssl_fast._library import native_module
from genssl_fast.flows import Flow, FlowGMM, StandardNormal
from tests.flows.models import FLOWS, IMAGE_FLOWS, PLANNED, build, samples

pytestmark = pytest.mark.skipif(native_module is None, reason="no compiled library")


def planned(name="spline", **options):
    return build(FLOWS[name], (1, 5), **options)


def eager(flow, x, context=None):
    """Noise, log-determinant and density by the layers' own operations."""
    with torch.enable_grad():
        return *(t.detach() for t in flow.transform(x, context)), flow.log_prob(x, context).detach()


def without_gradients(flow, x, context=None):
    with torch.no_grad():
        return *flow.transform(x, context), flow.log_prob(x, context)


def plan_of(flow):
    with torch.no_grad():
        return flow._plan()


@pytest.mark.parametrize("context_features", [0, 3])
@pytest.mark.parametrize("name", PLANNED)
def test_plan_and_layers_agree(name, context_features):
    shape = (2, 4, 8) if name in IMAGE_FLOWS else (1, 5)
    flow = build((FLOWS | IMAGE_FLOWS)[name], shape, context_features=context_features)
    x = samples(7, *shape)
    context = samples(7, 3, seed=2) if context_features else None
    assert plan_of(flow) is not None
    for compiled, own in zip(without_gradients(flow, x, context), eager(flow, x, context)):
        torch.testing.assert_close(compiled, own, rtol=1e-9, atol=1e-9)
    drawn, log_prob = flow.sample_and_log_prob(7, seed=0, context=context)
    for compiled, own in zip((drawn, log_prob), flow.rsample_and_log_prob(7, seed=0, context=context)):
        torch.testing.assert_close(compiled, own.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [
    planned, lambda **options: build(IMAGE_FLOWS["glow"], (2, 4, 8), **options),
], ids=["spline", "glow"])  # fmt: skip
def test_samples_have_the_same_bits_in_every_batch(make):
    flow = make(dtype=torch.float32)
    whole = flow.sample(37, seed=1)
    parts = [flow.sample(n, seed=1, first_sample=i) for i, n in ((0, 1), (1, 20), (21, 16))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(flow.train().sample(37, seed=1), whole)


def test_other_flows_have_no_plan():
    assert plan_of(planned("planar")) is None
    assert plan_of(planned().bfloat16()) is None
    assert plan_of(Flow(2, [nn.Planar(2)])) is None
    assert planned()._plan() is None  # gradients are recorded


def plain_convolution(given, moved):
    return torch.nn.Sequential(torch.nn.Conv2d(given, moved, 1))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Planar(5), r"layers\[1\]: expected a layer with plan_layer\(\), got Planar"),
        (nn.Inverse(nn.ActNorm(5)), r"layers\[1\]: layer: expected a coupling or an autoregressive layer"),
    ],
)
def test_a_plan_names_the_layer_it_cannot_run(layer, message):
    with pytest.raises(TypeError, match=message):
        FlowPlan(Flow(5, [nn.Permutation([4, 2, 0, 1, 3]), layer]))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.ActNorm(4), r"layers\[0\]: expected a layer with plan_layers\(\), got ActNorm"),
        (
            nn.GlowScale([nn.GlowStep([nn.ActNorm(16), nn.InvertibleLinear(16), nn.ActNorm(16)])]),
            r"layers\[0\]: .*plan_layers",
        ),
        (
            nn.glow_step(4, plain_convolution),
            r"layers\[0\]: expected modules that a plan runs, got Sequential",
        ),
    ],
)
def test_a_plan_of_images_names_the_layer_it_cannot_run(layer, message):
    with pytest.raises(TypeError, match=message):
        FlowPlan(Flow((4, 2, 2), [layer], flat=False))


def test_mixture_of_classes():
    flow, x = FlowGMM(planned("realnvp"), 3).double(), samples(7, 1, 5)
    assert plan_of(flow) is not None
    for compiled, own in zip(without_gradients(flow, x), eager(flow, x)):
        torch.testing.assert_close(compiled, own)
    assert flow.sample(4, seed=0).shape == (4, 1, 5)


def change_in_place(flow):
    with torch.no_grad():
        flow.layers[-1].network.layers[0].bias.add_(1.0)
    return flow


def replace_parameter(flow):
    linear = flow.layers[-1].network.layers[0]
    linear.bias = torch.nn.Parameter(linear.bias.detach() + 1)
    return flow


def replace_layer(flow):
    flow.layers[0] = nn.Permutation([4, 2, 0, 1, 3])
    return flow


def add_layer(flow):
    flow.layers.append(nn.Permutation([4, 2, 0, 1, 3]))
    return flow


def add_hook(flow):
    flow.layers[0].register_forward_hook(lambda module, inputs, output: (2 * output[0], output[1]))
    return flow


def load_state(flow):
    flow.load_state_dict({name: 1.1 * p.detach() for name, p in flow.named_parameters()}, strict=False)
    return flow


def set_data(flow):
    for parameter in flow.parameters():
        parameter.data.copy_(1.1 * parameter.detach())
    return flow


def step(flow):
    optimizer = torch.optim.AdamW(flow.parameters(), lr=0.1, fused=True)
    flow.log_prob(samples(4, 1, 5)).sum().backward()
    optimizer.step()
    return flow


def replace_transform(flow):
    flow.layers[-1].transform = flow.layers[-1].transform._replace(bound=2.0)
    return flow


def replace_activation(flow):
    flow.layers[-1].network.activation = "tanh"
    return flow


def replace_forward(flow):
    layer, own = flow.layers[-1], flow.layers[-1].forward
    layer.forward = lambda x, context: own(1.5 * x, context)
    return flow


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Wrapped(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return 2 * self.linear(x)


def derive_linear(flow):
    flow.layers[-1].network.layers[-1].__class__ = Doubled
    flow.refresh()
    return flow


def wrap_linear(flow):
    layers = flow.layers[-1].network.layers
    layers[-1] = Wrapped(layers[-1])
    return flow


CHANGES = {
    "data": set_data,
    "fused optimizer": step,
    "transform": replace_transform,
    "activation": replace_activation,
    "forward": replace_forward,
    "derived linear": derive_linear,
    "wrapped linear": wrap_linear,
    "in place": change_in_place,
    "parameter": replace_parameter,
    "layer": replace_layer,
    "another layer": add_layer,
    "hook": add_hook,
    "state": load_state,
    "copy": lambda flow: change_in_place(copy.deepcopy(flow)),
    "pickle": lambda flow: change_in_place(pickle.loads(pickle.dumps(flow))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change):
    flow, x = planned(), samples(4, 1, 5)
    before = without_gradients(flow, x)
    changed = CHANGES[change](flow)
    after = without_gradients(changed, x)
    assert not torch.equal(after[0], before[0])
    for compiled, own in zip(after, eager(changed, x)):
        torch.testing.assert_close(compiled, own, rtol=1e-9, atol=1e-9)


def test_functional_call_uses_the_given_parameters():
    flow, x = planned(), samples(4, 1, 5)
    given = {name: 1.1 * value.detach() for name, value in flow.named_parameters()}
    before = without_gradients(flow, x)[0]
    with torch.no_grad():
        z, _ = torch.func.functional_call(_Transform(flow), {f"flow.{k}": v for k, v in given.items()}, (x,))
    assert not torch.equal(z, before)
    assert torch.equal(without_gradients(flow, x)[0], before)
    flow.load_state_dict(given, strict=False)
    torch.testing.assert_close(without_gradients(flow, x)[0], z)


class _Transform(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow.transform(x)


def test_training_mode_runs_the_layers():
    flow, x = planned("realnvp", dropout=0.5).train(), samples(50, 1, 5)
    first, second = (without_gradients(flow, x)[0] for _ in range(2))
    assert not torch.equal(first, second)  # dropout acts


def test_transforms_and_duals_run_the_layers():
    flow, x = planned(), samples(4, 1, 5)
    with torch.no_grad():
        _, tangent = torch.func.jvp(flow.log_prob, (x,), (torch.ones_like(x),))
        mapped = torch.func.vmap(lambda row: flow.log_prob(row[None])[0])(x)
    (score,) = torch.autograd.grad(flow.log_prob(x.requires_grad_()).sum(), x)
    torch.testing.assert_close(tangent, score.flatten(1).sum(1))
    torch.testing.assert_close(mapped, flow.log_prob(x).detach())


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda flow: flow.log_prob(torch.zeros(2, 5).double()), r"x: expected shape \[B, \*\[1, 5\]\]"),
        (lambda flow: flow.inverse(torch.zeros(2, 5).double()), r"z: expected shape \[B, \*\[1, 5\]\]"),
        (lambda flow: flow.sample(2, context=torch.zeros(2, 1).double()), "context: expected None"),
        (lambda flow: flow.sample(-1), "n: expected at least 0, got -1"),
    ],
)
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message), torch.no_grad():
        run(planned())


def test_a_fused_optimizer_step_is_seen_by_samples():
    flow = planned()
    before = flow.sample(3, seed=0)
    step(flow)
    torch.testing.assert_close(flow.sample(3, seed=0), flow.rsample(3, seed=0).detach())
    assert not torch.allclose(flow.sample(3, seed=0), before)


def test_kept_inverses_see_changes_without_version():
    layer, x = nn.InvertibleLinear(6), samples(4, 6, dtype=torch.float32)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(layer.inverse(layer(x)[0])[0], x, rtol=1e-4, atol=1e-4)
        layer.upper.data.add_(0.1)


def test_refresh_sees_single_entries():
    flow, x = planned(hidden=(64,)), samples(4, 1, 5)
    without_gradients(flow, x)
    flow.layers[-1].network.layers[1].weight.data[3, 7] += 1.0
    flow.refresh()
    torch.testing.assert_close(without_gradients(flow, x)[0], eager(flow, x)[0], rtol=1e-9, atol=1e-9)


class WithBase(StandardNormal):
    def log_prob(self, z):
        return super().log_prob(2 * z)


class Shifted(Flow):
    def inverse(self, z, context=None):
        x, log_abs_det = super().inverse(z, context)
        return x + 3, log_abs_det

    def transform(self, x, context=None):
        return super().transform(x - 3, context)


def test_a_derived_base_is_asked():
    layers, x = planned().layers, samples(4, 1, 5)
    flow = Flow((1, 5), layers, base=WithBase((1, 5))).eval()
    torch.testing.assert_close(without_gradients(flow, x)[2], eager(flow, x)[2])


def test_a_derived_flow_is_asked():
    flow, x = Shifted((1, 5), planned().layers).eval(), samples(4, 1, 5)
    assert plan_of(flow) is None
    torch.testing.assert_close(flow.sample(4, seed=0), flow.rsample(4, seed=0).detach())
    torch.testing.assert_close(flow.log_prob(x), Flow((1, 5), flow.layers).eval().log_prob(x - 3))
    with pytest.raises(TypeError, match="flow: expected Flow's own transform, got that of Shifted"):
        FlowPlan(flow)
