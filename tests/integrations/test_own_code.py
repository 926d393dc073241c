"""Hooks, replaced parts and parametrized weights within networks: results stay those of the library."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from genssl_fast.accelerate import accelerate
from tests.integrations.parity import agree, randomize

nflows = pytest.importorskip("nflows")
normflows = pytest.importorskip("normflows")
zuko = pytest.importorskip("zuko")

from nflows import transforms  # noqa: E402
from nflows.flows import SimpleRealNVP  # noqa: E402
from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive  # noqa: E402
from zuko.flows.autoregressive import MaskedAutoregressiveTransform  # noqa: E402

from genssl_fast.integrations import nflows as of_nflows  # noqa: E402
from genssl_fast.integrations import normflows as of_normflows  # noqa: E402
from genssl_fast.integrations import zuko as of_zuko  # noqa: E402


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# Of each library a layer, its network, the network's last matrix, and the slow direction at x.
LAYERS = {
    "nflows": (
        lambda: transforms.MaskedAffineAutoregressiveTransform(4, 8, num_blocks=1),
        lambda layer: layer.autoregressive_net,
        lambda net: net.final_layer,
        lambda layer, x: layer.inverse(x),
    ),
    "normflows": (
        lambda: MaskedAffineAutoregressive(4, 8, num_blocks=1),
        lambda layer: layer.autoregressive_net,
        lambda net: net.final_layer,
        lambda layer, x: layer.inverse(x),
    ),
    "zuko": (
        lambda: MaskedAutoregressiveTransform(4, hidden_features=(8, 8)),
        lambda layer: layer.hyper,
        lambda net: net[-1],
        lambda layer, x: layer().inv.call_and_ladj(x),
    ),
}


def double(module, inputs, output):
    return 2 * output


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def hook_on_the_network(net, last):
    net.register_forward_hook(double)


def hook_on_a_matrix(net, last):
    last.register_forward_hook(double)


def hook_before_a_matrix(net, last):
    last.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def own_class(net, last):
    kind = type(last)
    last.__class__ = type("Own", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})


def own_class_of_the_layer(coupling, last):
    coupling.__class__ = type("Own", (type(coupling),), {})


def own_forward(net, last):
    forward = last.forward
    last.forward = lambda x: 2 * forward(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def weight_norm(net, last):
    nn.utils.weight_norm(last)
    with torch.no_grad():
        last.weight_g.mul_(3)


def parametrization(net, last):
    nn.utils.parametrize.register_parametrization(last, "weight", Doubled())


def parametrized_weight_norm(net, last):
    parametrizations.weight_norm(last)
    with torch.no_grad():
        last.parametrizations.weight.original0.mul_(3)


CHANGES = [
    hook_on_the_network,
    hook_on_a_matrix,
    hook_before_a_matrix,
    own_class,
    own_forward,
    weight_norm,
    parametrization,
    parametrized_weight_norm,
]
filterwarnings = pytest.mark.filterwarnings("ignore:.*weight_norm")


@filterwarnings
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("library", LAYERS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_inverse_of_changed_networks(library, change, when):
    make, network_of, last_of, slow = LAYERS[library]
    layer, x = randomize(make(), 0.2), data(5, 4)
    net = network_of(layer)
    if when == "after":
        report = accelerate(layer)
        untouched = slow(layer, x)
        change(net, last_of(net))
    else:
        untouched = slow(layer, x)
        change(net, last_of(net))
        report = accelerate(layer)
    found = slow(layer, x)
    report.undo()
    agree(found, slow(layer, x), 1e-12)
    assert not torch.allclose(found[0], untouched[0], atol=1e-3)
    assert (len(report.replaced), len(report.skipped)) == (1, int(when == "before"))


def test_report_says_what_keeps_passes():
    for library, (make, network_of, *_) in LAYERS.items():
        layer = make()
        net = network_of(layer)
        net.register_forward_hook(double)
        reason = accelerate(layer).skipped[0].reason
        assert "pass" in reason
        assert reason.endswith(f"its network has a {type(net).__name__} with hooks"), library


def test_hooks_are_called_in_every_pass():
    for make, network_of, _, slow in LAYERS.values():
        layer, calls = make(), []
        accelerate(layer)
        network_of(layer).register_forward_hook(lambda *args: calls.append(1))  # noqa: B023
        slow(layer, torch.randn(3, 4))
        assert len(calls) == 4


def test_removed_hooks_give_the_one_pass_back(monkeypatch):
    make, network_of, _, slow = LAYERS["nflows"]
    layer = make()
    accelerate(layer)
    net = network_of(layer)
    handle = net.register_forward_hook(double)
    handle.remove()
    monkeypatch.setattr(type(net), "forward", lambda *args: pytest.fail("the inverse took a pass"))
    slow(layer, torch.randn(3, 4))


def test_global_hooks_are_called():
    make, network_of, _, slow = LAYERS["nflows"]
    layer = make()
    accelerate(layer)
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *args: calls.append(type(module)))
    try:
        slow(layer, torch.randn(3, 4))
    finally:
        handle.remove()
    assert calls.count(type(network_of(layer))) == 4


@pytest.mark.parametrize("net", [
    lambda net: net.append(nn.Tanh()),
    lambda net: net.insert(1, nn.ReLU()),
    lambda net: net.append(nn.Softsign()),
], ids=["activation at the end", "two activations", "unknown"])  # fmt: skip
def test_networks_of_zuko_that_were_built_upon(net):
    layer = randomize(MaskedAutoregressiveTransform(4, hidden_features=(8, 8)))
    net(layer.hyper)
    x = data(5, 4)
    expected = layer().inv.call_and_ladj(x)
    assert accelerate(layer).skipped
    agree(layer().inv.call_and_ladj(x), expected, 1e-12)


def test_networks_deeper_than_the_kernel():
    x = torch.randn(3, 4)
    for layer, slow in (
        (transforms.MaskedAffineAutoregressiveTransform(4, 6, num_blocks=30), LAYERS["nflows"][3]),
        (MaskedAutoregressiveTransform(4, hidden_features=(6,) * 60), LAYERS["zuko"][3]),
    ):
        expected = slow(layer, x)
        assert "more than" in accelerate(layer).skipped[0].reason
        agree(slow(layer, x), expected, 1e-5)


def test_replaced_methods_are_left():
    layer = transforms.MaskedAffineAutoregressiveTransform(4, 8)
    layer._unconstrained_scale_and_shift = lambda parameters: 1 / 0
    report = accelerate(layer)
    assert not report.replaced
    assert report.skipped[0].reason == "its _unconstrained_scale_and_shift is replaced"


def flow_of_nflows():
    return SimpleRealNVP(4, 8, num_layers=2, num_blocks_per_layer=1)


def flow_of_normflows():
    block = normflows.flows.AffineCouplingBlock(normflows.nets.MLP([2, 8, 4]))
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(4), [block])


def flow_of_zuko():
    return zuko.flows.RealNVP(4, transforms=2, hidden_features=(8,))


PLANNED = {
    "nflows": (
        flow_of_nflows,
        of_nflows.plan,
        lambda flow: flow._transform._transforms[1],
        lambda coupling: coupling.transform_net.final_layer,
        lambda flow, x: flow.log_prob(x),
    ),
    "normflows": (
        flow_of_normflows,
        of_normflows.plan,
        lambda flow: flow.flows[0].flows[1],
        lambda coupling: coupling.param_map.net[-1],
        lambda flow, x: flow.log_prob(x),
    ),
    "zuko": (
        flow_of_zuko,
        of_zuko.plan,
        lambda flow: flow.transform.transforms[1],
        lambda coupling: coupling.hyper[-1],
        lambda flow, x: flow().log_prob(x),
    ),
}


@filterwarnings
@pytest.mark.parametrize("change", [*CHANGES, own_class_of_the_layer], ids=lambda change: change.__name__)
@pytest.mark.parametrize("library", PLANNED)
def test_plans_of_changed_flows(library, change):
    make, plan, coupling_of, last_of, log_prob = PLANNED[library]
    flow, x = randomize(make(), 0.2), data(5, 4)
    agree(plan(flow).log_prob(x), log_prob(flow, x).detach(), 1e-10)
    coupling = coupling_of(flow)
    change(coupling, last_of(coupling))
    with pytest.raises(TypeError, match="flow: expected layers that FlowPlan runs"):
        plan(flow)


@pytest.mark.parametrize("library", PLANNED)
def test_plans_of_flows_with_methods_of_their_own(library):
    make, plan, *_ = PLANNED[library]
    flow = make()
    name = "forward" if library == "zuko" else "log_prob"
    kind = type(flow)
    flow.__class__ = type("Own", (kind,), {"summary": lambda self: "more methods change nothing"})
    plan(flow)
    flow.__class__ = type("Own", (kind,), {name: lambda self, x=None: 1 / 0})
    with pytest.raises(TypeError, match="got Own: it differs from"):
        plan(flow)


def test_plans_notice_hooks_when_refreshed():
    flow = flow_of_nflows()
    plan, x = of_nflows.plan(flow), torch.randn(3, 4)
    flow._transform._transforms[1].transform_net.register_forward_hook(double)
    plan.refresh()
    with pytest.raises(TypeError, match="got ResidualNet: it has hooks"):
        plan.log_prob(x)


def test_plans_of_networks_that_were_built_upon():
    of_n = flow_of_normflows()
    of_n.flows[0].flows[1].param_map.net.insert(1, nn.LeakyReLU(0.0))
    of_z = flow_of_zuko()
    of_z.transform.transforms[0].hyper.append(nn.ReLU())
    for flow, plan in ((of_n, of_normflows.plan), (of_z, of_zuko.plan)):
        with pytest.raises(TypeError, match="an activation between any two"):
            plan(flow)


def test_plan_of_a_network_without_biases():
    flow, x = randomize(zuko.flows.RealNVP(4, transforms=2, hidden_features=(8,), bias=False)), data(5, 4)
    agree(of_zuko.plan(flow).log_prob(x), flow().log_prob(x).detach(), 1e-10)
