"""What holds for every flow: densities, inverses, samples, derivatives, the distribution."""

import json
import math

import numpy as np
import pytest
import torch

from genssl_fast import flows, nn
from tests.flows.models import FLOWS, IMAGE_FLOWS, build, samples

SHAPES = {**dict.fromkeys(FLOWS, (5,)), **dict.fromkeys(IMAGE_FLOWS, (1, 4, 4))}
MAKERS = {**FLOWS, **IMAGE_FLOWS}


@pytest.fixture(params=SHAPES)
def named(request):
    return request.param


@pytest.fixture
def flow(named):
    return build(MAKERS[named], SHAPES[named])


def test_log_determinant_is_that_of_the_jacobian(flow):
    x = samples(3, *flow.shape)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow.transform(row[None])[0][0].flatten()))(x)
    expected = torch.linalg.slogdet(jacobian.flatten(2)).logabsdet
    torch.testing.assert_close(flow.transform(x)[1], expected, rtol=1e-9, atol=1e-9)


def test_inverse_undoes_transform(flow):
    x = samples(20, *flow.shape)
    z, log_abs_det = flow.transform(x)
    back, log_abs_det_back = flow.inverse(z)
    assert z.shape == back.shape == x.shape
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_abs_det_back, -log_abs_det, rtol=1e-8, atol=1e-8)


def test_density_is_that_of_the_noise_times_the_determinant(flow):
    x = samples(4, *flow.shape)
    z, log_abs_det = flow.transform(x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(flow.log_prob(x), normal + log_abs_det)
    nats = -flow.log_prob(x) / math.prod(flow.shape)
    torch.testing.assert_close(flow.bits_per_dim(x, 16), (nats + math.log(16)) / math.log(2))


@pytest.mark.parametrize("name", FLOWS)
def test_density_integrates_to_one(name):
    flow = build(FLOWS[name], 2, spread=0.1)
    axis = torch.linspace(-14, 14, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]).square()
    assert abs(total - 1) < 2e-3


def test_samples_have_the_density_that_comes_with_them(flow):
    x, log_prob = flow.sample_and_log_prob(6, seed=0)
    assert x.shape == (6, *flow.shape)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-7, atol=1e-7)
    assert torch.equal(flow.sample(6, seed=0), x)


def test_samples_depend_on_seed_and_number(flow):
    whole = flow.sample(6, seed=3)
    share = flow.sample(2, seed=3, first_sample=4)
    torch.testing.assert_close(share, whole[4:], rtol=1e-12, atol=1e-12)
    assert not torch.equal(flow.sample(6, seed=4), whole)
    assert not torch.equal(flow.sample(6), flow.sample(6))


def test_no_samples_and_no_data(flow):
    assert flow.sample(0, seed=0).shape == (0, *flow.shape)
    assert flow.log_prob(samples(0, *flow.shape)).shape == (0,)


def test_every_parameter_gets_a_gradient(flow):
    flow.log_prob(samples(8, *flow.shape)).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    flow.zero_grad()
    x, log_prob = flow.rsample_and_log_prob(8, seed=0)
    (log_prob + x.flatten(1).square().sum(1)).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())


