"""One row of a coefficient table applied to a batch, in Triton, in one pass over memory.

    prediction = clip(d0 x + d1 output)
    x' = sum_j a_j state_j + sum_j b_j prediction_j + e output + c noise

A program takes a tile of [ROWS, COLUMNS], reads every stream once, 16 bytes a load, and draws the
noise in registers: one Philox call makes four neighbouring elements. A program whose noise
coefficients are all zero draws none. The table stays on the device, so neither row numbers in a
tensor nor a replayed CUDA graph need the host.

Compiled for sm_90 in fp32 with noise: 40 registers, hence 48 warps a multiprocessor; 64 bytes in
flight a thread, since all loads precede the first store; about 70 instructions an element.
"""

import torch
import triton
import triton.language as tl

from ..common.philox import NORMAL, random_tile
from ..common.tile import NUM_WARPS, scalar_or_tensor, tile_indices, tiling_of


@triton.jit
def _coefficient(row, COLUMN: tl.constexpr, dtype: tl.constexpr):
    return tl.load(row + COLUMN).to(dtype)


@triton.jit
def _table_row(index, index_tensor, index_stride, num_table_rows, rows, mask):
    """Row of the table for every sample of the tile; one outside the table is clamped."""
    if index_tensor is not None:
        index = tl.load(index_tensor + rows * index_stride, mask=mask, other=0)
        index = tl.minimum(tl.maximum(index, 0), num_table_rows - 1)
    return index


@triton.jit
def _clip(values, bound):
    """Comparisons, unlike minimum and maximum, let a NaN through."""
    values = tl.where(values > bound, bound, values)
    return tl.where(values < -bound, -bound, values)


@triton.jit
def _add_history(total, entries, row, FIRST: tl.constexpr, offsets, mask, dtype: tl.constexpr):
    """Adds earlier states or predictions, weighted by the columns from FIRST on."""
    for j in tl.static_range(len(entries)):
        entry = tl.load(entries[j] + offsets, mask=mask, other=0.0).to(dtype)
        total = tl.fma(entry, _coefficient(row, FIRST + j, dtype), total)
    return total


@triton.jit(
    do_not_specialize=[
        "num_table_rows",
        "index",
        "index_stride",
        "seed",
        "step",
        "first_sample",
        "num_samples",
        "num_units",
    ]
)
def sampler_step_kernel(
    x,
    model_output,
    predictions,
    states,
    noise,
    next_x,
    prediction,
    coefficients,
    num_table_rows: tl.int64,
    index: tl.int64,
    index_tensor,
    index_stride: tl.int64,
    clip: tl.float64,
    seed: tl.int64,
    seed_tensor,
    step: tl.int64,
    step_tensor,
    first_sample: tl.int64,
    num_samples: tl.int64,
    num_units: tl.int64,
    NUM_STATES: tl.constexpr,
    NUM_PREDICTIONS: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    dtype = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    OUTPUT: tl.constexpr = NUM_STATES + NUM_PREDICTIONS
    rows, first_column, offsets, mask = tile_indices(num_samples, num_units, UNIT, ROWS, COLUMNS)
    index = _table_row(index, index_tensor, index_stride, num_table_rows, rows, rows < num_samples)
    row = coefficients + index * (OUTPUT + 6)
    x_tile = tl.load(x + offsets, mask=mask, other=0.0).to(dtype)
    output_tile = tl.load(model_output + offsets, mask=mask, other=0.0).to(dtype)

    bound = tl.full((), clip, dtype)
    bound = tl.where(bound == bound, bound, _coefficient(row, OUTPUT + 4, dtype))
    new = x_tile * _coefficient(row, OUTPUT + 2, dtype)
    new = tl.fma(output_tile, _coefficient(row, OUTPUT + 3, dtype), new)
    new = _clip(new, bound)

    total = x_tile * _coefficient(row, 0, dtype)
    total = _add_history(total, states, row, 1, offsets, mask, dtype)
    if NUM_PREDICTIONS > 0:
        total = tl.fma(new, _coefficient(row, NUM_STATES, dtype), total)
    total = _add_history(total, predictions, row, NUM_STATES + 1, offsets, mask, dtype)
    total = tl.fma(output_tile, _coefficient(row, OUTPUT, dtype), total)
    scale = _coefficient(row, OUTPUT + 1, dtype)
    # After the loads, which do not move above a store; before the noise, which needs the registers.
    tl.store(prediction + offsets, new.to(prediction.dtype.element_ty), mask=mask)

    if noise is not None:
        noise_tile = tl.load(noise + offsets, mask=mask, other=0.0).to(dtype)
        total = tl.fma(noise_tile, scale, total)
    else:
        drawn = scale != 0
        if index_tensor is not None and ROWS > 1:
            drawn = tl.sum(drawn.to(tl.int32)) > 0
        if drawn:
            seed = scalar_or_tensor(seed, seed_tensor)
            step = scalar_or_tensor(step, step_tensor)
            sample = first_sample + rows
            noise_tile = random_tile(seed, step, sample, first_column, COLUMNS, NORMAL)
            total = tl.fma(noise_tile.to(dtype), scale, total)
    tl.store(next_x + offsets, total.to(next_x.dtype.element_ty), mask=mask)


def sampler_step(
    x, model_output, predictions, states, noise, coefficients, index, index_tensor, num_states,
    clip, seed, seed_tensor, step, step_tensor, first_sample,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(x', prediction), both [B, ...] and contiguous. `coefficients` is fp64 [N, S + M + 6]."""
    next_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    prediction = sampler_step_out(
        x, model_output, predictions, states, noise, coefficients, index, index_tensor, num_states,
        clip, seed, seed_tensor, step, step_tensor, first_sample, next_x,
    )  # fmt: skip
    return next_x, prediction


def sampler_step_out(
    x, model_output, predictions, states, noise, coefficients, index, index_tensor, num_states,
    clip, seed, seed_tensor, step, step_tensor, first_sample, out,
) -> torch.Tensor:  # fmt: skip
    """`sampler_step` into contiguous `out`, which may be x itself; returns the prediction."""
    prediction = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return prediction
    tiling = tiling_of(x)
    with torch.cuda.device_of(x):
        sampler_step_kernel[tiling.grid](
            x.contiguous(),
            model_output.contiguous(),
            tuple(tensor.contiguous() for tensor in predictions),
            tuple(tensor.contiguous() for tensor in states),
            None if noise is None else noise.contiguous(),
            out,
            prediction,
            coefficients.contiguous(),
            coefficients.shape[0],
            index,
            index_tensor,
            0 if index_tensor is None else index_tensor.stride(0),
            clip,
            seed,
            seed_tensor,
            step,
            step_tensor,
            first_sample,
            NUM_STATES=num_states,
            NUM_PREDICTIONS=coefficients.shape[1] - num_states - 6,
            **tiling.arguments,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    return prediction
