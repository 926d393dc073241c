"""Sinkhorn's codes: against the reference, lightly, many processes, and logits that overflow exponentials."""

import numpy as np
import pytest
import torch

import genssl_fast
from bench.peers import import_past_init
from genssl_fast import reference
from genssl_fast.ops.sinkhorn import raw_sinkhorn, raw_sinkhorn_codes, raw_sinkhorn_sums
from tests.battery import Battery, Case, assert_close_enough

EPSILON, ITERATIONS = 0.05, 3
BLOCK = 64  # rows of which the kernel keeps column sums


def logits_of(columns, rows=5):
    def inputs(dtype, size, generator):
        return (torch.rand(rows * size, columns, generator=generator).mul(2).sub(1).to(dtype),)

    return inputs


def ours(logits):
    return genssl_fast.sinkhorn(logits, epsilon=EPSILON, iterations=ITERATIONS)


def plain(logits):
    return reference.contrast.sinkhorn(logits, EPSILON, ITERATIONS)


# In fp64 the reference is no more exact than the kernel: test_fp64 compares both with more digits.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TestSinkhorn(Battery):
    cases = {
        "rows": Case(
            ours,
            plain,
            logits_of(37),
            differentiable=(),
            dtypes=DTYPES,
            raw=lambda logits: (raw_sinkhorn, (logits, EPSILON, ITERATIONS)),
        ),
        "columns": Case(ours, plain, logits_of(1100, rows=1), differentiable=(), dtypes=DTYPES),
    }
    errors = {
        "dtype": (
            lambda: genssl_fast.sinkhorn(torch.zeros(2, 3, dtype=torch.int64)),
            TypeError,
            "logits: expected dtype float32.*got torch.int64",
        ),
        "shape": (
            lambda: genssl_fast.sinkhorn(torch.zeros(3)),
            ValueError,
            r"logits: expected shape \[B, K\], got \[3\]",
        ),
        "no prototypes": (
            lambda: genssl_fast.sinkhorn(torch.zeros(3, 0)),
            ValueError,
            r"logits: expected at least one prototype, got \[3, 0\]",
        ),
        "epsilon": (
            lambda: genssl_fast.sinkhorn(torch.zeros(2, 3), epsilon=0.0),
            ValueError,
            "epsilon: expected a positive number, got 0.0",
        ),
        "iterations": (
            lambda: genssl_fast.sinkhorn(torch.zeros(2, 3), iterations=0),
            ValueError,
            "iterations: expected at least 1, got 0",
        ),
    }


def draw(rows, columns, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator).mul(2 * scale).sub(scale)


def assert_equals_fp64(logits, epsilon, iterations=3):
    found = genssl_fast.sinkhorn(logits, epsilon=epsilon, iterations=iterations)
    exact = reference.contrast.sinkhorn(logits.double(), epsilon, iterations)
    assert_close_enough(found, reference.contrast.sinkhorn(logits, epsilon, iterations), exact, 2, "codes")
    torch.testing.assert_close(found.sum(1), torch.ones(len(logits)), rtol=0, atol=1e-6)
    return found, exact


def log_sum_exp(x, axis):
    largest = x.max(axis, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(axis, keepdims=True))


@pytest.mark.parametrize("shape", [(5, 37), (70, 300)])
@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_fp64(shape, epsilon):
    """The battery's bound, with numpy's extended precision in the place of fp64."""
    logits = draw(*shape).double()
    x, v = logits.numpy().astype(np.longdouble) / np.longdouble(epsilon), 0
    for _ in range(ITERATIONS):
        u = -log_sum_exp(x + v, 0)
        v = -log_sum_exp(x + u, 1)
    exact = np.exp(x + u + v)
    found, plain = (
        np.abs(f(logits).numpy() - exact).max()
        for f in (
            lambda logits: genssl_fast.sinkhorn(logits, epsilon=epsilon),
            lambda logits: reference.contrast.sinkhorn(logits, epsilon, ITERATIONS),
        )
    )
    assert found <= 2 * plain + 4 * np.spacing(float(exact.max()))


