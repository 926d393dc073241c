"""The Triton affine coupling and its gradients against the reference in fp64."""

import pytest
import torch
from genssl_fast.kernels.coupling.affine_coupling import affine_coupling, affine_coupling_backward

from genssl_fast import reference
from genssl_fast.reference.coupling import CLAMPS
from tests.battery import assert_close_enough

OPTIONS = {
    "none": (1.0, 0.0, 0.0),
    "tanh": (1.5, 0.0, 0.0),
    "atan": (2.0, 0.0, 0.0),
    "sigmoid": (1.0, 2.0, 1e-3),
    "reciprocal_sigmoid": (1.0, 2.0, 0.0),
    "softplus": (2.0, 0.0, 1e-3),
    "zuko": (6.9, 0.0, 0.0),
}


def draw(shape, part, dtype, layout):
    """x [B, *shape], and shift and log_scale [B, *part] as views of one tensor."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, *shape, generator=generator).to(dtype)
    network_output = torch.randn(5, 2 * part[0], *part[1:], generator=generator).to(dtype)
    if layout == "cat":
        return x, *network_output.chunk(2, 1)
    return x, network_output[:, 0::2], network_output[:, 1::2]


def to_fp64(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def check(x, shift, log_scale, clamp="none", mask=None, split=0, inverse=False, shift_first=False):
    args = (x, shift, log_scale, mask, split, inverse, CLAMPS.index(clamp), *OPTIONS[clamp], shift_first)
    found = affine_coupling(*args)
    plain = reference.coupling.affine_coupling(*args)
    exact = reference.coupling.affine_coupling(*map(to_fp64, args))
    for name, *values in zip(("y", "log_abs_det"), found, plain, exact):
        assert_close_enough(*values, 2, name)
    grads = tuple(torch.cos(torch.arange(o.numel()).to(o.dtype)).reshape(o.shape) for o in plain)
    found = affine_coupling_backward(*grads, *args)
    plain = reference.coupling.affine_coupling_backward(*grads, *args)
    exact = reference.coupling.affine_coupling_backward(*map(to_fp64, (*grads, *args)))
    for name, *values in zip(("grad x", "grad shift", "grad log_scale"), found, plain, exact):
        assert_close_enough(*values, 3, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_clamps(clamp, dtype):
    for inverse in (False, True):
        check(*draw((9,), (9,), dtype, "cat"), clamp, inverse=inverse)


@pytest.mark.parametrize("shift_first", [False, True])
@pytest.mark.parametrize("layout", ["cat", "interleaved"])
@pytest.mark.parametrize("shape", [(4,), (3, 5), (5, 4, 3), (3, 19, 23)])
def test_shapes_and_splits(shape, layout, shift_first):
    for split in (0, 1, -2):
        part = (shape[0] - abs(split), *shape[1:])
        check(*draw(shape, part, torch.float32, layout), "tanh", split=split, shift_first=shift_first)


@pytest.mark.parametrize("inverse", [False, True])
def test_mask_and_additive(inverse):
    x, shift, log_scale = draw((3, 7), (3, 7), torch.float32, "cat")
    mask = torch.arange(21).reshape(3, 7) % 3 > 0
    check(x, shift, log_scale, "zuko", mask=mask, inverse=inverse)
    check(x, shift, None, mask=mask, inverse=inverse)
    check(x, shift[:, 1:], None, split=1, inverse=inverse, shift_first=True)


def test_small_arguments_keep_their_relative_accuracy():
    x, shift, log_scale = draw((9,), (9,), torch.float32, "cat")
    for clamp in ("tanh", "atan"):
        check(torch.zeros_like(x), 0 * shift, 1e-6 * log_scale, clamp)
