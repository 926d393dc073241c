"""normflows' functions and layers against ours: values, log-determinants, gradients, state dicts."""

import math

import pytest
import torch

from tests.integrations.parity import accelerated, agree, randomize, same_function

normflows = pytest.importorskip("normflows")

from normflows import flows, nets  # noqa: E402
from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive  # noqa: E402
from normflows.flows.neural_spline.autoregressive import (  # noqa: E402
    MaskedPiecewiseRationalQuadraticAutoregressive,
)
from normflows.utils import splines  # noqa: E402

from genssl_fast.accelerate import accelerate  # noqa: E402
from genssl_fast.integrations import normflows as ours  # noqa: E402


def data(*shape, scale=1.5):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", ["linear", "circular", ["circular", "linear", "linear"]], ids=str)
@pytest.mark.parametrize(
    "bound", [2.0, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)], ids=["one", "each"]
)
def test_unconstrained_spline(inverse, tails, bound):
    bins = 6
    slopes = {"linear": bins - 1, "circular": bins}.get(str(tails), bins + 1)
    x, w, h, d = data(60, 3), data(60, 3, bins), data(60, 3, bins), data(60, 3, slopes)
    if isinstance(tails, list):  # theirs gives zeros outside
        x = 0.9 * x.tanh()
    options = dict(inverse=inverse, tails=tails, tail_bound=bound)
    agree(
        ours.unconstrained_rational_quadratic_spline(x, w, h, d, **options),
        splines.unconstrained_rational_quadratic_spline(x, w, h, d, **options),
    )


def test_unknown_tails():
    x, w, d = data(5, 2), data(5, 2, 4), data(5, 2, 5)
    with pytest.raises(ValueError, match="tails: expected 'linear' or 'circular' for each of 2 features"):
        ours.unconstrained_rational_quadratic_spline(x, w, w, d, tails=["linear", "cubic"])


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_without_tails(inverse):
    x, w, h, d = data(50, 2).sigmoid(), data(50, 2, 6), data(50, 2, 6), data(50, 2, 7)
    agree(
        ours.rational_quadratic_spline(x, w, h, d, inverse),
        splines.rational_quadratic_spline(x, w, h, d, inverse),
    )


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv", None])
@pytest.mark.parametrize("inverse", [False, True])
def test_affine_coupling(scale_map, inverse):
    features = 3 if scale_map is None else 6
    options = {"scale": False} if scale_map is None else {"scale_map": scale_map}
    block = randomize(flows.AffineCouplingBlock(nets.MLP([3, 8, features]), **options))
    z = data(5, 6)
    same_function(block, accelerated(block), lambda m: m.inverse(z) if inverse else m(z))


@pytest.mark.parametrize("scale_map", ["sigmoid", "sigmoid_inv"])
@pytest.mark.parametrize("direction", ["__call__", "inverse"])
def test_log_determinant_where_theirs_is_infinite(scale_map, direction):
    """A scale of e^-198 in fp32, and as it should be in fp64."""
    block = flows.AffineCouplingBlock(nets.MLP([1, 2]), scale_map=scale_map)
    torch.nn.init.zeros_(block.flows[1].param_map.net[0].weight)
    block.flows[1].param_map.net[0].bias.data = torch.tensor([0.5, -200.0])
    z = torch.ones(1, 2)
    assert getattr(block, direction)(z)[1].isinf()
    found = getattr(accelerated(block), direction)(z)[1]
    agree(found, getattr(block.double(), direction)(z.double())[1], 1e-6)


@pytest.mark.parametrize("options", [
    {},
    {"scale_map": "exp", "use_lu": False},
    {"split_mode": "checkerboard"},
    {"split_mode": "channel_inv", "scale": False},
], ids=str)  # fmt: skip
def test_glow_block(options):
    block = randomize(flows.GlowBlock(4, 8, **options), 0.2)
    block.flows[-1].data_dep_init_done = torch.tensor(1.0)
    z = data(2, 4, 4, 4)
    fast = accelerated(block, left="no kernel for this class")
    same_function(block, fast, lambda m: m(z))
    same_function(block, fast, lambda m: m.inverse(z))