@pytest.mark.parametrize("scale", [10.0, 1e3])
@pytest.mark.parametrize("epsilon", [0.04, 1e-3])
def test_large_logits(scale, epsilon):
    """Exponentials of 10 / 0.04 overflow."""
    assert_equals_fp64(draw(130, 50, scale), epsilon)


def test_logits_beyond_all_digits():
    """Finite, and rows still sum to 1."""
    codes = genssl_fast.sinkhorn(draw(130, 50, 1e34), epsilon=1e-3)
    torch.testing.assert_close(codes.sum(1), torch.ones(130), rtol=0, atol=1e-6)


def test_large_logits_keep_their_digits():
    """Differences to the maximum of a column are exact where they matter; PyTorch is 1e-4 off here."""
    logits = 1e4 + draw(130, 50)
    found, exact = assert_equals_fp64(logits, 0.04)
    assert (found.double() - exact).abs().max() < 1e-6


@pytest.mark.parametrize("level", [-30.0, -300.0, 30.0])
def test_samples_far_from_the_others(level):
    """A global maximum would let them vanish; their own powers do too, so they are shifted."""
    logits = draw(BLOCK + 5, 40)
    logits[3] += level
    logits[BLOCK + 2] += level
    assert_equals_fp64(logits, 0.04)


def test_duplicated_rows_and_equal_logits():
    assert torch.equal(genssl_fast.sinkhorn(torch.full((3, 4), 7.0)), torch.full((3, 4), 0.25))
    codes = genssl_fast.sinkhorn(draw(1, 9).expand(70, 9))
    torch.testing.assert_close(codes, torch.full((70, 9), 1 / 9), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize("columns", [1, 15, 17, 1025])
def test_ragged_shapes(rows, columns):
    for iterations in (1, 2, 5):
        assert_equals_fp64(draw(rows, columns, seed=columns), 0.05, iterations)


def test_large_codes_are_streamed():
    """Rows of 3000 numbers begin in the middle of a cache line."""
    logits = draw(1500, 3000)
    whole = genssl_fast.sinkhorn(logits)
    maximum, sums = torch.ops.genssl_fast._sinkhorn_maxima(logits, EPSILON)
    offset = -torch.log2(sums)
    for _ in range(1, ITERATIONS):
        offset = offset - torch.log2(raw_sinkhorn_sums(logits, maximum, offset, EPSILON))
    part = raw_sinkhorn_codes(logits[700:800], maximum, offset, EPSILON)
    torch.testing.assert_close(whole[700:800], part, rtol=1e-5, atol=0)


def test_masked_prototypes():
    """A sample may be kept from some prototypes."""
    logits = draw(10, 6)
    logits[2, 4] = -torch.inf
    codes = genssl_fast.sinkhorn(logits)
    assert codes[2, 4] == 0
    torch.testing.assert_close(codes.sum(1), torch.ones(10))


def test_enough_iterations_use_prototypes_equally():
    codes = genssl_fast.sinkhorn(draw(60, 12), epsilon=0.5, iterations=100)
    torch.testing.assert_close(codes.sum(0), torch.full((12,), 5.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(2, 5000), (5000, 2)])
def test_many_iterations_do_not_drift(shape):
    """Columns sum to B / K: without it potentials grow by its logarithm every time, and overflow."""
    assert_equals_fp64(draw(*shape), 0.05, iterations=40)


def test_codes_are_targets():
    logits = draw(4, 3).requires_grad_()
    assert not genssl_fast.sinkhorn(logits).requires_grad
    with pytest.raises(RuntimeError, match=r"call genssl_fast\.sinkhorn, which detaches"):
        raw_sinkhorn(logits, EPSILON, ITERATIONS)


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_lightly(epsilon, iterations):
    theirs = pytest.importorskip("lightly") and import_past_init("lightly.loss.swav_loss").sinkhorn
    logits = draw(33, 20).double()
    expected = theirs(logits, iterations=iterations, epsilon=epsilon)
    found = genssl_fast.sinkhorn(logits, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
