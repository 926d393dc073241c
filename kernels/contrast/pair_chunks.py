"""Reductions over pairs and their gradients in chunks of scores: for long rows.

A chunk is [4096, 8192] scores, [4096, 4096] of one matrix with itself, whose chunks below the
diagonal are mirrors of those above. A product of cuBLAS leaves it in a workspace that all chunks
share; one kernel reads it once and leaves partial sums of rows and of columns, or weights in the
place of the scores (16-bit beside them for bf16); two products of cuBLAS take the weights to the
gradients, which are added in fp32. The partial sums of the blocks of a chunk are merged in order.

Scores of bf16 are fp32, as exponentials need: 2 N^2 D operations and 8 bytes a pair forward, 6
N^2 D and 14 bytes backward, and half of both for one matrix with itself. 4096 rows is the knee of
siglip-kernel 0.1.2; with that side fixed and a bounded other one, the workspace is at most 192 MiB
(256 MiB in fp64) whatever N is.

fp16 has not the range of weights and is widened. Products of fp32 are PyTorch's: tf32 only where
the caller allows it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .pair_terms import (
    EXPONENTIAL,
    NOTHING,
    SUM,
    Gradients,
    Pairs,
    Side,
    add_log,
    both_weights,
    kept,
    load_numbers,
    load_offset,
    log_of,
    log_sums,
    logits_of,
    same_ids,
    terms_of,
)

CHUNK_ROWS, CHUNK_COLUMNS = 4096, 8192
BLOCK_ROWS, BLOCK_COLUMNS, NUM_WARPS = 64, 64, 8
MERGED = 128  # entries that a program merges
ALIGNED = 16  # numbers, so that rows of a workspace allow wide loads
COUNTS = ["num_rows", "num_columns"]


@triton.jit
def _block(num_rows, num_columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's rows and columns, which of them are present, offsets and mask."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_present, column_present = rows < num_rows, columns < num_columns
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return rows, columns, row_present, column_present, offsets, row_present[:, None] & column_present[None, :]


@triton.jit
def _store_sum(partials, numbers, of_block, positions, present, count, AXIS: tl.constexpr):
    """partials[block, position], where they are wanted."""
    if partials is not None:
        target = partials + of_block.to(tl.int64) * count + positions
        tl.store(target, tl.sum(numbers, axis=AXIS), mask=present)


@triton.jit(do_not_specialize=COUNTS)
def chunk_sums_kernel(
    products,
    scale,
    row_bias,
    column_bias,
    row_ids,
    column_ids,
    row_offset,
    column_offset,
    row_sums,
    column_sums,
    num_rows,
    num_columns,
    stride,
    KIND: tl.constexpr,
    VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """row_sums[column block, row] and column_sums[row block, column], or log-sum-exps."""
    rows, columns, row_present, column_present, offsets, present = _block(
        num_rows, num_columns, stride, ROWS, COLUMNS
    )
    block = tl.load(products + offsets, mask=present, other=0.0)
    logits = logits_of(
        block, tl.load(scale), load_numbers(row_bias, rows, row_present),
        load_numbers(column_bias, columns, column_present),
    )  # fmt: skip
    same = same_ids(row_ids, column_ids, rows, columns, row_present, column_present)
    keep = kept(same, present, KIND)
    if KIND == EXPONENTIAL:
        logits = tl.where(keep, logits, NOTHING)
        if row_sums is not None:
            largest, total = log_sums(logits, 1)
            target = row_sums + tl.program_id(1).to(tl.int64) * num_rows + rows
            tl.store(target, log_of(largest, total), mask=row_present)
        if column_sums is not None:
            largest, total = log_sums(logits, 0)
            target = column_sums + tl.program_id(0).to(tl.int64) * num_columns + columns
            tl.store(target, log_of(largest, total), mask=column_present)
    else:
        if row_sums is not None:
            offset = load_offset(row_offset, rows, row_present, KIND)
            if offset is not None:
                offset = offset[:, None]
            terms = terms_of(logits, same, keep, offset, KIND, VALUE)
            _store_sum(row_sums, terms, tl.program_id(1), rows, row_present, num_rows, 1)
        if column_sums is not None:
            offset = load_offset(column_offset, columns, column_present, KIND)
            if offset is not None:
                offset = offset[None, :]
            terms = terms_of(logits, same, keep, offset, KIND, VALUE)
            _store_sum(column_sums, terms, tl.program_id(0), columns, column_present, num_columns, 0)


@triton.jit(do_not_specialize=COUNTS)
def chunk_weights_kernel(
    products,
    weights,
    scale,
    row_bias,
    column_bias,
    row_ids,
    column_ids,
    row_grad,
    row_offset,
    column_grad,
    column_offset,
    row_weights,
    column_weights,
    row_own,
    column_own,
    product_sums,
    value_sums,
    num_rows,
    num_columns,
    stride,
    KIND: tl.constexpr,
    VALUE: tl.constexpr,
    SLOPE: tl.constexpr,
    DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Weights of a chunk, perhaps in the place of its products, and their partial sums.

    DIAGONAL: the chunk holds each pair twice.
    """
    rows, columns, row_present, column_present, offsets, present = _block(
        num_rows, num_columns, stride, ROWS, COLUMNS
    )
    block = tl.load(products + offsets, mask=present, other=0.0)
    logits = logits_of(
        block, tl.load(scale), load_numbers(row_bias, rows, row_present),
        load_numbers(column_bias, columns, column_present),
    )  # fmt: skip
    same = same_ids(row_ids, column_ids, rows, columns, row_present, column_present)
    keep = kept(same, present, KIND)
    own, other = both_weights(
        logits, same, keep,
        load_numbers(row_grad, rows, row_present), load_offset(row_offset, rows, row_present, KIND),
        load_numbers(column_grad, columns, column_present),
        load_offset(column_offset, columns, column_present, KIND), KIND, SLOPE,
    )  # fmt: skip
    total = own + other
    if weights is not None:
        tl.store(weights + offsets, total.to(weights.dtype.element_ty), mask=present)
    row_block, column_block = tl.program_id(0), tl.program_id(1)
    _store_sum(row_weights, total, column_block, rows, row_present, num_rows, 1)
    _store_sum(column_weights, total, row_block, columns, column_present, num_columns, 0)
    _store_sum(row_own, own, column_block, rows, row_present, num_rows, 1)
    _store_sum(column_own, other, row_block, columns, column_present, num_columns, 0)
    found = total * block
    if DIAGONAL:
        found = found * 0.5
    _store_sum(product_sums, found, column_block, rows, row_present, num_rows, 1)
    if value_sums is not None:
        terms = terms_of(logits, same, keep, None, KIND, VALUE)
        _store_sum(value_sums, terms, column_block, rows, row_present, num_rows, 1)


