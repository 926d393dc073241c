"""Reductions over pairs and their gradients, fused whole: for rows that registers can hold.

A program holds a block of rows [ROWS, D] and walks over blocks of columns [COLUMNS, D]: scores by
tensor cores, terms in registers, online log-sum-exps or sums, and for gradients a second product
into sums [ROWS, D] that stay in registers. Sums over columns are the transposed problem, so each
number has one writer, with a fixed order and no atomics.

Where rows alone give too few programs, columns are split, and the partial results of the splits
added in order. The splits depend on the shape alone, and their memory is bounded by PROGRAMS blocks
of rows.

Operations, with N = M: log-sum-exps 2 N^2 D for each direction, gradients 4 N^2 D for each; of one
matrix with itself one direction is all, 6 N^2 D in place of the 4 of pair_chunks.py, which stores
scores instead.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .pair_terms import (
    EXPONENTIAL,
    LOGISTIC,
    NOTHING,
    SUM,
    Gradients,
    Pairs,
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

PROGRAMS = 512  # several for each multiprocessor of an H200 (132)
LEAST_BLOCKS = 4  # blocks of columns that a split is worth
COUNTS = ["num_rows", "num_columns", "split_columns"]


@triton.jit
def load_block(matrix, rows, present, depth, DEPTH: tl.constexpr):
    """[rows, DEPTH], 0 beyond the matrix."""
    k = tl.arange(0, DEPTH)
    offsets = rows.to(tl.int64)[:, None] * depth + k[None, :]
    return tl.load(matrix + offsets, mask=present[:, None] & (k < depth)[None, :], other=0.0)


@triton.jit
def _product_into(sums, weights, block):
    """sums + weights block. tf32 holds every fp16 number, and weights that fp16 would lose."""
    if block.dtype == tl.float16:
        sums = tl.dot(weights, block.to(tl.float32), sums, input_precision="tf32")
    else:
        sums = tl.dot(weights.to(block.dtype), block, sums, input_precision="ieee")
    return sums


@triton.jit(do_not_specialize=COUNTS)
def row_sums_kernel(
    x,
    y,
    scale,
    row_bias,
    column_bias,
    row_ids,
    column_ids,
    row_offset,
    sums,
    num_rows,
    num_columns,
    split_columns,
    depth,
    KIND: tl.constexpr,
    VALUE: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """sums[split, row]: of f, or the log-sum-exp, over the columns of the split."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_present = rows < num_rows
    begin = tl.program_id(1) * split_columns
    end = tl.minimum(begin + split_columns, num_columns)
    x_block = load_block(x, rows, row_present, depth, DEPTH)
    factor = tl.load(scale)
    bias_of_rows = load_numbers(row_bias, rows, row_present)
    offset = load_offset(row_offset, rows, row_present, KIND)
    if offset is not None:
        offset = offset[:, None]
    largest = tl.full((ROWS,), NOTHING, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(begin, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        present = columns < end
        y_block = load_block(y, columns, present, depth, DEPTH)
        products = tl.dot(x_block, tl.trans(y_block), input_precision="ieee")
        logits = logits_of(products, factor, bias_of_rows, load_numbers(column_bias, columns, present))
        same = same_ids(row_ids, column_ids, rows, columns, row_present, present)
        keep = kept(same, present[None, :], KIND)
        if KIND == EXPONENTIAL:
            more_largest, more_total = log_sums(tl.where(keep, logits, NOTHING), 1)
            largest, total = add_log(largest, total, more_largest, more_total)
        else:
            total += tl.sum(terms_of(logits, same, keep, offset, KIND, VALUE), axis=1)
    if KIND == EXPONENTIAL:
        total = log_of(largest, total)
    tl.store(sums + tl.program_id(1).to(tl.int64) * num_rows + rows, total, mask=row_present)


@triton.jit(do_not_specialize=COUNTS)
def row_gradients_kernel(
    x,
    y,
    scale,
    row_bias,
    column_bias,
    row_ids,
    column_ids,
    row_grad,
    row_offset,
    column_grad,
    column_offset,
    to_x,
    weight_sums,
    own_sums,
    product_sums,
    value_sums,
    num_rows,
    num_columns,
    split_columns,
    depth,
    KIND: tl.constexpr,
    VALUE: tl.constexpr,
    SLOPE: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """to_x[split, row, D] and sums[split, row] of Gradients over the columns of the split."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_present = rows < num_rows
    begin = tl.program_id(1) * split_columns
    end = tl.minimum(begin + split_columns, num_columns)
    x_block = load_block(x, rows, row_present, depth, DEPTH)
    factor = tl.load(scale)
    bias_of_rows = load_numbers(row_bias, rows, row_present)
    grad_of_rows = load_numbers(row_grad, rows, row_present)
    offset_of_rows = load_offset(row_offset, rows, row_present, KIND)
    sums = tl.zeros((ROWS, DEPTH), tl.float32)
    weight_total = tl.zeros((ROWS,), tl.float32)
    own_total = tl.zeros((ROWS,), tl.float32)
    product_total = tl.zeros((ROWS,), tl.float32)
    value_total = tl.zeros((ROWS,), tl.float32)
    for start in range(begin, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        present = columns < end
        y_block = load_block(y, columns, present, depth, DEPTH)
        products = tl.dot(x_block, tl.trans(y_block), input_precision="ieee")
        logits = logits_of(products, factor, bias_of_rows, load_numbers(column_bias, columns, present))
        same = same_ids(row_ids, column_ids, rows, columns, row_present, present)
        keep = kept(same, present[None, :], KIND)
        if value_sums is not None:
            value_total += tl.sum(terms_of(logits, same, keep, None, KIND, VALUE), axis=1)
        own, other = both_weights(
            logits, same, keep, grad_of_rows, offset_of_rows,
            load_numbers(column_grad, columns, present),
            load_offset(column_offset, columns, present, KIND), KIND, SLOPE,
        )  # fmt: skip
        weights = own + other
        if weight_sums is not None:
            weight_total += tl.sum(weights, axis=1)
        if own_sums is not None:
            own_total += tl.sum(own, axis=1)
        if product_sums is not None:
            product_total += tl.sum(weights * products, axis=1)
        if to_x is not None:
            sums = _product_into(sums, weights, y_block)
    target = tl.program_id(1).to(tl.int64) * num_rows + rows
    if weight_sums is not None:
        tl.store(weight_sums + target, weight_total, mask=row_present)
    if own_sums is not None:
        tl.store(own_sums + target, own_total, mask=row_present)
    if product_sums is not None:
        tl.store(product_sums + target, product_total, mask=row_present)
    if value_sums is not None:
        tl.store(value_sums + target, value_total, mask=row_present)
    if to_x is not None:
        k = tl.arange(0, DEPTH)
        inside = row_present[:, None] & (k < depth)[None, :]
        tl.store(to_x + target[:, None] * depth + k[None, :], sums, mask=inside)


class Blocks(NamedTuple):
    depth: int  # D up to a power of two
    rows: int
    columns: int
    warps: int
    stages: int


def blocks_of(depth: int, dtype: torch.dtype, kind: int) -> Blocks:
    """Sizes that keep the compiled kernels within 255 registers without spills, from sm_80 on."""
    depth = max(16, triton.next_power_of_2(depth))
    if dtype == torch.float32 or depth > 128:
        return Blocks(depth, 64, 32, 8, 2)
    # The sigmoid loss holds its terms beside its weights.
    return Blocks(depth, 128, 32 if kind == LOGISTIC.value and depth > 64 else 64, 8 if depth > 64 else 4, 2)


class Launch(NamedTuple):
    """Rows and splits of columns of one direction."""

    splits: int
    grid: tuple[int, int]
    arguments: dict[str, int]


def launch_of(pairs: Pairs) -> Launch:
    (num_rows, depth), num_columns = pairs.rows.matrix.shape, len(pairs.columns.matrix)
    blocks = blocks_of(depth, pairs.rows.matrix.dtype, pairs.reduction.kind)
    row_blocks = triton.cdiv(num_rows, blocks.rows)
    column_blocks = max(triton.cdiv(num_columns, blocks.columns), 1)
    most = triton.cdiv(column_blocks, LEAST_BLOCKS)
    splits = min(triton.cdiv(PROGRAMS, max(row_blocks, 1)), most)
    blocks_each = triton.cdiv(column_blocks, splits)
    splits = triton.cdiv(column_blocks, blocks_each)
    arguments = {
        "num_rows": num_rows,
        "num_columns": num_columns,
        "split_columns": blocks_each * blocks.columns,
        "depth": depth,
        "KIND": pairs.reduction.kind,
        "VALUE": pairs.reduction.value,
        "DEPTH": blocks.depth,
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
    return Launch(splits, (row_blocks, splits), arguments)


def transposed(pairs: Pairs) -> Pairs:
    return pairs._replace(rows=pairs.columns, columns=pairs.rows)


def sums(pairs: Pairs, of_columns: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sums of f, or log-sum-exps, over the pairs of each row and, if wanted, of each column."""
    return _row_sums(pairs), _row_sums(transposed(pairs)) if of_columns else None


def _scores(pairs: Pairs) -> tuple:
    """What a score is made of, in the kernels' order."""
    rows, columns = pairs.rows, pairs.columns
    return rows.matrix, columns.matrix, pairs.scale, rows.bias, columns.bias, rows.ids, columns.ids


def _row_sums(pairs: Pairs) -> torch.Tensor:
    launch = launch_of(pairs)
    found = pairs.scale.new_empty(launch.splits, len(pairs.rows.matrix))
    row_sums_kernel[launch.grid](*_scores(pairs), pairs.rows.offset, found, **launch.arguments)
    if launch.splits == 1:
        return found[0]
    return found.logsumexp(0) if pairs.reduction.kind == EXPONENTIAL.value else found.sum(0)


def gradients(pairs: Pairs, to_rows: bool, to_columns: bool, values: bool) -> Gradients:
    own = pairs.reduction.kind == SUM.value
    rows = _row_gradients(pairs, to_rows, True, own, True, values)
    columns = (None, None)
    column_weights = pairs.columns.bias is not None
    if not pairs.gram and (to_columns or column_weights):
        columns = _row_gradients(transposed(pairs), to_columns, column_weights, False, False, False)
    products = rows[3].sum(dtype=torch.float64)
    return Gradients(rows[0], columns[0], rows[1], columns[1], rows[2], products / (1 + pairs.gram), rows[4])


def _row_gradients(pairs: Pairs, to_x: bool, *stats: bool) -> tuple[torch.Tensor | None, ...]:
    """Sums [N, D], then [N] of the wanted of weights, own weights, products and values."""
    launch, rows, columns = launch_of(pairs), pairs.rows, pairs.columns
    shape = launch.splits, *rows.matrix.shape
    found = [pairs.scale.new_empty(shape) if to_x else None]
    found += [pairs.scale.new_empty(shape[:2]) if wanted else None for wanted in stats]
    row_gradients_kernel[launch.grid](
        *_scores(pairs), rows.grad, rows.offset, columns.grad, columns.offset, *found,
        SLOPE=pairs.reduction.slope, **launch.arguments,
    )  # fmt: skip
    return tuple(f if f is None else f[0] if launch.splits == 1 else f.sum(0) for f in found)
