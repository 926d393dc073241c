"""nflows' functions and layers against ours: values, log-determinants, gradients, state dicts."""

import pytest
import torch
from torch.nn import functional

from tests.integrations.parity import accelerated, agree, randomize, same_function

nflows = pytest.importorskip("nflows")

from nflows import distributions, flows, transforms  # noqa: E402
from nflows.nn.nets import ConvResidualNet, ResidualNet  # noqa: E402
from nflows.transforms import made, splines  # noqa: E402
from nflows.transforms.base import InputOutsideDomain  # noqa: E402

from genssl_fast.accelerate import accelerate  # noqa: E402
from genssl_fast.integrations import nflows as ours  # noqa: E402

MASK = [1, -1, 1, 1, -1]
SPLINE = {"num_bins": 5, "tails": "linear", "tail_bound": 2.0}


def data(*shape, scale=1.5):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def residual_net(features_in, features_out, **options):
    return ResidualNet(features_in, features_out, hidden_features=8, **options)


def convolutional_net(features_in, features_out):
    return ConvResidualNet(features_in, features_out, hidden_channels=4, num_blocks=1)


COUPLINGS = {
    "affine": (transforms.AffineCouplingTransform, {}),
    "additive": (transforms.AdditiveCouplingTransform, {}),
    "spline": (transforms.PiecewiseRationalQuadraticCouplingTransform, SPLINE),
    "spline and unconditional": (
        transforms.PiecewiseRationalQuadraticCouplingTransform,
        {**SPLINE, "apply_unconditional_transform": True},
    ),
}
AUTOREGRESSIVE = {
    "affine": (transforms.MaskedAffineAutoregressiveTransform, {}),
    "spline": (transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform, SPLINE),
}


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [4, 16])
def test_unconstrained_spline(inverse, bins):
    x, w, h = data(200, 3), data(200, 3, bins), data(200, 3, bins)
    d = data(200, 3, bins - 1)
    x[:3, 0] = torch.tensor([-2.0, 2.0, 9.0])
    agree(
        ours.unconstrained_rational_quadratic_spline(x, w, h, d, inverse, tail_bound=2.0),
        splines.unconstrained_rational_quadratic_spline(x, w, h, d, inverse, tail_bound=2.0),
    )


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_without_tails(inverse):
    x, w, h, d = data(50, 2).sigmoid(), data(50, 2, 6), data(50, 2, 6), data(50, 2, 7)
    agree(
        ours.rational_quadratic_spline(x, w, h, d, inverse),
        splines.rational_quadratic_spline(x, w, h, d, inverse),
    )
    with pytest.raises(InputOutsideDomain):
        ours.rational_quadratic_spline(x + 1, w, h, d, inverse)
    box = dict(left=-1.0, right=2.0, bottom=0.0, top=4.0)
    agree(
        ours.rational_quadratic_spline(x, w, h, d, **box),
        splines.rational_quadratic_spline(x, w, h, d, **box),
    )


def test_spline_where_theirs_fails():
    """Parameters of N(0, 30²) in fp32: theirs asserts or gives NaN."""
    generator = torch.Generator().manual_seed(0)
    w, h, d = (30 * torch.randn(2000, 8 - (i == 2), generator=generator) for i in range(3))
    y = 5 * torch.randn(2000, generator=generator)
    for output in ours.unconstrained_rational_quadratic_spline(y, w, h, d, inverse=True, tail_bound=5.0):
        assert output.isfinite().all()


@pytest.mark.parametrize("name", COUPLINGS)
@pytest.mark.parametrize("inverse", [False, True])
def test_coupling(name, inverse):
    kind, options = COUPLINGS[name]
    layer = randomize(kind(MASK, residual_net, **options))
    x = data(7, 5)
    same_function(layer, accelerated(layer), lambda m: m.inverse(x) if inverse else m(x))


@pytest.mark.parametrize("name", ["affine", "additive", "spline"])
def test_coupling_of_images(name):
    kind, options = COUPLINGS[name]
    layer = randomize(kind(MASK, convolutional_net, **options), 0.3)
    x = data(2, 5, 3, 4)
    same_function(layer, accelerated(layer), lambda m: m(x))
    same_function(layer, accelerated(layer), lambda m: m.inverse(x))


@pytest.mark.parametrize("name", COUPLINGS)
def test_coupling_with_context(name):
    kind, options = COUPLINGS[name]
    layer = randomize(kind(MASK, lambda i, o: residual_net(i, o, context_features=2), **options))
    x, context = data(7, 5), data(7, 2)
    same_function(layer, accelerated(layer), lambda m: m(x, context))