@triton.jit(do_not_specialize=["num_blocks", "count"])
def merge_kernel(partials, totals, num_blocks, count, KIND: tl.constexpr, ENTRIES: tl.constexpr):
    """totals[n] and then partials[block, n], in the order of the blocks."""
    entries = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    present = entries < count
    total = tl.load(totals + entries, mask=present, other=0.0)
    if KIND == EXPONENTIAL:
        largest = total
        total = tl.where(largest == NOTHING, 0.0, 1.0).to(largest.dtype)
        for block in range(num_blocks):
            more = tl.load(partials + block * count + entries, mask=present, other=0.0)
            largest, total = add_log(largest, total, more, tl.full((ENTRIES,), 1.0, more.dtype))
        total = log_of(largest, total)
    else:
        for block in range(num_blocks):
            total += tl.load(partials + block * count + entries, mask=present, other=0.0)
    tl.store(totals + entries, total, mask=present)


class Chunk(NamedTuple):
    """A part of the rows and one of the columns, their products and the place of their weights."""

    here: slice
    there: slice
    rows: Side
    columns: Side
    products: torch.Tensor
    weights: torch.Tensor
    diagonal: bool  # of one matrix with itself: rows and columns are the same

    @property
    def blocks(self) -> tuple[int, int]:
        rows, columns = self.products.shape
        return triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)

    @property
    def sizes(self) -> dict[str, int]:
        rows, columns = self.products.shape
        sizes = {"num_rows": rows, "num_columns": columns, "stride": self.products.stride(0)}
        return {**sizes, "ROWS": BLOCK_ROWS, "COLUMNS": BLOCK_COLUMNS, "num_warps": NUM_WARPS}


def chunks_of(pairs: Pairs, with_weights: bool) -> Iterator[Chunk]:
    """Each chunk with its products, in a workspace that the next one overwrites."""
    x, y = pairs.rows.matrix, pairs.columns.matrix
    height = min(CHUNK_ROWS, len(x))
    width = height if pairs.gram else min(CHUNK_COLUMNS, len(y))
    stride = triton.cdiv(width, ALIGNED) * ALIGNED
    workspace = place = pairs.scale.new_empty(height, stride)
    if with_weights and x.dtype == torch.bfloat16:
        place = x.new_empty(height, stride)
    for row in range(0, len(x), max(height, 1)):
        here = slice(row, min(row + height, len(x)))
        rows = pairs.rows.part(here)
        for column in range(row if pairs.gram else 0, len(y), max(width, 1)):
            there = slice(column, min(column + width, len(y)))
            columns = pairs.columns.part(there)
            part = slice(len(rows.matrix)), slice(len(columns.matrix))
            multiply(rows.matrix, columns.matrix.mT, workspace[part])
            diagonal = pairs.gram and row == column
            yield Chunk(here, there, rows, columns, workspace[part], place[part], diagonal)


def multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out = a b, in fp32 for bf16. Autocast leaves alone what is written to a given tensor."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def add_product(target: torch.Tensor, a: torch.Tensor, b: torch.Tensor, spare: torch.Tensor) -> None:
    """target += a b. PyTorch 2.11 does not add a product of bf16 to fp32: it goes through `spare`."""
    if a.dtype == target.dtype:
        torch.addmm(target, a, b, out=target)
    else:
        multiply(a, b, spare[: len(target)])
        target.add_(spare[: len(target)])


