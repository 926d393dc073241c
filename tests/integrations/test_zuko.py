"""zuko's transforms and lazy layers against ours: values, log-determinants, gradients, contexts."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from tests.integrations.parity import accelerated, agree, randomize, same_function

zuko = pytest.importorskip("zuko")

from zuko import flows, transforms  # noqa: E402
from zuko.flows.autoregressive import MaskedAutoregressiveTransform  # noqa: E402
from zuko.flows.coupling import GeneralCouplingTransform  # noqa: E402
from zuko.flows.gaussianization import ElementWiseTransform  # noqa: E402
from zuko.flows.spline import CircularRQSTransform  # noqa: E402

from genssl_fast.accelerate import accelerate  # noqa: E402
from genssl_fast.integrations import zuko as ours  # noqa: E402
from genssl_fast.integrations._fused_transforms import univariate_of  # noqa: E402

UNIVARIATE = {
    "affine": {},
    "affine of another slope": {"univariate": partial(transforms.MonotonicAffineTransform, slope=0.1)},
    "additive": {"univariate": transforms.AdditiveTransform, "shapes": [()]},
    "spline": {
        "univariate": partial(transforms.MonotonicRQSTransform, slope=1e-2, bound=2.0),
        "shapes": [(6,), (6,), (5,)],
    },
    "circular": {"univariate": CircularRQSTransform, "shapes": [(4,), (4,), (3,)]},
}


def data(*shape, scale=1.5):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def both_ways(x, c=None):
    """Values, log-determinants and inverse of a lazy layer at x."""

    def call(layer):
        transform = layer(c)
        y, log_abs_det = transform.call_and_ladj(x)
        back, log_abs_det_of_inverse = transform.inv.call_and_ladj(y.detach())
        return y, log_abs_det, back, log_abs_det_of_inverse, transform(x), transform.inv(y.detach())

    return call


@pytest.mark.parametrize("inverse", [False, True])
def test_transforms(inverse):
    x, w, h, d = data(20, 3), data(3, 6), data(20, 3, 6), data(20, 3, 5)
    pairs = [
        [module.MonotonicRQSTransform(w, h, d, bound=2.0, slope=1e-2) for module in (ours, transforms)],
        [module.MonotonicAffineTransform(w[:, 0], d[..., 0], slope=0.1) for module in (ours, transforms)],
    ]
    for mine, theirs in pairs:
        if inverse:
            mine, theirs = mine.inv, theirs.inv
        agree(mine.call_and_ladj(x), theirs.call_and_ladj(x))
        agree(mine(x), theirs(x))
        agree(mine.log_abs_det_jacobian(x, mine(x)), theirs.log_abs_det_jacobian(x, theirs(x)))


@pytest.mark.parametrize(
    "kind", [GeneralCouplingTransform, MaskedAutoregressiveTransform, ElementWiseTransform]
)
@pytest.mark.parametrize("name", UNIVARIATE)
@pytest.mark.parametrize("context", [0, 2])
def test_layers(kind, name, context):
    torch.manual_seed(0)
    has_network = context or kind is not ElementWiseTransform
    options = {"hidden_features": (9, 8)} if has_network else {}
    layer = randomize(kind(4, context, **UNIVARIATE[name], **options))
    by_passes = name == "circular" and kind is MaskedAutoregressiveTransform
    fast = accelerated(layer, left="circular" if by_passes else None)
    for batch in [(), (5,), (2, 3)]:
        x = data(*batch, 4)
        c = data(*batch[-1:], context) if context else None
        same_function(layer, fast, both_ways(x, c), 1e-9)


@pytest.mark.parametrize("options", [
    {"order": [3, 0, 4, 1, 2]},
    {"hidden_features": (3,)},
    {"hidden_features": (16, 16, 16), "activation": nn.ELU},
    {"hidden_features": (8, 8), "residual": True},
    {"hidden_features": (8, 4, 8), "residual": True, "activation": nn.Tanh},
    {"passes": 2},
    {"passes": 3, "hidden_features": (8, 8)},
    {"hidden_features": ()},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("context", [0, 2])
def test_autoregressive_networks(options, context):
    torch.manual_seed(0)
    layer = randomize(MaskedAutoregressiveTransform(5, context, **options))
    x, c = data(6, 5), data(6, context) if context else None
    same_function(layer, accelerated(layer), both_ways(x, c), 1e-9)


def test_inverse_does_not_run_the_network(monkeypatch):
    layer = accelerated(MaskedAutoregressiveTransform(5))
    monkeypatch.setattr(type(layer.hyper), "forward", lambda *args: pytest.fail("the inverse took a pass"))
    layer().inv(torch.randn(3, 5))


def test_what_keeps_passes():
    adjacency = torch.tril(torch.ones(3, 3, dtype=torch.bool))
    layers = {
        "by a graph": MaskedAutoregressiveTransform(3, adjacency=adjacency),
        "activation": MaskedAutoregressiveTransform(3, activation=partial(nn.ELU, alpha=0.5)),
    }
    x = torch.randn(4, 3)
    for reason, layer in layers.items():
        expected = layer().inv.call_and_ladj(x)
        report = accelerate(layer)
        assert len(report.replaced) == 1
        assert "takes 3 passes" in report.skipped[0].reason
        assert reason in report.skipped[0].reason
        agree(layer().inv.call_and_ladj(x), expected, 1e-5)


@pytest.mark.parametrize("kind", [flows.NSF, flows.NCSF, flows.MAF, flows.NICE, flows.RealNVP])
def test_flows(kind):
    torch.manual_seed(0)
    flow = randomize(kind(4, 2, transforms=2, hidden_features=(8, 8)), 0.2)
    x, c = data(5, 4).tanh(), data(5, 2)
    fast = accelerated(flow, left="circular" if kind is flows.NCSF else None)
    same_function(flow, fast, lambda m: [m(c).log_prob(x)])
    samples = []
    for model in (flow, fast):
        torch.manual_seed(0)
        samples.append(model(c).rsample_and_log_prob((3,)))
    agree(*reversed(samples), 1e-6)


@pytest.mark.parametrize("kind", [flows.GF, flows.SOSPF])
def test_flows_without_a_kernel(kind):
    report = accelerate(kind(3, transforms=2))
    assert not report.replaced
    assert "no kernel for its univariate transform" in {entry.reason for entry in report.skipped}


def test_report_prints_and_undoes():
    flow = flows.NSF(3, transforms=2)
    before = [type(module) for module in flow.modules()]
    x = torch.randn(4, 3)
    expected = flow().log_prob(x)
    state, text = flow.state_dict(), repr(flow)
    report = accelerate(flow)
    assert str(report).startswith("2 replaced, 0 skipped\n  replaced transform.transforms.0: MaskedAuto")
    assert flow.state_dict().keys() == state.keys()
    assert repr(flow) == text
    agree(flow().log_prob(x), expected, 1e-5)
    report.undo()
    assert [type(module) for module in flow.modules()] == before
    assert torch.equal(flow().log_prob(x), expected)


def test_bound_is_pi():
    assert univariate_of(CircularRQSTransform, [(4,)]).transform.bound == math.pi


@pytest.mark.parametrize("name", ["affine", "additive", "spline"])
@pytest.mark.parametrize("context", [0, 2])
def test_plan(name, context):
    torch.manual_seed(0)
    flow = randomize(flows.RealNVP(5, context, transforms=3, hidden_features=(9, 8), **UNIVARIATE[name]))
    flow.transform.transforms.append(
        zuko.lazy.UnconditionalTransform(transforms.PermutationTransform, torch.randperm(5), buffer=True)
    )
    x, c = data(6, 5), data(6, context) if context else None
    plan = ours.plan(flow)
    agree(plan.log_prob(x, c), flow(c).log_prob(x).detach(), 1e-10)
    agree(plan.inverse(x, c)[0], flow(c).transform.inv(x).detach(), 1e-9)
    fast = accelerated(flow, left="no kernel for this class")
    agree(ours.plan(fast).log_prob(x, c), plan.log_prob(x, c))


def test_flows_that_a_plan_cannot_run():
    other_base = flows.RealNVP(3)
    other_base.base.loc = torch.ones(3)
    unlike = [
        flows.NSF(3),
        flows.RealNVP(3, normalize=True),
        flows.RealNVP(3, activation=nn.GELU),
        flows.RealNVP(3, **UNIVARIATE["circular"]),
        other_base,
    ]
    for flow in unlike:
        with pytest.raises(TypeError, match="flow: expected layers that FlowPlan runs"):
            ours.plan(flow)


def test_degrees_follow_the_masks():
    """Another order of features, loaded into a layer that has been inverted before."""
    layer, other = (
        accelerated(MaskedAutoregressiveTransform(4)),
        MaskedAutoregressiveTransform(4, order=[3, 1, 0, 2]),
    )
    y = torch.randn(3, 4)
    layer().inv(y)
    layer.load_state_dict(other.state_dict())
    agree(layer().inv(y), other().inv(y), 1e-5)


def test_masks_that_say_more_than_degrees():
    """A connection fewer than the order allows, and what the layer keeps of its masks."""
    layer = randomize(MaskedAutoregressiveTransform(4, 2, hidden_features=(8, 8)))
    fast = accelerated(layer)
    x, c = data(5, 4), data(5, 2)
    agree(fast(c).inv.call_and_ladj(x), layer(c).inv.call_and_ladj(x), 1e-10)
    for module in (layer, fast):
        for index, entry in ((0, (3, 0)), (0, (5, 4)), (2, (7, 1)), (4, (6, 2))):
            assert module.hyper[index].mask[entry]
            module.hyper[index].mask[entry] = False
    agree(fast(c).inv.call_and_ladj(x), layer(c).inv.call_and_ladj(x), 1e-10)


def test_copies_and_what_undo_leaves():
    layer, x = MaskedAutoregressiveTransform(4), torch.randn(3, 4)
    attributes = set(vars(layer))
    report = accelerate(layer)
    expected = layer().inv(x)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        layer._replicate_for_data_parallel(),
    ):
        assert torch.equal(other().inv(x), expected)
    report.undo()
    assert set(vars(layer)) == attributes


def test_a_plan_needs_a_flow():
    with pytest.raises(TypeError, match="flow: expected zuko's Flow, got GMM"):
        ours.plan(flows.GMM(3, 2))
