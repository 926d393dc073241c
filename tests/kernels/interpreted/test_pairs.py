"""The Triton reductions over pairs and their gradients, in both structures, against the reference in fp64."""

import pytest
import torch
from genssl_fast.kernels.contrast import fused_pairs, pair_chunks, pairs

from genssl_fast.reference.contrast import similarity as plain
from tests.battery import assert_close_enough

STRUCTURES = {"fused": fused_pairs, "chunks": pair_chunks}
SINGLE, HALF = torch.float32, torch.float16
PROBLEMS = [
    pytest.param((*sides, depth), dtype, id=f"{sides[0]}-{sides[1]}-{depth}-{str(dtype)[6:]}")
    for *sides, depth, dtype in [
        (1, 1, 1, SINGLE), (1, 5, 3, HALF), (70, 1, 3, SINGLE), (37, 75, 16, HALF), (100, 130, 100, SINGLE)
    ]
]  # fmt: skip


@pytest.fixture(params=STRUCTURES)
def structure(request, monkeypatch):
    """Both structures at every shape, with chunks and splits small enough to have several."""
    monkeypatch.setattr(pairs, "structure_of", lambda x: STRUCTURES[request.param])
    monkeypatch.setattr(pair_chunks, "CHUNK_ROWS", 48)
    monkeypatch.setattr(pair_chunks, "CHUNK_COLUMNS", 72)
    monkeypatch.setattr(pair_chunks, "BLOCK_ROWS", 32)
    monkeypatch.setattr(pair_chunks, "BLOCK_COLUMNS", 64)
    monkeypatch.setattr(fused_pairs, "LEAST_BLOCKS", 1)
    monkeypatch.setattr(fused_pairs, "blocks_of", small_blocks)
    return request.param


def small_blocks(depth, dtype, kind):
    return fused_pairs.Blocks(max(16, 1 << (depth - 1).bit_length()), 64, 64, 4, 2)