class Totals:
    """Vectors [N] that grow by the sums of the blocks of a chunk, or log-sum-exps that do."""

    def __init__(self, pairs: Pairs, logarithms: bool = False):
        self.new_empty = pairs.scale.new_empty
        self.kind = EXPONENTIAL.value if logarithms else SUM.value
        self.start = NOTHING.value if logarithms else 0.0
        self.pending = []

    def vector(self, count: int, wanted: bool = True) -> torch.Tensor | None:
        return self.new_empty(count).fill_(self.start) if wanted else None

    def partials(self, total: torch.Tensor | None, part: slice, blocks: int) -> torch.Tensor | None:
        """[blocks, n] for the next kernel to fill, of a part of a vector that is wanted."""
        if total is None:
            return None
        partials = self.new_empty(blocks, len(total[part]))
        self.pending.append((partials, total[part]))
        return partials

    def merge(self) -> None:
        for partials, total in self.pending:
            grid = (triton.cdiv(len(total), MERGED),)
            merge_kernel[grid](partials, total, *partials.shape, KIND=self.kind, ENTRIES=MERGED)
        self.pending.clear()


def widened(pairs: Pairs) -> Pairs:
    """fp16 in fp32."""
    x, y = pairs.rows.matrix, pairs.columns.matrix
    if x.dtype != torch.float16:
        return pairs
    x, y = x.float(), y.float()
    return pairs._replace(rows=pairs.rows._replace(matrix=x), columns=pairs.columns._replace(matrix=y))


def sums(pairs: Pairs, of_columns: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sums of f, or log-sum-exps, over the pairs of each row and, if wanted, of each column."""
    pairs = widened(pairs)
    totals = Totals(pairs, pairs.reduction.kind == EXPONENTIAL.value)
    of_rows = totals.vector(len(pairs.rows.matrix))
    of_columns = of_rows if pairs.gram else totals.vector(len(pairs.columns.matrix), of_columns)
    for chunk in chunks_of(pairs, with_weights=False):
        rows, columns, (row_blocks, column_blocks) = chunk.rows, chunk.columns, chunk.blocks
        chunk_sums_kernel[chunk.blocks](
            chunk.products, pairs.scale, rows.bias, columns.bias, rows.ids, columns.ids,
            rows.offset, columns.offset,
            totals.partials(of_rows, chunk.here, column_blocks),
            totals.partials(None if chunk.diagonal else of_columns, chunk.there, row_blocks),
            KIND=pairs.reduction.kind, VALUE=pairs.reduction.value, **chunk.sizes,
        )  # fmt: skip
        totals.merge()
    return of_rows, of_columns


def gradients(pairs: Pairs, to_rows: bool, to_columns: bool, values: bool) -> Gradients:
    """One pass over the chunks; of one matrix with itself those off the diagonal serve both sides."""
    pairs = widened(pairs)
    gram, totals, (x, y) = pairs.gram, Totals(pairs), (pairs.rows.matrix, pairs.columns.matrix)
    to_x = pairs.scale.new_zeros(x.shape) if to_rows else None
    to_y = to_x if gram else pairs.scale.new_zeros(y.shape) if to_columns else None
    row_weights, products = totals.vector(len(x)), totals.vector(len(x))
    column_weights = row_weights if gram else totals.vector(len(y), pairs.columns.bias is not None)
    own_weights = totals.vector(len(x), pairs.reduction.kind == SUM.value)
    value_sums = totals.vector(len(x), values)
    spare_rows = min(CHUNK_COLUMNS, max(len(x), len(y))) if x.dtype == torch.bfloat16 else 0
    spare = pairs.scale.new_empty(spare_rows, x.shape[1])
    for chunk in chunks_of(pairs, with_weights=True):
        rows, columns, (row_blocks, column_blocks) = chunk.rows, chunk.columns, chunk.blocks
        once = chunk.diagonal  # the columns of this chunk are its rows
        chunk_weights_kernel[chunk.blocks](
            chunk.products, None if to_x is None and to_y is None else chunk.weights,
            pairs.scale, rows.bias, columns.bias, rows.ids, columns.ids,
            rows.grad, rows.offset, columns.grad, columns.offset,
            totals.partials(row_weights, chunk.here, column_blocks),
            totals.partials(None if once else column_weights, chunk.there, row_blocks),
            totals.partials(own_weights, chunk.here, column_blocks),
            totals.partials(own_weights if gram and not once else None, chunk.there, row_blocks),
            totals.partials(products, chunk.here, column_blocks),
            totals.partials(value_sums, chunk.here, column_blocks),
            KIND=pairs.reduction.kind, VALUE=pairs.reduction.value, SLOPE=pairs.reduction.slope,
            DIAGONAL=once, **chunk.sizes,
        )  # fmt: skip
        totals.merge()
        if to_x is not None:
            add_product(to_x[chunk.here], chunk.weights, columns.matrix, spare)
        if to_y is not None and not once:
            add_product(to_y[chunk.there], chunk.weights.mT, rows.matrix, spare)
    return Gradients(
        to_x, None if gram else to_y, row_weights, None if gram else column_weights, own_weights,
        products.sum(dtype=torch.float64), value_sums,
    )  # fmt: skip
