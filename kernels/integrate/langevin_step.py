"""Langevin step with a step size per sample, in Triton.

    x' = x + eps s + sqrt(2 eps) z,   eps given, or 2 alpha (snr |z| / |s|)^2

A sample that fits in one tile [ROWS, COLUMNS] is read, normed and updated in one pass. A longer
one takes two: the first leaves the sums of squares of each tile; the second adds a sample's sums
in a fixed order and draws the same noise again, which costs less than writing and reading it.
The partition depends on the sample's size alone and there are no atomics, so results are the
same bits in every run and batch. Squares are summed in fp64: they neither overflow nor lose the
tail of a long sample.
"""

import math

import torch
import triton
import triton.language as tl

from ..common.philox import NORMAL, random_tile
from ..common.tile import NUM_WARPS, scalar_or_tensor, tile_indices, tiling_of

PARTIALS_BLOCK = tl.constexpr(128)
DO_NOT_SPECIALIZE = ["seed", "step", "first_sample", "num_samples", "num_units"]


@triton.jit
def _noise_tile(noise, offsets, mask, seed, step, sample, first_column, COLUMNS: tl.constexpr):
    if noise is not None:
        tile = tl.load(noise + offsets, mask=mask, other=0.0)
    else:
        tile = random_tile(seed, step, sample, first_column, COLUMNS, NORMAL)
    return tile


@triton.jit
def _sum_of_squares(tile, mask):
    """[ROWS, 1] in fp64."""
    tile = tl.where(mask, tile, 0.0).to(tl.float64)
    return tl.sum(tile * tile, axis=1, keep_dims=True)


@triton.jit
def _step_size(factor, noise_square, score_square):
    """2 alpha snr^2 |z|^2 / |s|^2, and 0 where the score vanishes."""
    at_rest = score_square == 0
    return tl.where(at_rest, 0.0, factor * noise_square / tl.where(at_rest, 1.0, score_square))


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def langevin_squares_kernel(
    score,
    noise,
    squares,
    seed: tl.int64,
    seed_tensor,
    step: tl.int64,
    step_tensor,
    first_sample: tl.int64,
    num_samples: tl.int64,
    num_units: tl.int64,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """squares[program] = (|z|^2, |s|^2) of the program's tile, which has one row."""
    rows, first_column, offsets, mask = tile_indices(num_samples, num_units, UNIT, ROWS, COLUMNS)
    score_tile = tl.load(score + offsets, mask=mask, other=0.0)
    seed = scalar_or_tensor(seed, seed_tensor)
    step = scalar_or_tensor(step, step_tensor)
    sample = first_sample + rows
    noise_tile = _noise_tile(noise, offsets, mask, seed, step, sample, first_column, COLUMNS)
    target = squares + 2 * tl.program_id(0).to(tl.int64) + tl.zeros((ROWS, 1), tl.int64)
    tl.store(target, _sum_of_squares(noise_tile, mask))
    tl.store(target + 1, _sum_of_squares(score_tile, mask))


@triton.jit
def _sample_squares(squares, row, chunks):
    """(|z|^2, |s|^2) of a sample from those of its tiles, always added in the same order."""
    first = squares + 2 * row * chunks
    lane = tl.arange(0, PARTIALS_BLOCK)
    noise_square = tl.zeros((PARTIALS_BLOCK,), tl.float64)
    score_square = tl.zeros((PARTIALS_BLOCK,), tl.float64)
    for start in range(0, chunks, PARTIALS_BLOCK):
        present = start + lane < chunks
        noise_square += tl.load(first + 2 * (start + lane), mask=present, other=0.0)
        score_square += tl.load(first + 2 * (start + lane) + 1, mask=present, other=0.0)
    return tl.sum(noise_square, axis=0), tl.sum(score_square, axis=0)


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def langevin_update_kernel(
    x,
    score,
    noise,
    squares,
    next_x,
    factor: tl.float64,
    seed: tl.int64,
    seed_tensor,
    step: tl.int64,
    step_tensor,
    first_sample: tl.int64,
    num_samples: tl.int64,
    num_units: tl.int64,
    ADAPTIVE: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`factor` is 2 alpha snr^2 if ADAPTIVE, else eps; no `squares` where tiles hold samples."""
    dtype = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    rows, first_column, offsets, mask = tile_indices(num_samples, num_units, UNIT, ROWS, COLUMNS)
    x_tile = tl.load(x + offsets, mask=mask, other=0.0).to(dtype)
    score_tile = tl.load(score + offsets, mask=mask, other=0.0).to(dtype)
    seed = scalar_or_tensor(seed, seed_tensor)
    step = scalar_or_tensor(step, step_tensor)
    sample = first_sample + rows
    noise_tile = _noise_tile(noise, offsets, mask, seed, step, sample, first_column, COLUMNS)
    noise_tile = noise_tile.to(dtype)

    epsilon = tl.full((), factor, tl.float64)
    if ADAPTIVE:
        if squares is None:
            noise_square = _sum_of_squares(noise_tile, mask)
            score_square = _sum_of_squares(score_tile, mask)
        else:
            chunks = tl.cdiv(num_units * UNIT, COLUMNS).to(tl.int32)
            noise_square, score_square = _sample_squares(squares, rows, chunks)
        epsilon = _step_size(epsilon, noise_square, score_square)

    total = tl.fma(score_tile, epsilon.to(dtype), x_tile)
    total = tl.fma(noise_tile, tl.sqrt(2.0 * epsilon).to(dtype), total)
    tl.store(next_x + offsets, total.to(next_x.dtype.element_ty), mask=mask)


def langevin_step(
    x, score, noise, snr, step_size, alpha, seed, seed_tensor, step, step_tensor, first_sample
) -> torch.Tensor:
    """x' [B, ...], contiguous. Exactly one of `snr` and `step_size` is not NaN."""
    next_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return next_x
    tiling = tiling_of(x)
    adaptive = not math.isnan(snr)
    factor = 2.0 * alpha * snr**2 if adaptive else step_size
    x, score = x.contiguous(), score.contiguous()
    noise = None if noise is None else noise.contiguous()
    counter = (seed, seed_tensor, step, step_tensor, first_sample)
    options = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}
    squares = None
    with torch.cuda.device_of(x):
        if adaptive and tiling.chunks > 1:
            squares = x.new_empty((*tiling.grid, 2), dtype=torch.float64)
            langevin_squares_kernel[tiling.grid](
                score, noise, squares, *counter, **tiling.arguments, **options
            )
        langevin_update_kernel[tiling.grid](
            x,
            score,
            noise,
            squares,
            next_x,
            factor,
            *counter,
            ADAPTIVE=adaptive,
            **tiling.arguments,
            **options,
        )
    return next_x