def test_score_and_its_derivative(flow):
    x = samples(2, *flow.shape).requires_grad_()
    assert torch.autograd.gradcheck(flow.log_prob, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(flow.log_prob, x, fast_mode=True, atol=1e-4)
    direction = samples(2, *flow.shape, seed=5)
    _, tangent = torch.func.jvp(flow.log_prob, (x.detach(),), (direction,))
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    torch.testing.assert_close(tangent, (score * direction).flatten(1).sum(1))


def test_context(named):
    if named == "planar-sample":
        pytest.skip("as planar")
    flow = build(MAKERS[named], SHAPES[named], context_features=3)
    x, context = samples(4, *flow.shape), samples(4, 3, seed=2)
    log_prob = flow.log_prob(x, context)
    torch.testing.assert_close(flow.log_prob(x[1:], context[1:]), log_prob[1:])
    torch.testing.assert_close(flow.log_prob(x, context[0]), flow.log_prob(x, context[:1].expand(4, 3)))
    assert not torch.isclose(flow.log_prob(x, context.flip(0)), log_prob).any()
    drawn, of_drawn = flow.sample_and_log_prob(4, seed=0, context=context)
    torch.testing.assert_close(flow.log_prob(drawn, context), of_drawn, rtol=1e-7, atol=1e-7)
    with pytest.raises(ValueError, match=r"context: expected shape \[B, 3\], got None"):
        flow.log_prob(x)


def test_configuration_and_state_make_the_same_flow(flow):
    config = json.loads(json.dumps(flow.config))
    other = type(flow)(**config).double().eval()
    other.load_state_dict(flow.state_dict())
    x = samples(3, *flow.shape)
    assert torch.equal(other.log_prob(x), flow.log_prob(x))


def test_single_precision(named):
    flow = build(MAKERS[named], SHAPES[named])
    x = samples(20, *flow.shape)
    expected = flow.log_prob(x)
    actual = flow.float().log_prob(x.float())
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-3)
    assert flow.sample(2, seed=0).dtype == torch.float32


def test_trains():
    torch.manual_seed(0)
    flow = flows.NeuralSplineFlow(2, layers=4, hidden=(32, 32))
    angle = 2 * math.pi * torch.rand(2000)
    x = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(2000, 2)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean()
    assert -loss > gaussian + 0.6
    radius = flow.sample(500, seed=0).norm(dim=1)
    assert (radius - 1).abs().median() < 0.15


def test_compiles_into_one_graph():
    flow, x = build(FLOWS["realnvp"], 5, layers=1), samples(3, 5)
    compiled = torch.compile(flow.log_prob, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), flow.log_prob(x))


@pytest.mark.parametrize("name", ["realnvp-linear", "maf", "nice"])
def test_compiles_in_training(name):
    flow, x = build(FLOWS[name], 5, layers=1).train(), samples(3, 5)
    flow.log_prob(x)  # normalizes
    compiled = torch.compile(flow, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), flow.log_prob(x))


def test_a_flow_is_called_as_its_density(flow):
    x = samples(3, *flow.shape)
    assert torch.equal(flow(x), flow.log_prob(x))


def test_names_data_and_contexts_that_do_not_fit(named):
    if named == "planar-sample":
        pytest.skip("as planar")
    flow = build(MAKERS[named], SHAPES[named], context_features=3)
    x, context = samples(4, *flow.shape), samples(4, 3)
    with pytest.raises(TypeError, match=r"^x: expected the dtype of the parameters"):
        flow.log_prob(x.float(), context)
    with pytest.raises(TypeError, match=r"^context: expected the dtype of the parameters"):
        flow.log_prob(x, context.float())
    with pytest.raises(ValueError, match=r"^context: expected shape"):
        flow.log_prob(x, context[:1])


def test_registry_builds_every_flow():
    for name, kind in flows.FLOWS.items():
        shape = (1, 4, 4) if name == "glow" else (3,)
        assert kind(shape).sample(2, seed=0).shape == (2, *shape)


