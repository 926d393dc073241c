"""Affine coupling and its gradients in Triton, each in one pass over memory.

    y = x e^s + t or (x + t) e^s, or its inverse; log|det| = sum s; affine_coupling.h has the clamps

A program takes a tile of [ROWS, COLUMNS] of whole samples and copies what passes through. Shift and
log-scale are read where they lie, through at most two dimensions of any strides. The log-derivatives
of a sample that spans several tiles are added from one partial sum per tile, in their order.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..common.functions import sigmoid, softplus
from ..common.tile import NUM_WARPS, tile_indices, tiling_of

TANH = tl.constexpr(1)
ATAN = tl.constexpr(2)
SIGMOID = tl.constexpr(3)
RECIPROCAL_SIGMOID = tl.constexpr(4)
SOFTPLUS = tl.constexpr(5)
ZUKO = tl.constexpr(6)
ADDITIVE = tl.constexpr(7)


@triton.jit
def _expm1(x):
    """e^x - 1 for x <= 0: the error of e^x - 1 is that of its logarithm."""
    power = tl.exp(x)
    minus = power - 1.0
    inside = (minus != 0.0) & (minus != -1.0)
    corrected = minus * x / tl.log(tl.where(inside, power, 0.5))
    return tl.where(inside, corrected, tl.where(minus == 0.0, x, minus))


@triton.jit
def _tanh(x):
    minus = _expm1(-2.0 * tl.abs(x))
    size = -minus / (minus + 2.0)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def _atan(x):
    """Reciprocal above 1, angle halved twice, then the series."""
    size = tl.abs(x)
    steep = size > 1.0
    small = tl.where(steep, 1.0 / tl.where(steep, size, 1.0), size)
    for _ in tl.static_range(2):
        small = small / (1.0 + tl.sqrt(1.0 + small * small))
    square = small * small
    series = tl.zeros_like(x) + 1.0 / 25.0
    for term in tl.static_range(12):
        series = 1.0 / (23.0 - 2.0 * term) - square * series
    angle = 4.0 * small * series
    angle = tl.where(steep, 1.5707963267948966 - angle, angle)
    return tl.where(x < 0.0, -angle, angle)


@triton.jit
def _scale_and_log(a, limit, offset, min_scale, CLAMP: tl.constexpr):
    """e^s and s of the clamps that bound the scale itself."""
    u = a + offset
    if CLAMP == SOFTPLUS:
        scale = softplus(u) + min_scale
        scale = tl.where(scale > limit, limit, scale)
        # Without a least scale a tiny softplus is e^u.
        tiny = tl.where(min_scale == 0.0, scale, 1.0) < 1e-17
        log_scale = tl.where(tiny, u, tl.log(tl.where(tiny, 1.0, scale)))
    else:
        scale = sigmoid(u) + min_scale
        exact = min_scale == 0.0
        log_scale = tl.where(exact, -softplus(-u), tl.log(tl.where(exact, 1.0, scale)))
    return scale, log_scale


@triton.jit
def _factor_and_log(a, limit, offset, min_scale, CLAMP: tl.constexpr, INVERSE: tl.constexpr):
    """What multiplies, e^s or for the inverse e^-s, and its logarithm."""
    if CLAMP >= SIGMOID and CLAMP <= SOFTPLUS:
        RECIPROCAL: tl.constexpr = CLAMP == RECIPROCAL_SIGMOID
        factor, log_factor = _scale_and_log(a, limit, offset, min_scale, CLAMP)
        if INVERSE != RECIPROCAL:
            factor = 1.0 / factor
            log_factor = -log_factor
    else:
        log_factor = a
        if CLAMP == TANH:
            log_factor = limit * _tanh(a / limit)
        if CLAMP == ATAN:
            log_factor = limit * 0.636 * _atan(a)
        if CLAMP == ZUKO:
            log_factor = a / (1.0 + tl.abs(a) / limit)
        if INVERSE:
            log_factor = -log_factor
        factor = tl.exp(log_factor)
    return factor, log_factor


@triton.jit
def _slope(a, limit, offset, min_scale, CLAMP: tl.constexpr, INVERSE: tl.constexpr):
    """The derivative of that logarithm by a."""
    u = a + offset
    slope = tl.zeros_like(a) + 1.0
    if CLAMP == TANH:
        bounded = _tanh(a / limit)
        slope = 1.0 - bounded * bounded
    if CLAMP == ATAN:
        slope = limit * 0.636 / (1.0 + a * a)
    if CLAMP == ZUKO:
        shrink = 1.0 / (1.0 + tl.abs(a) / limit)
        slope = shrink * shrink
    if CLAMP >= SIGMOID and CLAMP < SOFTPLUS:
        slope = sigmoid(-u)
        weight = sigmoid(u) / (sigmoid(u) + tl.where(min_scale == 0.0, 1.0, min_scale))
        slope = tl.where(min_scale == 0.0, slope, slope * weight)
    if CLAMP == SOFTPLUS:
        scale = softplus(u) + min_scale
        tiny = scale < 1e-30
        slope = tl.where(tiny, 1.0, sigmoid(u) / tl.where(tiny, 1.0, scale))
        slope = tl.where(scale > limit, 0.0, slope)
    RECIPROCAL: tl.constexpr = CLAMP == RECIPROCAL_SIGMOID
    if INVERSE != RECIPROCAL:
        slope = -slope
    return slope


@triton.jit
def _transformed(first_column, begin, end, mask, COLUMNS: tl.constexpr):
    """Positions [1, COLUMNS] of this tile's columns among the transformed ones, and whether they are."""
    columns = first_column + tl.arange(0, COLUMNS)[None, :]
    position = columns - begin
    inside = (columns >= begin) & (columns < end)
    if mask is not None:
        inside = inside & (tl.load(mask + position, mask=inside, other=0) != 0)
    return position, inside