@pytest.mark.parametrize("absent", [None, "s", "t"])
def test_masked_affine_flow(absent):
    networks = {name: nets.MLP([5, 8, 5]) for name in ("s", "t") if name != absent}
    layer = randomize(flows.MaskedAffineFlow(torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]), **networks))
    z = data(7, 5)
    same_function(layer, accelerated(layer), lambda m: m(z))
    same_function(layer, accelerated(layer), lambda m: m.inverse(z))


@pytest.mark.parametrize("mask", [[0.5, 1.0], [1.0, 1.0]])
def test_masks_without_a_kernel(mask):
    report = accelerate(flows.MaskedAffineFlow(torch.tensor(mask), nets.MLP([2, 2])))
    assert not report.replaced
    assert "mask" in report.skipped[0].reason


@pytest.mark.parametrize("context", [None, 3])
def test_coupled_spline(context):
    layer = randomize(flows.CoupledRationalQuadraticSpline(5, 1, 8, num_context_channels=context))
    given = () if context is None else (data(7, context),)
    z = data(7, 5)
    same_function(layer, accelerated(layer), lambda m: m(z, *given))
    same_function(layer, accelerated(layer), lambda m: m.inverse(z, *given))


def test_circular_coupled_spline():
    bounds = torch.tensor([5.0, math.pi, 4.0, 3.0, math.pi], dtype=torch.float64)
    layer = randomize(flows.CircularCoupledRationalQuadraticSpline(5, 1, 8, [1, 4, 2], tail_bound=bounds))
    z = data(7, 5).tanh()
    same_function(layer, accelerated(layer), lambda m: m(z))
    same_function(layer, accelerated(layer), lambda m: m.inverse(z))


@pytest.mark.parametrize("options", [{}, {"permute_mask": True}], ids=str)
def test_autoregressive_spline(options):
    torch.manual_seed(0)
    layer = randomize(flows.AutoregressiveRationalQuadraticSpline(5, 1, 8, **options))
    z = data(6, 5)
    fast = accelerated(layer)
    same_function(layer, fast, lambda m: m.inverse(z))
    same_function(layer, fast, lambda m: m(z), 1e-10)


@pytest.mark.parametrize("kind", [MaskedAffineAutoregressive, MaskedPiecewiseRationalQuadraticAutoregressive])
@pytest.mark.parametrize("options", [
    {},
    {"num_blocks": 0},
    {"use_residual_blocks": False},
    {"use_residual_blocks": False, "random_mask": True},
    {"num_blocks": 0, "context_features": 2},
    {"context_features": 2},
    {"num_blocks": 1, "context_features": 2, "activation": torch.tanh},
], ids=[
    "residual", "no blocks", "plain", "random mask", "no blocks, context", "context", "tanh, context",
])  # fmt: skip
def test_autoregressive(kind, options):
    torch.manual_seed(0)
    tails = {} if kind is MaskedAffineAutoregressive else {"tails": "linear", "num_bins": 4}
    layer = randomize(kind(features=5, hidden_features=9, **options, **tails))
    z = data(6, 5)
    context = data(6, 2) if "context_features" in options else None
    fast = accelerated(layer)
    same_function(layer, fast, lambda m: m(z, context))
    same_function(layer, fast, lambda m: m.inverse(z, context), 1e-10)
    agree(fast.inverse(fast(z, context)[0], context)[0], z, 1e-9)


def test_gated_context_takes_one_pass(monkeypatch):
    layer = accelerated(MaskedAffineAutoregressive(3, 8, context_features=2))
    monkeypatch.setattr(
        type(layer.autoregressive_net), "forward", lambda *args: pytest.fail("the inverse took a pass")
    )
    layer.inverse(torch.randn(4, 3), torch.randn(4, 2))


