"""Sinkhorn's normalisation in Triton; sinkhorn.h has the formulas and why no logarithm sees 0.

A pass over the logits takes two launches that read them: one finds the normaliser of each row, one adds up
columns over a block of BLOCK_ROWS rows, or writes the codes. The column sums of the blocks are added in
their order by a last, small launch, so there are no atomics and the bits are the same in every run. UNIT
tells Triton how rows are aligned; see tile.py.
"""

import torch
import triton
import triton.language as tl

from ..common.functions import lowest
from ..common.tile import NUM_WARPS, unit_of

LOG2_OF_E = 1.4426950408889634
BLOCK_ROWS, ROWS, COLUMNS = 64, 8, 128
ROW_COLUMNS = 1024
DO_NOT_SPECIALIZE = ["num_rows", "num_units", "num_blocks", "scale"]


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def sinkhorn_block_maxima_kernel(
    logits,
    maxima,
    sums,
    scale: tl.float64,
    num_rows: tl.int64,
    num_units: tl.int64,
    UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Maxima of the columns of a block of rows, and sums of 2^((l - maximum) scale). [blocks, K]"""
    dtype = maxima.dtype.element_ty
    num_columns = num_units * UNIT
    scale = tl.full((), scale, tl.float64).to(dtype)
    block = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < num_columns
    maximum = tl.full((COLUMNS,), lowest(dtype), dtype)
    total = tl.zeros((COLUMNS,), dtype)
    for start in range(0, BLOCK_ROWS, ROWS):
        rows = block * BLOCK_ROWS + start + tl.arange(0, ROWS)[:, None]
        mask = (rows < num_rows) & inside[None, :]
        offsets = rows * num_columns + columns[None, :]
        tile = tl.load(logits + offsets, mask=mask, other=float("-inf")).to(dtype)
        largest = tl.maximum(maximum, tl.max(tile, axis=0))
        total *= tl.exp2((maximum - largest) * scale)
        total += tl.sum(tl.exp2((tile - largest[None, :]) * scale), axis=0)
        maximum = largest
    tl.store(maxima + block * num_columns + columns, maximum, mask=inside)
    tl.store(sums + block * num_columns + columns, total, mask=inside)


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def sinkhorn_merge_kernel(
    block_maxima,
    block_sums,
    maximum,
    sums,
    scale: tl.float64,
    num_blocks: tl.int64,
    num_units: tl.int64,
    UNIT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Columns of all blocks: of maxima and sums, or of sums alone where `block_maxima` is None."""
    dtype = sums.dtype.element_ty
    num_columns = num_units * UNIT
    scale = tl.full((), scale, tl.float64).to(dtype)
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < num_columns
    total = tl.zeros((COLUMNS,), dtype)
    if block_maxima is not None:
        largest = tl.full((COLUMNS,), lowest(dtype), dtype)
        offsets = columns
        for _ in range(0, num_blocks):
            largest = tl.maximum(largest, tl.load(block_maxima + offsets, mask=inside, other=0.0))
            offsets += num_columns
        tl.store(maximum + columns, largest, mask=inside)
    offsets = columns
    for _ in range(0, num_blocks):
        part = tl.load(block_sums + offsets, mask=inside, other=0.0)
        if block_maxima is not None:
            own = tl.load(block_maxima + offsets, mask=inside, other=0.0)
            part *= tl.exp2((own - largest) * scale)
        total += part
        offsets += num_columns
    tl.store(sums + columns, total, mask=inside)


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def sinkhorn_rows_kernel(
    logits,
    maximum,
    offset,
    largest_of_rows,
    sums_of_rows,
    scale: tl.float64,
    num_units: tl.int64,
    UNIT: tl.constexpr,
    ROW_COLUMNS: tl.constexpr,
):
    """The largest y of a row, and the sum of 2^(y - largest)."""
    dtype = maximum.dtype.element_ty
    num_columns = num_units * UNIT
    scale = tl.full((), scale, tl.float64).to(dtype)
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, ROW_COLUMNS).to(tl.int64)
    largest = tl.full((ROW_COLUMNS,), lowest(dtype), dtype)
    total = tl.zeros((ROW_COLUMNS,), dtype)
    for start in range(0, num_columns, ROW_COLUMNS):
        columns = start + lanes
        mask = columns < num_columns
        tile = tl.load(logits + row * num_columns + columns, mask=mask, other=float("-inf")).to(dtype)
        m = tl.load(maximum + columns, mask=mask, other=0.0)
        r = tl.load(offset + columns, mask=mask, other=0.0)
        y = (tile - m) * scale + r
        higher = tl.maximum(largest, y)
        total = total * tl.exp2(largest - higher) + tl.exp2(y - higher)
        largest = higher
    highest = tl.max(largest, axis=0)
    tl.store(largest_of_rows + row, highest)
    tl.store(sums_of_rows + row, tl.sum(total * tl.exp2(largest - highest), axis=0))


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def sinkhorn_columns_kernel(
    logits,
    maximum,
    offset,
    largest_of_rows,
    sums_of_rows,
    block_sums,
    codes,
    scale: tl.float64,
    num_rows: tl.int64,
    num_units: tl.int64,
    UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The codes 2^(y - largest) / sum of a block of rows, or where `codes` is None their column sums."""
    dtype = maximum.dtype.element_ty
    num_columns = num_units * UNIT
    scale = tl.full((), scale, tl.float64).to(dtype)
    block = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < num_columns
    m = tl.load(maximum + columns, mask=inside, other=0.0)
    r = tl.load(offset + columns, mask=inside, other=0.0)
    total = tl.zeros((COLUMNS,), dtype)
    for start in range(0, BLOCK_ROWS, ROWS):
        rows = block * BLOCK_ROWS + start + tl.arange(0, ROWS)[:, None]
        present = rows < num_rows
        mask = present & inside[None, :]
        offsets = rows * num_columns + columns[None, :]
        tile = tl.load(logits + offsets, mask=mask, other=float("-inf")).to(dtype)
        y = (tile - m[None, :]) * scale + r[None, :]
        largest = tl.load(largest_of_rows + rows, mask=present, other=0.0)
        normaliser = 1.0 / tl.load(sums_of_rows + rows, mask=present, other=1.0)
        code = tl.exp2(y - largest) * normaliser
        if codes is not None:
            tl.store(codes + offsets, code.to(codes.dtype.element_ty), mask=mask)
        else:
            total += tl.sum(code, axis=0)
    if codes is None:
        tl.store(block_sums + block * num_columns + columns, total, mask=inside)


class _Passes:
    """The launches of one call."""

    def __init__(self, logits: torch.Tensor, epsilon: float):
        self.logits = logits.contiguous()
        self.rows, self.columns = logits.shape
        self.scale = LOG2_OF_E / epsilon
        self.blocks = triton.cdiv(self.rows, BLOCK_ROWS)
        self.column_programs = triton.cdiv(self.columns, COLUMNS)
        # Both launches of a pass must round y alike.
        unit = unit_of(self.columns)
        self.options = {"num_units": self.columns // unit, "UNIT": unit}
        self.options |= {"num_warps": NUM_WARPS, "enable_fp_fusion": False}
        self.tile = {"BLOCK_ROWS": BLOCK_ROWS, "ROWS": ROWS, "COLUMNS": COLUMNS} | self.options

    def empty(self, *shape: int) -> torch.Tensor:
        dtype = torch.float64 if self.logits.dtype == torch.float64 else torch.float32
        return self.logits.new_empty(shape, dtype=dtype)

    def maxima(self):
        shape = (self.blocks, self.columns)
        block_maxima, block_sums = self.empty(*shape), self.empty(*shape)
        maximum, sums = self.empty(self.columns), self.empty(self.columns)
        if self.blocks:
            sinkhorn_block_maxima_kernel[(self.column_programs, self.blocks)](
                self.logits, block_maxima, block_sums, self.scale, self.rows, **self.tile
            )
        self.merge(block_maxima, block_sums, maximum, sums)
        return maximum, sums

    def merge(self, block_maxima, block_sums, maximum, sums) -> None:
        sinkhorn_merge_kernel[(self.column_programs,)](
            block_maxima, block_sums, maximum, sums, self.scale, self.blocks,
            COLUMNS=COLUMNS, **self.options,
        )  # fmt: skip

    def over_rows(self, maximum, offset, block_sums, codes) -> None:
        if self.rows == 0:
            return
        largest, sums = self.empty(self.rows), self.empty(self.rows)
        sinkhorn_rows_kernel[(self.rows,)](
            self.logits, maximum, offset, largest, sums, self.scale,
            ROW_COLUMNS=ROW_COLUMNS, **self.options,
        )  # fmt: skip
        sinkhorn_columns_kernel[(self.column_programs, self.blocks)](
            self.logits, maximum, offset, largest, sums, block_sums, codes,
            self.scale, self.rows, **self.tile,
        )  # fmt: skip

    def sums(self, maximum, offset):
        block_sums, sums = self.empty(self.blocks, self.columns), self.empty(self.columns)
        self.over_rows(maximum, offset, block_sums, None)
        self.merge(None, block_sums, None, sums)
        return sums

    def codes(self, maximum, offset):
        codes = torch.empty_like(self.logits)
        self.over_rows(maximum, offset, None, codes)
        return codes


def sinkhorn_maxima(logits, epsilon):
    """Largest entries of the columns, and their sums of exponentials."""
    with torch.cuda.device_of(logits):
        return _Passes(logits, epsilon).maxima()


def sinkhorn_sums(logits, maximum, offset, epsilon):
    """Column sums of the rows' softmax."""
    with torch.cuda.device_of(logits):
        return _Passes(logits, epsilon).sums(maximum.contiguous(), offset.contiguous())


def sinkhorn_codes(logits, maximum, offset, epsilon):
    """The rows' softmax."""
    with torch.cuda.device_of(logits):
        return _Passes(logits, epsilon).codes(maximum.contiguous(), offset.contiguous())


def sinkhorn(logits, epsilon, iterations):
    """Codes [B, K]."""
    with torch.cuda.device_of(logits):
        passes = _Passes(logits, epsilon)
        maximum, sums = passes.maxima()
        offset = -torch.log2(sums)
        for _ in range(1, iterations):
            sums = passes.sums(maximum, offset)
            offset -= torch.log2(sums / sums.mean())
        return passes.codes(maximum, offset)
