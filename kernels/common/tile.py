"""How the elementwise Triton kernels cut a batch [B, ...] into tiles of [ROWS, COLUMNS].

A row is a sample and a column an element of it, so that one program needs one Philox counter per
row and no division per element. Long samples give tiles of one row, short ones of many. The cut
depends on the sample's size alone, never on the batch or the device: a sample is computed in the
same order wherever it stands.

The size of a sample arrives as `num_units` * UNIT, UNIT being the largest power of two up to 8
that divides it: the factor tells Triton how addresses and masks are aligned, hence that 16-byte
loads are legal.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

TILE_ELEMENTS = 1024
NUM_WARPS = 4


def unit_of(size: int) -> int:
    """The largest power of two up to 8 that divides a size."""
    return math.gcd(size, 8)


class Tiling(NamedTuple):
    num_samples: int
    sample_size: int
    rows: int
    columns: int

    @property
    def chunks(self) -> int:
        """Tiles that one sample spans."""
        return triton.cdiv(self.sample_size, self.columns)

    @property
    def grid(self) -> tuple[int]:
        return (triton.cdiv(self.num_samples, self.rows) * self.chunks,)

    @property
    def unit(self) -> int:
        return unit_of(self.sample_size)

    @property
    def arguments(self) -> dict[str, int]:
        """What `tile_indices` takes, by name."""
        return {
            "num_samples": self.num_samples,
            "num_units": self.sample_size // self.unit,
            "UNIT": self.unit,
            "ROWS": self.rows,
            "COLUMNS": self.columns,
        }


def tiling_of(x: torch.Tensor) -> Tiling:
    num_samples = x.shape[0] if x.dim() else 1
    sample_size = x.numel() // max(num_samples, 1)
    columns = min(max(triton.next_power_of_2(sample_size), 4), TILE_ELEMENTS)
    return Tiling(num_samples, sample_size, TILE_ELEMENTS // columns, columns)


@triton.jit
def tile_indices(num_samples, num_units, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's rows [ROWS, 1] ([] if ROWS is 1), first column, offsets and mask, int64."""
    sample_size = num_units * UNIT
    chunks = tl.cdiv(sample_size, COLUMNS).to(tl.int32)
    program = tl.program_id(0)
    rows = (program // chunks).to(tl.int64) * ROWS
    if ROWS > 1:
        rows += tl.arange(0, ROWS)[:, None]
    first_column = (program % chunks).to(tl.int64) * COLUMNS
    columns = first_column + tl.arange(0, COLUMNS)[None, :]
    mask = (rows < num_samples) & (columns < sample_size)
    return rows, first_column, rows * sample_size + columns, mask


@triton.jit
def scalar_or_tensor(value, tensor):
    """A 64-bit integer that a tensor on the device, where there is one, overrides."""
    if tensor is not None:
        value = tl.load(tensor)
    return value.to(tl.int64)