def test_coupling_without_tails():
    kind = transforms.PiecewiseRationalQuadraticCouplingTransform
    layer = randomize(kind(MASK, residual_net, num_bins=4, apply_unconditional_transform=True))
    x = data(7, 5).sigmoid()
    same_function(layer, accelerated(layer), lambda m: m(x))


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
@pytest.mark.parametrize("options", [
    {},
    {"use_residual_blocks": False},
    {"use_residual_blocks": False, "random_mask": True},
    {"num_blocks": 0},
    {"activation": torch.tanh, "num_blocks": 1},
    {"activation": functional.elu, "use_residual_blocks": False},
], ids=["residual", "plain", "random mask", "no blocks", "tanh", "elu"])  # fmt: skip
def test_autoregressive(name, options):
    kind, own = AUTOREGRESSIVE[name]
    layer = randomize(kind(features=5, hidden_features=11, **own, **options))
    x = data(6, 5)
    fast = accelerated(layer)
    same_function(layer, fast, lambda m: m(x))
    same_function(layer, fast, lambda m: m.inverse(x), 1e-10)
    agree(fast.inverse(fast(x)[0])[0], x, 1e-9)


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
@pytest.mark.parametrize("residual", [True, False])
def test_autoregressive_with_context(name, residual):
    kind, own = AUTOREGRESSIVE[name]
    options = dict(features=4, hidden_features=9, context_features=3, use_residual_blocks=residual)
    layer = randomize(kind(**options, **own))
    x, context = data(6, 4), data(6, 3)
    fast = accelerated(layer)
    same_function(layer, fast, lambda m: m(x, context))
    same_function(layer, fast, lambda m: m.inverse(x, context), 1e-10)
    agree(fast.inverse(x), layer.inverse(x), 1e-10)


def test_autoregressive_without_tails():
    kind = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    layer = randomize(kind(features=4, hidden_features=9, num_bins=5))
    x, fast = data(6, 4).sigmoid(), accelerated(layer)
    same_function(layer, fast, lambda m: m(x))
    same_function(layer, fast, lambda m: m.inverse(x), 1e-10)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kind", [
    lambda: transforms.PiecewiseRationalQuadraticCouplingTransform(MASK, residual_net),
    lambda: transforms.PiecewiseRationalQuadraticCDF(5),
    lambda: transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(5, 9, 4),
], ids=["coupling", "CDF", "autoregressive"])  # fmt: skip
def test_values_outside_the_domain_raise_as_theirs(kind, inverse):
    layer = randomize(kind())
    for x in (1 + data(7, 5).sigmoid(), -data(7, 5).sigmoid()):
        for m in (layer, accelerated(layer)):
            with pytest.raises(InputOutsideDomain):
                m.inverse(x) if inverse else m(x)


def test_tails_that_the_library_does_not_have_are_left():
    layer = transforms.PiecewiseRationalQuadraticCouplingTransform(MASK, residual_net, tails="circular")
    assert accelerate(layer).skipped[0].reason == "no kernel for tails 'circular'"
    with pytest.raises(RuntimeError, match="circular tails are not implemented"):
        layer(torch.randn(3, 5))


@pytest.mark.parametrize("features", [2, 16, 64, 256, 784])
def test_autoregressive_inverse_of_many_features(features):
    torch.manual_seed(0)
    layer = transforms.MaskedAffineAutoregressiveTransform(features, 80, num_blocks=1).double()
    x = data(3, features)
    agree(accelerated(layer).inverse(x), layer.inverse(x), 1e-10)


def test_autoregressive_inverse_does_not_run_the_network(monkeypatch):
    layer = accelerated(transforms.MaskedAffineAutoregressiveTransform(5, 8))
    monkeypatch.setattr(made.MADE, "forward", lambda *args: pytest.fail("the inverse took a pass"))
    layer.inverse(torch.randn(3, 5))


def test_dropout_keeps_passes():
    layer = accelerated(transforms.MaskedAffineAutoregressiveTransform(3, 8, dropout_probability=0.5)).train()
    x = torch.randn(4, 3)
    assert not torch.equal(layer.inverse(x)[0], layer.eval().inverse(x)[0])


def test_drop_in_classes_take_the_same_arguments_and_state():
    classes = {name: getattr(ours, name) for name in ours.__all__ if isinstance(getattr(ours, name), type)}
    assert len(classes) == len(ours.REPLACEMENTS)
    for name, kind in classes.items():
        assert issubclass(kind, getattr(transforms, name))
    theirs = randomize(transforms.MaskedAffineAutoregressiveTransform(4, 8))
    mine = ours.MaskedAffineAutoregressiveTransform(4, 8).double().eval()
    mine.load_state_dict(theirs.state_dict())
    x = data(5, 4)
    agree(mine.inverse(x), theirs.inverse(x), 1e-10)


