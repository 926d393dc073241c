"""Affine normalization by channel: the battery, nflows, normflows, log-determinants, bad input."""

import pytest
import torch

import genssl_fast
from genssl_fast import reference
from tests.battery import Case
from tests.ops.composite_battery import CompositeBattery


def image_inputs(dtype, size, generator):
    shapes = ((size, 3, 2, 5), (3,), (3,))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def vector_inputs(dtype, size, generator):
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in ((size, 7), (7,), (7,)))


class TestActnorm(CompositeBattery):
    cases = {
        "forward": Case(
            genssl_fast.actnorm,
            lambda *args: reference.coupling.actnorm(*args, False),
            image_inputs,
            differentiable=(0, 1, 2),
        ),
        "inverse": Case(
            lambda *args: genssl_fast.actnorm(*args, inverse=True),
            lambda *args: reference.coupling.actnorm(*args, True),
            vector_inputs,
            differentiable=(0, 1, 2),
        ),
    }
    errors = {
        "rank": (
            lambda: genssl_fast.actnorm(torch.zeros(3), torch.zeros(3), torch.zeros(3)),
            ValueError,
            r"x: expected shape \[B, C, ...\], got \[3\]",
        ),
        "channels": (
            lambda: genssl_fast.actnorm(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3)),
            ValueError,
            r"shift: expected shape \[C\] = \[3\], got \[2\]",
        ),
        "scale": (
            lambda: genssl_fast.actnorm(torch.zeros(2, 2), torch.zeros(2), torch.tensor([0.0, -torch.inf])),
            ValueError,
            r"log_scale: expected logarithms of scales that torch.float32 holds, and their inverses, got",
        ),
        "dtype": (
            lambda: genssl_fast.actnorm(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3).double()),
            TypeError,
            "log_scale: expected the dtype of x",
        ),
    }


def test_log_determinant_is_that_of_the_jacobian():
    x, shift, log_scale = (t[:1] if t.ndim > 1 else t for t in image_inputs(torch.float64, 1, None))
    jacobian = torch.func.jacrev(lambda x: genssl_fast.actnorm(x, shift, log_scale)[0])(x)
    expected = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet
    torch.testing.assert_close(genssl_fast.actnorm(x, shift, log_scale)[1], expected[None])


def test_equals_nflows():
    normalization = pytest.importorskip("nflows.transforms.normalization")
    x, shift, log_scale = image_inputs(torch.float64, 4, torch.Generator().manual_seed(0))
    layer = normalization.ActNorm(3).double().eval()
    layer.load_state_dict({"initialized": torch.tensor(True), "log_scale": log_scale, "shift": shift})
    for inverse, theirs in ((False, layer.forward), (True, layer.inverse)):
        found = genssl_fast.actnorm(x, shift, log_scale, inverse=inverse)
        torch.testing.assert_close(found, theirs(x), rtol=1e-13, atol=1e-13)


def test_equals_normflows():
    normflows = pytest.importorskip("normflows")
    x, shift, log_scale = image_inputs(torch.float64, 4, torch.Generator().manual_seed(0))
    layer = normflows.flows.AffineConstFlow((3, 1, 1)).double()
    layer.load_state_dict({"s": log_scale.view(1, 3, 1, 1), "t": shift.view(1, 3, 1, 1)})
    for inverse, theirs in ((False, layer.forward), (True, layer.inverse)):
        y, log_abs_det = theirs(x)
        found = genssl_fast.actnorm(x, shift, log_scale, inverse=inverse)
        torch.testing.assert_close(found, (y, log_abs_det.expand(4)), rtol=1e-13, atol=1e-13)


def test_inverse_undoes():
    x, shift, log_scale = vector_inputs(torch.float64, 5, torch.Generator().manual_seed(0))
    y, log_abs_det = genssl_fast.actnorm(x, shift, log_scale)
    back, back_log_abs_det = genssl_fast.actnorm(y, shift, log_scale, inverse=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(back_log_abs_det, -log_abs_det)