def test_any_layers_make_a_flow():
    flow = flows.Flow((2, 2), [nn.ActNorm(4), nn.Inverse(nn.InvertibleLinear(4))]).double()
    x = samples(5, 2, 2)
    torch.testing.assert_close(flow.inverse(flow.transform(x)[0])[0], x)
    assert flow.config is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flows.RealNVP(1), "shape: expected at least two entries to couple"),
        (lambda: flows.RealNVP(0), "shape: expected sizes of at least 1"),
        (lambda: flows.RealNVP(3, layers=0), "layers: expected at least 1, got 0"),
        (lambda: flows.RealNVP(3, masks="stripes"), "masks: expected one of 'checkerboard'"),
        (lambda: flows.NeuralSplineFlow(3, autoregressive=True, dropout=0.5), "dropout: expected 0"),
        (lambda: flows.MAF(3, order="sorted"), "order: expected one of 'reversed', 'random'"),
        (lambda: flows.MAF(3, layers=0).sample(1), "layers: expected at least 1, got 0"),
        (
            lambda: flows.PlanarFlow(3, closed_form="both"),
            "closed_form: expected one of 'log_prob', 'sample'",
        ),
        (lambda: flows.Glow((1, 6, 6)), r"shape: expected \(C, H, W\) with H and W divisible by 4"),
        (lambda: flows.Glow(6), r"shape: expected \(C, H, W\)"),
        (lambda: flows.NICE(3).log_prob(torch.zeros(2, 4)), r"x: expected shape \[B, \*\[3\]\]"),
        (lambda: flows.NICE(3).inverse(torch.zeros(2, 4)), r"z: expected shape \[B, \*\[3\]\]"),
        (lambda: flows.NICE(3).log_prob(torch.zeros(2, 3), torch.zeros(2, 1)), "context: expected None"),
        (lambda: flows.NeuralSplineFlow(3, bins=65), "bins: expected 1 to 64, got 65"),
        (lambda: flows.NeuralSplineFlow(3, bins=0), "bins: expected 1 to 64, got 0"),
        (lambda: flows.NeuralSplineFlow(3, autoregressive=True, masks="stripes"), "masks: expected one of"),
        (lambda: flows.NeuralSplineFlow(3, order="sorted"), "order: expected one of"),
        (lambda: nn.GlowStep([]), "layers: expected normalization, 1×1 convolution and coupling, got 0"),
        (lambda: flows.Flow(2, []), "layers: expected at least one layer, got 0"),
        (
            lambda: flows.Flow(2, [nn.ActNorm(2)], base=flows.StandardNormal((3,))),
            r"base: expected a density of shape \[2\], got one of \[3\]",
        ),
        (lambda: flows.NICE(3).sample(1, first_sample=1 << 62), "first_sample: expected .*below 2"),
        (lambda: flows.NICE(3).rsample(1, first_sample=1 << 64), "first_sample: expected .*below 2"),
        (lambda: flows.NICE(3).sample(-1), "n: expected at least 0, got -1"),
        (lambda: flows.NICE(3).bits_per_dim(torch.zeros(2, 3), 0), "num_levels: expected at least 1, got 0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flows.RealNVP(np.int64(2)), "shape: expected an int or a sequence of ints, got"),
        (lambda: flows.Glow(np.array([1, 8, 8])), "shape: expected an int or a sequence of ints, got"),
        (lambda: flows.RealNVP(2, layers=2.5), "layers: expected an integer, got 2.5"),
        (lambda: flows.NeuralSplineFlow(2, bins="8"), "bins: expected an integer, got '8'"),
        (lambda: flows.NICE(2).log_prob([[0.0, 0.0]]), "x: expected a tensor, got list"),
        (lambda: flows.NICE(2).eval().log_prob(np.zeros((1, 2))), "x: expected a tensor, got ndarray"),
        (
            lambda: flows.NICE(2, context_features=1).sample(3, context=[1.0]),
            "context: expected a tensor, got list",
        ),
        (
            lambda: flows.MAF(2, context_features=1).log_prob(torch.zeros(1, 2), [1.0]),
            "context: expected a tensor, got list",
        ),
        (lambda: flows.RealNVP(2, hidden=64), "hidden: expected a sequence of widths"),
        (lambda: flows.MAF(2, hidden=64), "hidden: expected a sequence of widths"),
        (lambda: flows.RealNVP(2).sample(2.5), "n: expected an integer, got 2.5"),
        (lambda: flows.Glow((1, 8, 8), hidden=4).rsample(2.5), "n: expected an integer, got 2.5"),
    ],
)
def test_bad_kinds(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_glow_bounds_the_scales_of_steps_and_priors():
    bounds = {"clamp": "atan", "limit": 1.5, "prior_clamp": "zuko", "prior_limit": 3.0}
    flow = flows.Glow((1, 8, 8), scales=2, steps=1, hidden=4, **bounds)
    transforms = [layer.transform for layer in flow.modules() if isinstance(layer, nn.AffineCoupling)]
    assert [(t.clamp, t.limit) for t in transforms] == [("atan", 1.5), ("zuko", 3.0), ("atan", 1.5)]
