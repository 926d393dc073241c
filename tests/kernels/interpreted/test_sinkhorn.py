"""The Triton passes of Sinkhorn against the reference in fp64."""

import pytest
import torch
from genssl_fast.kernels.contrast import sinkhorn as kernels

from genssl_fast import reference
from tests.battery import assert_close_enough


def draw(rows, columns, scale, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.rand(rows, columns, generator=generator).mul(2 * scale).sub(scale).to(dtype)


def check(logits, epsilon, iterations=3):
    found = kernels.sinkhorn(logits, epsilon, iterations)
    exact = reference.contrast.sinkhorn(logits.double(), epsilon, iterations)
    assert_close_enough(found, reference.contrast.sinkhorn(logits, epsilon, iterations), exact, 2, "codes")


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 33), (kernels.BLOCK_ROWS + 3, 7), (2, kernels.ROW_COLUMNS + 9)]
)
def test_shapes(shape):
    for iterations in (1, 3):
        check(draw(*shape, 1.0), 0.05, iterations)


@pytest.mark.parametrize("scale", [10.0, 1e3])
def test_large_logits(scale):
    check(draw(70, 20, scale), 0.04)


def test_fp16_and_fp64():
    check(draw(9, 20, 1.0, torch.float16), 0.05)
    logits = draw(9, 20, 1.0, torch.float64)
    found, exact = kernels.sinkhorn(logits, 0.05, 3), reference.contrast.sinkhorn(logits, 0.05, 3)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)


def test_samples_far_from_the_others_and_masked_prototypes():
    logits = draw(10, 20, 1.0)
    logits[3] -= 300.0
    check(logits, 0.04)
    logits[4, 5] = -torch.inf
    assert kernels.sinkhorn(logits, 0.04, 3)[4, 5] == 0


def test_passes():
    logits = draw(kernels.BLOCK_ROWS + 5, 30, 1.0)
    maximum, sums = kernels.sinkhorn_maxima(logits, 0.05)
    expected = reference.contrast.sinkhorn_maxima(logits, 0.05)
    assert torch.equal(maximum, expected[0])
    torch.testing.assert_close(sums, expected[1])
    offset = -torch.log2(sums)
    for name in ("sinkhorn_sums", "sinkhorn_codes"):
        arguments = (logits, maximum, offset, 0.05)
        expected = getattr(reference.contrast, name)(*arguments)
        torch.testing.assert_close(getattr(kernels, name)(*arguments), expected, rtol=1e-5, atol=1e-6)


def test_no_rows():
    assert kernels.sinkhorn(torch.zeros(0, 3), 0.05, 3).shape == (0, 3)
    maximum, sums = kernels.sinkhorn_maxima(torch.zeros(0, 3), 0.05)
    assert torch.equal(sums, torch.zeros(3))
    assert torch.equal(maximum, torch.full((3,), torch.finfo(torch.float32).min))
