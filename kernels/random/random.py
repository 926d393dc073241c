"""Uniform, normal and Rademacher numbers in Triton, written once, 16 bytes a store.

A program fills a tile of [ROWS, COLUMNS]; each Philox call makes four consecutive elements.
"""

import torch
import triton
import triton.language as tl

from ..common.philox import random_tile
from ..common.tile import NUM_WARPS, scalar_or_tensor, tile_indices, tiling_of


@triton.jit(do_not_specialize=["seed", "step", "first_sample", "num_samples", "num_units"])
def random_kernel(
    out,
    seed: tl.int64,
    seed_tensor,
    step: tl.int64,
    step_tensor,
    first_sample: tl.int64,
    num_samples: tl.int64,
    num_units: tl.int64,
    DISTRIBUTION: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows, first_column, offsets, mask = tile_indices(num_samples, num_units, UNIT, ROWS, COLUMNS)
    seed = scalar_or_tensor(seed, seed_tensor)
    step = scalar_or_tensor(step, step_tensor)
    numbers = random_tile(seed, step, first_sample + rows, first_column, COLUMNS, DISTRIBUTION)
    tl.store(out + offsets, numbers.to(out.dtype.element_ty), mask=mask)


def random(out, distribution, seed, seed_tensor, step, step_tensor, first_sample) -> None:
    """Fill contiguous `out` [B, ...]; distribution 0 uniform, 1 normal, 2 Rademacher."""
    if out.numel() == 0:
        return
    tiling = tiling_of(out)
    with torch.cuda.device_of(out):
        random_kernel[tiling.grid](
            out,
            seed,
            seed_tensor,
            step,
            step_tensor,
            first_sample,
            DISTRIBUTION=distribution,
            **tiling.arguments,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