@triton.jit
def _load_parameter(
    data, sample_stride, outer_stride, inner_stride, rows, position, inner, mask, IN_ROWS: tl.constexpr
):
    """IN_ROWS: a sample's elements lie in a row, which the compiler needs to know for wide loads."""
    offset = position
    if not IN_ROWS:
        offset = position // inner * outer_stride + position % inner * inner_stride
    return tl.load(data + rows * sample_stride + offset, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["num_samples", "num_units", "inner"])
def affine_coupling_kernel(
    x,
    shift,
    shift_sample: tl.int64,
    shift_outer: tl.int64,
    shift_inner: tl.int64,
    log_scale,
    scale_sample: tl.int64,
    scale_outer: tl.int64,
    scale_inner: tl.int64,
    mask,
    y,
    sums,
    begin: tl.int64,
    end: tl.int64,
    inner: tl.int64,
    limit: tl.float64,
    offset: tl.float64,
    min_scale: tl.float64,
    num_samples: tl.int64,
    num_units: tl.int64,
    CLAMP: tl.constexpr,
    INVERSE: tl.constexpr,
    SHIFT_FIRST: tl.constexpr,
    IN_ROWS: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """sums[sample, chunk]: the tile's log-derivatives."""
    dtype = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    rows, first_column, offsets, present = tile_indices(num_samples, num_units, UNIT, ROWS, COLUMNS)
    position, inside = _transformed(first_column, begin, end, mask, COLUMNS)
    inside = inside & present
    x_tile = tl.load(x + offsets, mask=present, other=0.0).to(dtype)
    t = _load_parameter(shift, shift_sample, shift_outer, shift_inner, rows, position, inner, inside, IN_ROWS)
    t = t.to(dtype)
    if CLAMP == ADDITIVE:
        factor = tl.full((), 1.0, dtype)
        log_factor = tl.zeros_like(x_tile)
    else:
        a = _load_parameter(
            log_scale, scale_sample, scale_outer, scale_inner, rows, position, inner, inside, IN_ROWS
        )
        factor, log_factor = _factor_and_log(
            a.to(dtype), tl.full((), limit, dtype), tl.full((), offset, dtype),
            tl.full((), min_scale, dtype), CLAMP, INVERSE,
        )  # fmt: skip
    if INVERSE:
        new = x_tile * factor - t if SHIFT_FIRST else (x_tile - t) * factor
    else:
        new = (x_tile + t) * factor if SHIFT_FIRST else x_tile * factor + t
    new = tl.where(inside, new, x_tile)
    tl.store(y + offsets, new.to(y.dtype.element_ty), mask=present)

    total = tl.sum(tl.where(inside, log_factor, 0.0), axis=1, keep_dims=True)
    chunks = tl.cdiv(num_units * UNIT, COLUMNS)
    target = rows * chunks + first_column // COLUMNS + tl.zeros((ROWS, 1), tl.int64)
    tl.store(sums + target, total.to(sums.dtype.element_ty), mask=target < num_samples * chunks)


@triton.jit(do_not_specialize=["num_samples", "num_units", "inner"])
def affine_coupling_backward_kernel(
    grad_y,
    grad_log_abs_det,
    x,
    shift,
    shift_sample: tl.int64,
    shift_outer: tl.int64,
    shift_inner: tl.int64,
    log_scale,
    scale_sample: tl.int64,
    scale_outer: tl.int64,
    scale_inner: tl.int64,
    mask,
    grad_x,
    grad_shift,
    grad_log_scale,
    begin: tl.int64,
    end: tl.int64,
    inner: tl.int64,
    limit: tl.float64,
    offset: tl.float64,
    min_scale: tl.float64,
    num_samples: tl.int64,
    num_units: tl.int64,
    CLAMP: tl.constexpr,
    INVERSE: tl.constexpr,
    SHIFT_FIRST: tl.constexpr,
    IN_ROWS: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """affine_coupling.cpp has the formulas: backward_tile."""
    dtype = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    rows, first_column, offsets, present = tile_indices(num_samples, num_units, UNIT, ROWS, COLUMNS)
    position, inside = _transformed(first_column, begin, end, mask, COLUMNS)
    # What passes through has parameters, and gradients of them, in a mask but not in a split.
    coupled = (position >= 0) & (position < end - begin) & present
    inside = inside & present
    g = tl.load(grad_y + offsets, mask=present, other=0.0).to(dtype)
    parameters = rows * (end - begin) + position
    if CLAMP == ADDITIVE:
        to_x = g
        to_shift = g
    else:
        x_tile = tl.load(x + offsets, mask=present, other=0.0).to(dtype)
        t = _load_parameter(
            shift, shift_sample, shift_outer, shift_inner, rows, position, inner, inside, IN_ROWS
        ).to(dtype)
        a = _load_parameter(
            log_scale, scale_sample, scale_outer, scale_inner, rows, position, inner, inside, IN_ROWS
        ).to(dtype)
        bound, added, least = (
            tl.full((), limit, dtype),
            tl.full((), offset, dtype),
            tl.full((), min_scale, dtype),
        )
        factor, _ = _factor_and_log(a, bound, added, least, CLAMP, INVERSE)
        to_x = g * factor
        multiplied = x_tile
        to_shift = g
        if INVERSE != SHIFT_FIRST:
            multiplied = x_tile - t if INVERSE else x_tile + t
            to_shift = to_x
        to_sum = tl.load(grad_log_abs_det + rows, mask=rows < num_samples, other=0.0).to(dtype)
        to_log_scale = (to_x * multiplied + to_sum) * _slope(a, bound, added, least, CLAMP, INVERSE)
        to_log_scale = tl.where(inside, to_log_scale, 0.0).to(grad_log_scale.dtype.element_ty)
        tl.store(grad_log_scale + parameters, to_log_scale, mask=coupled)
    if INVERSE:
        to_shift = -to_shift
    tl.store(grad_x + offsets, tl.where(inside, to_x, g).to(grad_x.dtype.element_ty), mask=present)
    to_shift = tl.where(inside, to_shift, 0.0).to(grad_shift.dtype.element_ty)
    tl.store(grad_shift + parameters, to_shift, mask=coupled)


class _View(NamedTuple):
    """Both parameters as [B, outer, inner]: tensors that stay alive, and strides (sample, outer, inner)."""

    tensors: tuple
    inner: int
    strides: tuple

    @property
    def in_rows(self) -> bool:
        return all(stride[1:] == (0, 1) for stride in self.strides)


def _merged_dimensions(tensors) -> list:
    """Dimensions after the first as [size, stride of each], merged where all tensors allow it."""
    merged = []
    for dim in range(1, tensors[0].ndim):
        size, strides = tensors[0].shape[dim], [tensor.stride(dim) for tensor in tensors]
        if size == 1:
            continue
        if merged and merged[-1][1] == [size * stride for stride in strides]:
            merged[-1] = [merged[-1][0] * size, strides]
        else:
            merged.append([size, strides])
    return merged


def _view(shift, log_scale) -> _View:
    """The parameters in place where two dimensions describe them, else copies."""
    tensors = (shift,) if log_scale is None else (shift, log_scale)
    merged = _merged_dimensions(tensors)
    if len(merged) > 2:
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        merged = _merged_dimensions(tensors)
    none = [1, [0] * len(tensors)]
    (_, outer), (inner, steps) = [none, none, *merged][-2:]
    strides = tuple(zip((tensor.stride(0) for tensor in tensors), outer, steps))
    return _View(tensors, inner, strides)


def _launch_arguments(
    x, shift, log_scale, mask, split, inverse, clamp, limit, offset, min_scale, shift_first
):
    """The parameters in the kernels' order, and the rest by name."""
    tiling = tiling_of(x)
    view = _view(shift, log_scale)
    columns = tiling.sample_size // max(x.shape[1], 1)
    parameters = (view.tensors[0], *view.strides[0])
    if log_scale is None:
        parameters += (None, 0, 0, 0)
    else:
        parameters += (view.tensors[1], *view.strides[1])
    parameters += (None if mask is None else mask.contiguous().view(torch.uint8),)
    rest = {
        "begin": max(split, 0) * columns,
        "end": tiling.sample_size + min(split, 0) * columns,
        "inner": view.inner,
        "limit": limit,
        "offset": offset,
        "min_scale": min_scale,
        "CLAMP": ADDITIVE.value if log_scale is None else clamp,
        "INVERSE": inverse,
        "SHIFT_FIRST": shift_first,
        "IN_ROWS": view.in_rows,
        "num_warps": NUM_WARPS,
        "enable_fp_fusion": False,
        **tiling.arguments,
    }
    return tiling, parameters, rest


def affine_coupling(x, shift, log_scale, *options) -> tuple[torch.Tensor, torch.Tensor]:
    """y like x [B, ...], contiguous, and log|det| [B]."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.numel() == 0:
        return y, x.new_zeros(len(x), dtype=dtype)
    tiling, parameters, rest = _launch_arguments(x, shift, log_scale, *options)
    chunks = tiling.chunks
    sums = x.new_empty((len(x), chunks), dtype=dtype if chunks == 1 else torch.float64)
    with torch.cuda.device_of(x):
        affine_coupling_kernel[tiling.grid](x.contiguous(), *parameters, y, sums, **rest)
    return y, sums.view(-1) if chunks == 1 else sums.sum(1).to(dtype)


def affine_coupling_backward(
    grad_y, grad_log_abs_det, x, shift, log_scale, *options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, shift and log_scale, contiguous; the last is empty without one."""
    empty = {"memory_format": torch.contiguous_format}
    grad_x, grad_shift = torch.empty_like(x, **empty), torch.empty_like(shift, **empty)
    grad_log_scale = x.new_empty(0) if log_scale is None else torch.empty_like(log_scale, **empty)
    if x.numel() == 0:
        return grad_x, grad_shift, grad_log_scale
    tiling, parameters, rest = _launch_arguments(x, shift, log_scale, *options)
    with torch.cuda.device_of(x):
        affine_coupling_backward_kernel[tiling.grid](
            grad_y.contiguous(), grad_log_abs_det.contiguous(), x.contiguous(), *parameters,
            grad_x, grad_shift, grad_log_scale, **rest,
        )  # fmt: skip
    return grad_x, grad_shift, grad_log_scale
