"""Cosines and sines of f t, in Triton.

    [cos(f t), sin(f t)], or sine first; an odd dim is padded with a zero

A program computes a tile [ROWS, COLUMNS] of angles, each once for both halves. The product f t
is rounded to fp32 as PyTorch rounds it; whole quarter turns are then taken off in fp64, where
pi/2 in two parts leaves the remainder of an angle of 1e6 as precise as that of 1, and short fp32
polynomials do the rest.
"""

import torch
import triton
import triton.language as tl

from ..common.philox import sincos_of_quarters
from ..common.tile import NUM_WARPS, tile_indices, tiling_of

TWO_OVER_PI = tl.constexpr(0.6366197723675814)
# pi/2 in two parts; multiples of the first up to 2^20 are exact in fp64.
HALF_PI_HIGH = tl.constexpr(1.5707963267341256)
HALF_PI_LOW = tl.constexpr(6.077100506506192e-11)


@triton.jit
def sincos(angle):
    """(cos, sin) in the angle's dtype, fp32 or fp64; within 3 ulp in fp32 up to |angle| = 1.6e6."""
    if angle.dtype == tl.float64:
        result = tl.cos(angle), tl.sin(angle)
    else:
        wide = angle.to(tl.float64)
        nearest = tl.floor(wide * TWO_OVER_PI + 0.5)
        remainder = wide - nearest * HALF_PI_HIGH
        f = ((remainder - nearest * HALF_PI_LOW) * TWO_OVER_PI).to(tl.float32)
        # Angles too large to have a phase in fp64 stay inside the polynomials' range; a NaN passes.
        f = tl.where(f > 0.5, 0.5, f)
        f = tl.where(f < -0.5, -0.5, f)
        result = sincos_of_quarters(f, nearest.to(tl.int64).to(tl.int32))
    return result


@triton.jit(do_not_specialize=["num_samples", "num_units"])
def time_embedding_kernel(
    t,
    frequencies,
    embedding,
    num_samples: tl.int64,
    num_units: tl.int64,
    SIN_FIRST: tl.constexpr,
    PADDED: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    dtype = tl.float64 if t.dtype.element_ty == tl.float64 else tl.float32
    out_dtype = embedding.dtype.element_ty
    rows, first_column, offsets, mask = tile_indices(num_samples, num_units, UNIT, ROWS, COLUMNS)
    half = num_units * UNIT
    columns = first_column + tl.arange(0, COLUMNS)[None, :]
    times = tl.load(t + rows, mask=rows < num_samples, other=0.0).to(dtype)
    frequency = tl.load(frequencies + columns, mask=columns < half, other=0.0).to(dtype)
    cosine, sine = sincos(times * frequency)

    target = embedding + offsets + rows * half
    if PADDED:
        target += rows
        tl.store(target + 2 * half, (0.0 * cosine).to(out_dtype), mask=mask & (columns == 0))
    if SIN_FIRST:
        cosine, sine = sine, cosine
    tl.store(target, cosine.to(out_dtype), mask=mask)
    tl.store(target + half, sine.to(out_dtype), mask=mask)


def time_embedding(t: torch.Tensor, frequencies: torch.Tensor, sin_first: bool, dim: int) -> torch.Tensor:
    """[..., dim] in the dtype of t [...]; `frequencies` [dim // 2] is fp32 or fp64."""
    if t.numel() == 0 or dim < 2:
        return t.new_zeros((*t.shape, dim))
    embedding = t.new_empty((*t.shape, dim))
    tiling = tiling_of(embedding.view(-1, dim)[:, : dim // 2])
    with torch.cuda.device_of(t):
        time_embedding_kernel[tiling.grid](
            t.contiguous(),
            frequencies.contiguous(),
            embedding,
            SIN_FIRST=sin_first,
            PADDED=dim % 2 == 1,
            **tiling.arguments,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    return embedding