def test_whole_flows():
    x = data(9, 4)
    networks = dict(features=4, hidden_features=8, num_layers=3, num_blocks_per_layer=1)
    for flow in (flows.SimpleRealNVP(**networks), flows.MaskedAutoregressiveFlow(**networks)):
        fast = accelerated(randomize(flow))
        same_function(flow, fast, lambda m: [m.log_prob(x)])
        samples = []
        for model in (flow.float(), fast.float()):  # nflows draws its noise in fp32
            torch.manual_seed(0)
            samples.append(model.sample_and_log_prob(6))
        agree(*reversed(samples), 1e-3)


def test_spline_flow_trains():
    torch.manual_seed(0)
    layers = []
    for _ in range(2):
        layers.append(transforms.ReversePermutation(4))
        layers.append(
            transforms.PiecewiseRationalQuadraticCouplingTransform([1, 1, 0, 0], residual_net, **SPLINE)
        )
    flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([4]))
    fast = accelerated(flow).train()
    optimizer = torch.optim.Adam(fast.parameters(), lr=1e-2)
    x = 0.3 * torch.randn(256, 4) + 1.0
    losses = []
    for _ in range(30):
        loss = -fast.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1.0


@pytest.mark.parametrize("name", COUPLINGS)
def test_autocast_of_couplings(name):
    """Parameters in bf16, as an autocast network gives them."""
    kind, options = COUPLINGS[name]
    check_autocast(kind(MASK, residual_net, **options), torch.randn(6, 5))


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_autocast_of_autoregressive_layers(name):
    kind, options = AUTOREGRESSIVE[name]
    layer = kind(features=5, hidden_features=8, context_features=2, **options)
    check_autocast(layer, torch.randn(6, 5), torch.randn(6, 2))


def check_autocast(layer, *given):
    fast = accelerated(layer)
    for direction in ("forward", "inverse"):
        expected = getattr(layer, direction)(*given)
        with torch.autocast("cpu", torch.bfloat16):
            y, log_abs_det = getattr(fast, direction)(*given)
        assert y.dtype == log_abs_det.dtype == torch.float32
        agree((y, log_abs_det), expected, 0.1)


def planned_flow(**options):
    """Every layer that a plan takes."""
    torch.manual_seed(0)
    spline = transforms.PiecewiseRationalQuadraticCouplingTransform
    layers = [
        transforms.AffineCouplingTransform(MASK, residual_net),
        transforms.RandomPermutation(5),
        transforms.LULinear(5, identity_init=False),
        spline(
            MASK, lambda i, o: residual_net(i, o, activation=torch.tanh, num_blocks=1), **SPLINE, **options
        ),
        transforms.ActNorm(5),
        transforms.AdditiveCouplingTransform([-m for m in MASK], residual_net),
        transforms.BatchNorm(5),
    ]
    return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([5]))


def test_plan():
    flow = randomize(planned_flow(), 0.3)
    flow._transform._transforms[-1].running_var.fill_(2.0)
    x = data(9, 5)
    plan = ours.plan(flow)
    for _ in range(2):
        agree(plan.log_prob(x), flow.log_prob(x).detach(), 1e-10)
        agree(plan.transform(x)[0], flow.transform_to_noise(x).detach(), 1e-10)
        agree(plan.inverse(plan.transform(x)[0])[0], x, 1e-8)
        with torch.no_grad():  # the plan notices
            flow._transform._transforms[3].transform_net.final_layer.weight.mul_(1.5)
    accelerated(flow, left="no kernel for this class")
    agree(ours.plan(flow).log_prob(x), plan.log_prob(x))


def test_flows_that_a_plan_cannot_run():
    whole = planned_flow(apply_unconditional_transform=True)
    context = flows.Flow(
        transforms.AffineCouplingTransform(MASK, lambda i, o: residual_net(i, o, context_features=2)),
        distributions.StandardNormal([5]),
    )
    other = flows.Flow(transforms.Sigmoid(), distributions.StandardNormal([5]))
    noise = flows.Flow(planned_flow()._transform, distributions.DiagonalNormal([5]))
    for flow in (whole, context, other, noise):
        with pytest.raises(TypeError, match="flow: expected layers that FlowPlan runs"):
            ours.plan(flow)


def test_a_plan_needs_a_flow():
    with pytest.raises(TypeError, match="flow: expected nflows's Flow, got Linear"):
        ours.plan(torch.nn.Linear(2, 2))
