"""The Triton spline and its gradients against the reference in fp64."""

import pytest
import torch
from genssl_fast.kernels.coupling.rational_quadratic_spline import (
    rational_quadratic_spline,
    rational_quadratic_spline_backward,
)

from genssl_fast import reference
from tests.battery import assert_close_enough

NUM_SLOPES = (1, -1, 0)  # beside the bins, without tails, with linear and with circular ones


def check(bins, tails=1, zuko=False, inverse=False, elementwise=False, dtype=torch.float32, packed=False):
    generator = torch.Generator().manual_seed(3)  # the worst of few splines is a matter of luck
    x = (2.4 * torch.rand(20, 3, 7, generator=generator) - 1.2).to(dtype)
    sizes = [bins, bins, bins + NUM_SLOPES[tails]]
    output = 0.25 * torch.randn(20, 2, 3, 7, sum(sizes), generator=generator)
    output = output[:, 1].to(dtype)
    chunks = (output, None, None) if packed else output.split(sizes, -1)
    args = (x, *chunks, inverse, elementwise, tails, zuko, -1.0, 1.0, -1.0, 1.0, 1e-3, 1e-3, 1e-3, 1e-3)
    found = rational_quadratic_spline(*args)
    plain = reference.coupling.rational_quadratic_spline(*args)
    exact = reference.coupling.rational_quadratic_spline(*map(to_fp64, args))
    for name, *values in zip(("value", "log_abs_det"), found, plain, exact):
        assert_close_enough(*values, 2, name)
    grads = tuple(torch.cos(torch.arange(o.numel()).to(o.dtype)).reshape(o.shape) for o in plain)
    found = rational_quadratic_spline_backward(*grads, *args)
    plain = reference.coupling.rational_quadratic_spline_backward(*grads, *args)
    exact = reference.coupling.rational_quadratic_spline_backward(*map(to_fp64, (*grads, *args)))
    assert len(found) == 4
    for name, *values in zip(("x", "widths", "heights", "derivatives"), found, plain, exact):
        assert_close_enough(*values, 3, f"gradient of {name}")


def to_fp64(value):
    return value.double() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", [0, 1, 2])
@pytest.mark.parametrize("zuko", [False, True])
def test_options(tails, zuko, inverse):
    check(5, tails, zuko, inverse, elementwise=zuko, packed=tails != 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bins", [2, 8, 17])
def test_bins(bins, dtype):
    check(bins, dtype=dtype)
    check(bins, inverse=True, dtype=dtype)
