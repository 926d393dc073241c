"""Derivatives across modes: autocast, inference, fake tensors, duals that meet compiled code."""

from collections import namedtuple

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import genssl_fast
from genssl_fast._autograd import REENTRANT, rules_by_autograd
from genssl_fast.ops import score
from tests.battery import assert_refused


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = genssl_fast.nn.FilmMLP(2, hidden=8, blocks=2, num_classes=3)
    torch.nn.init.normal_(network.w_out)
    return network


@pytest.fixture
def no_kept_frequencies():
    score._kept_frequencies.cache_clear()
    yield
    score._kept_frequencies.cache_clear()


def test_rules_of_a_reference_match_its_derivatives():
    def reference(x, w, power):
        return torch.tanh(x * w) + x**power, (w * x).sum(-1)

    Arguments = namedtuple("Arguments", "x w power")
    x, w, u, v = torch.randn(4, 3, 5, dtype=torch.float64).unbind(0)
    rules = rules_by_autograd(reference)
    outputs, pullback = torch.func.vjp(lambda x, w: reference(x, w, 3), x, w)
    gradients = rules["backward"](Arguments(x, w, 3), None, outputs)
    torch.testing.assert_close((gradients["x"], gradients["w"]), pullback(outputs))
    for tangents in ((u, v), (u, None), (None, v)):
        given = tuple(torch.zeros_like(x) if t is None else t for t in tangents)
        expected = torch.func.jvp(lambda x, w: reference(x, w, 3), (x, w), given)[1]
        found = rules["jvp"](Arguments(x, w, 3), None, Arguments(*tangents, None))
        torch.testing.assert_close(found, expected)


def test_autocast_leaves_derivatives_alone(network):
    x, t = torch.randn(5, 2), torch.rand(5)

    def derivatives(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            tangents = torch.func.jvp(network, (x, t), (x.cos(), torch.ones_like(t)))
            return *tangents, *torch.autograd.grad(network(x, t).sum(), list(network.parameters())[:9])

    for found, expected in zip(derivatives(True), derivatives(False)):
        assert torch.equal(found, expected)


def test_first_call_in_inference_mode_then_training(network, no_kept_frequencies):
    x = torch.randn(3, 2)
    with torch.inference_mode():
        network(x, 0.5)
        table = genssl_fast.CoefficientTable.from_rows([dict(output=1.0)])
    y, _ = genssl_fast.sampler_step(x, network(x, 0.5), table, 0)
    y.sum().backward()


def test_first_call_on_fake_tensors_then_real_ones(network, no_kept_frequencies):
    with FakeTensorMode():
        fake = genssl_fast.nn.FilmMLP(2, hidden=8)
        fake(torch.empty(3, 2), torch.empty(3))
    network(torch.randn(3, 2), 0.5).sum().backward()


def test_first_call_under_a_transform_keeps_an_ordinary_tensor(network, no_kept_frequencies):
    torch.func.grad(lambda x: network(x, 0.5).sum())(torch.randn(3, 2))
    kept = score._kept_frequencies(8, "dit", 10_000.0, torch.device("cpu"))
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)


def test_dual_numbers_pass_through_compiled_code(network):
    x = torch.randn(3, 2)
    expected = torch.func.jvp(lambda v: network(v, 0.5), (x,), (x.cos(),))[1]
    torch._dynamo.reset()
    compiled = torch.compile(lambda v: network(v, 0.5), backend="aot_eager")
    with forward_ad.dual_level(), torch.no_grad():
        tangent = forward_ad.unpack_dual(compiled(forward_ad.make_dual(x, x.cos()))).tangent
    torch.testing.assert_close(tangent, expected)


def test_compiled_gradient_of_a_tangent(network):
    x, t = torch.randn(3, 2), torch.rand(3)

    def tangent_norm(x):
        return torch.func.jvp(network, (x, t), (torch.ones_like(x), torch.ones_like(t)))[1].square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(tangent_norm), backend="aot_eager", fullgraph=True)
    if not REENTRANT:
        return assert_refused(compiled, x)
    torch.testing.assert_close(compiled(x), torch.func.grad(tangent_norm)(x))


@pytest.mark.parametrize(
    "second",
    [lambda f, x: torch.func.jvp(torch.func.grad(f), (x,), (x,)), lambda f, x: torch.func.hessian(f)(x)],
    ids=["jvp", "hessian"],
)
def test_compiled_forward_over_reverse_says_what_to_do(second):
    x = torch.randn(2, 3)

    def energy(x):
        return genssl_fast.affine_coupling(x, x, x)[0].square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: second(energy, x), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"nest reverse modes instead, as jacrev\(grad\(f\)\)"):
        compiled(x)
    torch._dynamo.reset()
    advised = torch.compile(torch.func.jacrev(torch.func.grad(energy)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(advised(x), torch.func.hessian(energy)(x))


def test_vmap_over_nothing():
    degrees = genssl_fast.made_degrees(3, [4])
    sizes = ((4, 3), (6, 4), (4,), (6,))
    transform = genssl_fast.AffineTransform(layout="interleaved")

    def inverse(x, *weights):
        network = genssl_fast.MADEWeights(weights[:2], weights[2:])
        return genssl_fast.made_inverse(x, network, degrees, transform=transform)

    x, parameters = torch.empty(0, 2, 3), torch.empty(0, 2, 3, 11)
    weights = [torch.empty(0, *size) for size in sizes]
    for results in (
        torch.vmap(genssl_fast.affine_coupling)(x, x, x),
        torch.vmap(genssl_fast.affine_coupling, in_dims=(1, None, None))(
            torch.empty(2, 0, 3), torch.zeros(2, 3), torch.zeros(2, 3)
        ),
        torch.vmap(genssl_fast.rational_quadratic_spline)(x, parameters),
        torch.vmap(inverse)(x, *weights),
    ):
        assert [result.shape for result in results] == [(0, 2, 3), (0, 2)]
    gradient = torch.func.grad(lambda x: genssl_fast.affine_coupling(x, x, x)[0].sum())
    assert torch.vmap(gradient)(x).shape == (0, 2, 3)


def test_linearize_with_labels(network):
    x, labels = torch.randn(3, 2), torch.tensor([0, 2, 1])
    _, linear = torch.func.linearize(lambda v: network(v, 0.5, labels), x)
    expected = torch.func.jvp(lambda v: network(v, 0.5, labels), (x,), (x.cos(),))[1]
    torch.testing.assert_close(linear(x.cos()), expected)


def test_derivatives_by_frequencies_are_refused():
    t, frequencies = torch.rand(3), torch.rand(3)

    def embed(frequencies):
        return genssl_fast.time_embedding(t, 6, frequencies=frequencies)

    message = "frequencies: expected a tensor without derivatives"
    with pytest.raises(ValueError, match=message):
        torch.func.jvp(embed, (frequencies,), (frequencies,))
    with pytest.raises(ValueError, match=message):
        embed(frequencies.requires_grad_())


def test_flow_operations_are_one_graph():
    """T11: nothing in a call looks at values or leaves the graph."""
    torch._dynamo.reset()
    x, parameters = torch.randn(4, 3), torch.randn(4, 3, 11)
    for call in (
        lambda: genssl_fast.affine_coupling(x, x, x, clamp="tanh"),
        lambda: genssl_fast.rational_quadratic_spline(x, parameters),
        lambda: genssl_fast.rational_quadratic_spline(x, parameters, inverse=True),
    ):
        found = torch._dynamo.explain(call)()
        assert (found.graph_count, found.graph_break_count) == (1, 0)