def drawn(*shape, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def rows_of(count, depth, dtype=torch.float32):
    """Unit rows, the last two the same."""
    x = torch.nn.functional.normalize(drawn(count, depth))
    x[-1] = x[-2:][0]
    return x.to(dtype)


def ids_of(count, groups):
    return (torch.arange(count) % groups).to(torch.int32)


def to_fp64(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def check(name, *calls, factor):
    """An operation against its reference; returns what the first call gave.

    An output of one number may be right by luck in PyTorch, so those of all calls are compared together.
    """
    found = []
    for args in calls:
        ours, of_plain = getattr(pairs, name)(*args), getattr(plain, name)(*args)
        exact = getattr(plain, name)(*map(to_fp64, args))
        values = (ours, of_plain, exact)
        found.append([(v,) if isinstance(v, torch.Tensor) else v for v in values])
    numbers = [i for i, output in enumerate(found[0][2]) if output.numel() == 1]
    for values in found:
        for i, triple in enumerate(zip(*values, strict=True)):
            if i not in numbers:
                compare(*triple, factor, f"{name}, output {i}")
    for i in numbers:
        compare(*(torch.stack([values[side][i] for values in found]) for side in range(3)), factor, name)
    return found[0][0] if len(found[0][0]) > 1 else found[0][0][0]


def compare(ours, of_plain, exact, factor, what):
    """-inf, of rows that sum nothing, exactly."""
    nothing = exact == -torch.inf
    assert torch.equal(ours == -torch.inf, nothing), what
    finite = (t.masked_fill(nothing, 0.0) for t in (ours, of_plain, exact))
    assert_close_enough(*finite, factor, what)


def cotangents(like):
    """Gradients of an output [N], several."""
    numbers = torch.arange(len(like), dtype=like.dtype)
    return [torch.cos(numbers * step + step) for step in (1.0, 2.3, 0.7)]


def check_pair(
    x, y, scale, row_bias=None, column_bias=None, row_ids=None, column_ids=None,
    columns=True, to_x=True, to_y=True,
):  # fmt: skip
    args = (x, y, scale, row_bias, column_bias, row_ids, column_ids)
    sums = check("pair_logsumexp", (*args, columns, False), factor=2)
    calls = [(*grads, *sums, *args, to_x, to_y) for grads in zip(*map(cotangents, sums[:2]))]
    check("pair_logsumexp_backward", *calls, factor=3)


def check_gram(z, scale, bias, ids):
    sums = check("gram_logsumexp", (z, scale, bias, ids, False), factor=2)
    calls = [(grad, *sums, z, scale, bias, ids) for grad in cotangents(sums[0])]
    check("gram_logsumexp_backward", *calls, factor=3)


def check_pair_sum(z, scale, bias, shift, psi):
    args = z, scale, bias, shift, psi
    sums = check("gram_pair_sum", args, factor=2)
    check("gram_pair_sum_backward", *((grad, *args) for grad in cotangents(sums)), factor=3)


def check_sigmoid(x, y, scale, bias, row_ids, column_ids):
    """Rows in other orders are other problems."""
    calls = [(x.roll(by, 1), y, scale, bias, row_ids, column_ids) for by in range(3)]
    check("sigmoid_pairs", *((*args, False) for args in calls), factor=2)
    check("sigmoid_pairs", *((*args, True) for args in calls), factor=3)


@pytest.mark.parametrize(("shape", "dtype"), PROBLEMS)
def test_pair(structure, shape, dtype):
    num_rows, num_columns, depth = shape
    x, y = rows_of(num_rows, depth, dtype), rows_of(num_columns, depth, dtype)
    options = drawn(num_rows), drawn(num_columns), ids_of(num_rows, 9), ids_of(num_columns, 7)
    check_pair(x, y, torch.tensor(-7.0), *options)


@pytest.mark.parametrize("columns", [False, True])
def test_what_is_wanted(structure, columns):
    x, y, scale = rows_of(20, 4), rows_of(90, 4), torch.tensor(3.0)
    bias = drawn(90)
    check_pair(x, y, scale, columns=columns, to_y=False)
    check_pair(x, y, scale, None, bias, columns=columns, to_x=False)
    check_pair(x, y, scale, None, bias, columns=columns, to_x=False, to_y=False)


@pytest.mark.parametrize(("shape", "dtype"), PROBLEMS)
def test_gram(structure, shape, dtype):
    z = rows_of(shape[1], shape[2], dtype)
    check_gram(z, torch.tensor(5.0), None, None)
    check_gram(z, torch.tensor(50.0), drawn(len(z)), ids_of(len(z), 4))


@pytest.mark.parametrize("psi", range(len(plain.PSI)), ids=list(plain.PSI))
def test_pair_sum(structure, psi):
    for count, depth in ((1, 1), (130, 3)):
        z = rows_of(count, depth)
        check_pair_sum(z, torch.tensor(3.0), None, drawn(count, scale=0.3), psi)
        check_pair_sum(z.half(), torch.tensor(-2.0), drawn(count), drawn(count), psi)


@pytest.mark.parametrize(("shape", "dtype"), PROBLEMS)
def test_sigmoid(structure, shape, dtype):
    num_rows, num_columns, depth = shape
    x, y = rows_of(num_rows, depth, dtype), rows_of(num_columns, depth, dtype)
    ids = ids_of(num_rows, 9), ids_of(num_columns, 11)
    check_sigmoid(x, y, torch.tensor(10.0), torch.tensor(-10.0), *ids)


def test_fp64():
    """What `structure_of` itself chooses: chunks."""
    x, y, z = (rows_of(count, 5, torch.float64) for count in (21, 34, 40))
    scale = torch.tensor(2.0, dtype=torch.float64)
    bias, shift = drawn(40, dtype=torch.float64), drawn(40, dtype=torch.float64)
    check_pair(x, y, scale, None, drawn(34, dtype=torch.float64), ids_of(21, 3), ids_of(34, 5))
    check_gram(z, scale, bias, None)
    for psi in range(len(plain.PSI)):
        check_pair_sum(z, scale, bias, shift, psi)
    check_sigmoid(x, y, scale, -scale, ids_of(21, 21), ids_of(34, 34))


def test_everything_is_left_out(structure):
    z, zeros = rows_of(40, 8), torch.zeros(40, dtype=torch.int32)
    check_gram(z, torch.tensor(5.0), None, zeros)
    check_pair(z, z, torch.tensor(5.0), None, None, zeros, zeros)
    some = (torch.arange(40) < 3).to(torch.int32)  # rows of the majority see three columns
    check_pair(z, z, torch.tensor(100.0), None, None, some, some)


@pytest.mark.parametrize("scale", [1e-3, 100.0, 1e4])
def test_extreme_scales(structure, scale):
    x, y = rows_of(33, 6), rows_of(50, 6)
    check_pair(x, y, torch.tensor(scale))
    check_pair(x, y, torch.tensor(-scale), torch.full((33,), -300.0))
    check_gram(x, torch.tensor(scale), None, None)
    check_sigmoid(x, y, torch.tensor(scale), torch.tensor(0.0), ids_of(33, 33), ids_of(50, 50))


def test_small_gradients_of_fp16(structure):
    """Weights of 8e-9, which fp16 rounds to 0, and their sums, which it does not."""
    x, y = 0.01 * rows_of(64, 3, torch.float16), rows_of(130, 3, torch.float16).abs()
    args = (x, y, torch.tensor(20.0), None, None, None, None)
    sums = pairs.pair_logsumexp(*args, False, False)
    grads = torch.full((64,), 1e-6), torch.zeros(0)
    found, *_ = check("pair_logsumexp_backward", (*grads, *sums, *args, True, True), factor=3)
    assert (found > 5e-6).all()


def test_any_strides_and_types(structure):
    x, y = rows_of(9, 6).mT.contiguous().mT, rows_of(24, 6)[::2]
    check_pair(x, y, torch.tensor(2.0), torch.ones(9).half(), drawn(24)[::2])


def test_choice():
    def chosen(depth, dtype):
        return pairs.structure_of(torch.empty(4, depth, dtype=dtype))

    assert chosen(128, torch.bfloat16) is chosen(64, torch.float32) is fused_pairs
    assert (
        chosen(256, torch.bfloat16) is chosen(128, torch.float32) is chosen(8, torch.float64) is pair_chunks
    )