def test_lists_of_tails_keep_passes():
    circular = randomize(flows.CircularAutoregressiveRationalQuadraticSpline(3, 1, 8, [1], tail_bound=2.0))
    z = data(4, 3).tanh()
    expected = circular(z)
    report = accelerate(circular)
    assert "differ in tails" in report.skipped[0].reason
    agree(circular(z), expected)


def test_whole_model():
    torch.manual_seed(0)
    layers = []
    for _ in range(2):
        layers += [flows.AutoregressiveRationalQuadraticSpline(4, 1, 8), flows.LULinearPermute(4)]
    model = randomize(normflows.NormalizingFlow(normflows.distributions.DiagGaussian(4), layers))
    x = data(6, 4)
    expected = model.log_prob(x)
    torch.manual_seed(0)
    samples = model.sample(5)
    report = accelerate(model)
    assert [entry.replacement for entry in report.replaced] == 2 * [
        ours.MaskedPiecewiseRationalQuadraticAutoregressive
    ]
    agree(model.log_prob(x), expected)
    torch.manual_seed(0)
    agree(model.sample(5), samples, 1e-9)


def test_drop_in_classes_load_state():
    theirs = randomize(MaskedAffineAutoregressive(4, 8))
    mine = ours.MaskedAffineAutoregressive(4, 8).double().eval()
    mine.load_state_dict(theirs.state_dict())
    agree(mine.inverse(data(5, 4)), theirs.inverse(data(5, 4)), 1e-10)


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv", None])
@pytest.mark.parametrize("split_mode", ["channel", "channel_inv"])
def test_plan(scale_map, split_mode):
    torch.manual_seed(0)
    given, moved = (3, 2) if split_mode == "channel" else (2, 3)
    scale = {"scale": False} if scale_map is None else {"scale_map": scale_map}
    layers = []
    for leaky in (0.0, 0.01):
        network = nets.MLP([given, 8, 8, moved * (1 if scale_map is None else 2)], leaky=leaky)
        layers += [flows.AffineCouplingBlock(network, split_mode=split_mode, **scale), flows.Permute(5)]
    layers += [flows.Permute(5, mode="swap"), flows.LULinearPermute(5), flows.ActNorm(5)]
    model = randomize(normflows.NormalizingFlow(normflows.distributions.DiagGaussian(5), layers), 0.3)
    model.flows[-1].data_dep_init_done = torch.tensor(1.0)
    x = data(6, 5)
    plan = ours.plan(model)
    agree(plan.log_prob(x), model.log_prob(x).detach(), 1e-10)
    noise = plan.transform(x)[0]
    agree(plan.inverse(noise)[0], x, 1e-8)
    fast = accelerated(model, left="no kernel for this class")
    agree(ours.plan(fast).log_prob(x), plan.log_prob(x))


def test_models_that_a_plan_cannot_run():
    gaussian = normflows.distributions.DiagGaussian(4)
    mlp = nets.MLP([2, 8, 4], output_fn="tanh")
    layers = [
        flows.ActNorm(4),
        flows.AffineCouplingBlock(mlp),
        flows.AffineCouplingBlock(nets.MLP([4, 8, 4]), split_mode="checkerboard"),
        flows.CoupledRationalQuadraticSpline(4, 1, 8),
    ]
    models = [normflows.NormalizingFlow(gaussian, [layer]) for layer in layers]
    models.append(normflows.NormalizingFlow(normflows.distributions.DiagGaussian((2, 2)), layers[:1]))
    for model in models:
        with pytest.raises(TypeError, match="flow: expected layers that FlowPlan runs"):
            ours.plan(model)


def test_a_plan_needs_a_flow():
    with pytest.raises(TypeError, match="model: expected normflows's NormalizingFlow, got Linear"):
        ours.plan(torch.nn.Linear(2, 2))
