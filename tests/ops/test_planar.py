"""Planar and radial flows: the battery, normflows, inverses, log-determinants, extreme parameters."""

import pytest
import torch

import genssl_fast
from genssl_fast import reference
from genssl_fast.ops.planar import raw_planar_root
from tests.battery import Case
from tests.ops.composite_battery import CompositeBattery


def planar_inputs(dtype, size, generator):
    """x, u, w, b of all samples."""
    shapes = ((size, 5), (5,), (5,), ())
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def radial_inputs(dtype, size, generator):
    """x, center, log_alpha, beta."""
    shapes = ((size, 5), (5,), (), ())
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def inverse_of(function):
    return lambda *args: function(*args, inverse=True)


def case(function, plain, inputs, inverse=False, raw=None):
    return Case(
        inverse_of(function) if inverse else function,
        lambda *args: plain(*args, inverse),
        inputs,
        differentiable=(0, 1, 2, 3),
        raw=raw,
    )


def root_arguments(x, u, w, b):
    return raw_planar_root, (x[:, 0].clone(), x[:, 1].exp(), x[:, 2].clone())


class TestPlanar(CompositeBattery):
    cases = {
        "forward": case(genssl_fast.planar, reference.coupling.planar, planar_inputs),
        "inverse": case(
            genssl_fast.planar, reference.coupling.planar, planar_inputs, inverse=True, raw=root_arguments
        ),
    }
    errors = {
        "u": (
            lambda: genssl_fast.planar(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3), torch.zeros(())),
            ValueError,
            r"u: expected shape \[D\] or \[B, D\], got \[2\]",
        ),
        "b": (
            lambda: genssl_fast.planar(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), torch.zeros(3)),
            ValueError,
            r"b: expected shape \[\] or \[B\], got \[3\]",
        ),
        "x": (
            lambda: genssl_fast.planar(torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.zeros(())),
            ValueError,
            "x: expected shape",
        ),
    }


class TestRadial(CompositeBattery):
    cases = {
        "forward": case(genssl_fast.radial, reference.coupling.radial, radial_inputs),
        "inverse": case(genssl_fast.radial, reference.coupling.radial, radial_inputs, inverse=True),
    }
    errors = {
        "dtype": (
            lambda: genssl_fast.radial(
                torch.zeros(2, 3), torch.zeros(3).double(), torch.zeros(()), torch.zeros(())
            ),
            TypeError,
            "center: expected the dtype of x",
        ),
        "beta": (
            lambda: genssl_fast.radial(torch.zeros(2, 3), torch.zeros(3), torch.zeros(()), torch.zeros(2, 1)),
            ValueError,
            r"beta: expected shape \[\] or \[B\], got \[2, 1\]",
        ),
    }


FLOWS = [(genssl_fast.planar, planar_inputs), (genssl_fast.radial, radial_inputs)]


@pytest.mark.parametrize(("flow", "inputs"), FLOWS)
@pytest.mark.parametrize("seed", range(5))
def test_log_determinant_and_inverse(flow, inputs, seed):
    x, *parameters = inputs(torch.float64, 6, torch.Generator().manual_seed(seed))
    y, log_abs_det = flow(x, *parameters)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow(row[None], *parameters)[0][0]))(x)
    torch.testing.assert_close(log_abs_det, torch.linalg.slogdet(jacobian).logabsdet)
    back, back_log_abs_det = flow(y, *parameters, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(back_log_abs_det, -log_abs_det, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("flow", "inputs"), FLOWS)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 30.0, 1e4])
@pytest.mark.parametrize("inverse", [False, True])
def test_extreme_parameters_stay_finite(flow, inputs, scale, inverse):
    x, *parameters = inputs(torch.float32, 50, torch.Generator().manual_seed(0))
    vector = (scale * parameters[0]).requires_grad_()
    for outcome in flow(x, vector, *parameters[1:], inverse=inverse):
        assert torch.isfinite(outcome).all()
        (gradient,) = torch.autograd.grad(outcome.sum(), vector, retain_graph=True)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("inverse", [False, True])
def test_parameters_of_each_sample(inverse):
    x, u, w, b = torch.randn(4, 6, 3, dtype=torch.float64).unbind()
    for flow, parameters in (
        (genssl_fast.planar, (u, w, b[:, 0])),
        (genssl_fast.radial, (u, w[:, 0], b[:, 0])),
    ):
        together = flow(x, *parameters, inverse=inverse)
        for i in range(6):
            alone = flow(x[i : i + 1], *(p[i] for p in parameters), inverse=inverse)
            torch.testing.assert_close(alone, tuple(t[i : i + 1] for t in together))


def test_planar_with_zero_w_is_a_shift():
    x, u = torch.randn(4, 3), torch.randn(3)
    y, log_abs_det = genssl_fast.planar(x, u, torch.zeros(3), torch.tensor(0.7))
    torch.testing.assert_close(y, x + u * torch.tanh(torch.tensor(0.7)))
    assert torch.equal(log_abs_det, torch.zeros(4))


def test_radial_at_its_center():
    center = torch.randn(3)
    x = center.expand(2, 3).clone().requires_grad_()
    y, log_abs_det = genssl_fast.radial(x, center, torch.tensor(0.5), torch.tensor(-1.0))
    torch.testing.assert_close(y, x)
    jacobian = torch.func.jacrev(
        lambda row: genssl_fast.radial(row[None], center, torch.tensor(0.5), torch.tensor(-1.0))[0][0]
    )(center)
    torch.testing.assert_close(log_abs_det[0], torch.linalg.slogdet(jacobian).logabsdet)


def test_equal_normflows():
    normflows = pytest.importorskip("normflows")
    torch.manual_seed(0)
    x = torch.randn(8, 5, dtype=torch.float64)
    layer = normflows.flows.Planar((5,)).double()
    found = genssl_fast.planar(x, layer.u[0], layer.w[0], layer.b[0])
    torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-12)
    layer = normflows.flows.Radial((5,)).double()
    found = genssl_fast.radial(x, layer.z_0[0], layer.alpha.abs().log()[0], layer.beta[0])
    torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-12)


def test_log_determinants_below_the_range_of_fp32():
    """Where the factor itself underflows, w·u or beta being −200."""
    x, u, w = torch.zeros(2, 2), torch.tensor([-200.0, 0.0]), torch.tensor([1.0, 0.0])
    _, log_abs_det = genssl_fast.planar(x, u, w, torch.tensor(0.0))
    torch.testing.assert_close(log_abs_det, torch.full((2,), -200.0))
    tensors = [torch.zeros(2), torch.tensor(0.5), torch.tensor(-200.0, requires_grad=True)]
    _, log_abs_det = genssl_fast.radial(x, *tensors)
    torch.testing.assert_close(log_abs_det, torch.full((2,), -401.0))
    assert torch.autograd.grad(log_abs_det.sum(), tensors[2])[0] == 4
    center, back = genssl_fast.radial(x, *tensors, inverse=True)
    torch.testing.assert_close(back, -log_abs_det)
    assert torch.equal(center, x)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("log_alpha", [-80.0, -60.0, 45.0, 60.0, 87.0, 89.0, 300.0])
def test_radial_of_any_scale(log_alpha, inverse):
    """alpha and its square leave the range of fp32, what comes of them does not."""
    x = torch.tensor([[0.03, 0.04], [3.0, 4.0]])
    if inverse and log_alpha > 60:
        x = x * 1e-30  # of others, the inverse lies beyond fp32
    tensors = x, torch.zeros(2), torch.tensor(log_alpha), torch.tensor(1.0)
    found = genssl_fast.radial(*tensors, inverse=inverse)
    exact = genssl_fast.radial(*(t.double() for t in tensors), inverse=inverse)
    for value, true in zip(found, exact):
        assert value.dtype == torch.float32
        kept = true.abs() <= torch.finfo(torch.float32).max
        torch.testing.assert_close(value.double()[kept], true[kept], rtol=1e-6, atol=1e-30)
