"""Rational-quadratic splines and their gradients in Triton, each in one pass over memory.

The formula is in rational_quadratic_spline.h and that of the gradients in spline_derivatives.h. A
program takes ROWS elements, a row of the tile each, with the bins as its columns. The slopes of the
bin that was found are gathered from memory; nothing else of a spline is read twice. Logits are read
where they lie, through at most two strides.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..common.functions import sigmoid, softplus

NONE = tl.constexpr(0)
LINEAR = tl.constexpr(1)
CIRCULAR = tl.constexpr(2)
MAX_SLOPE_LOGIT = tl.constexpr(2.0**40)  # squares of slopes stay finite
TILE_ELEMENTS = 1024
NUM_WARPS = 4


@triton.jit
def _clip(logits, rate):
    return logits / (1.0 + rate * tl.abs(logits))


@triton.jit
def _clip_slope(logits, rate):
    inverse = 1.0 / (1.0 + rate * tl.abs(logits))
    return inverse * inverse


@triton.jit
def _row_offsets(elements, inner, outer_stride, stride):
    return elements // inner * outer_stride + elements % inner * stride


@triton.jit
def _axis(source, mask, columns, rate, low, high, min_share, BINS: tl.constexpr):
    """Logits of an axis, their softmax, and the upper knot of every bin; each [ROWS, COLUMNS]."""
    valid = columns < BINS
    logits = tl.load(source + columns, mask=mask & valid, other=0.0).to(tl.float32)
    clipped = tl.where(valid, _clip(logits, 2.0 * rate), -float("inf"))
    shares = tl.where(valid, tl.exp(clipped - tl.max(clipped, 1)[:, None]), 0.0)
    shares = shares / tl.sum(shares, 1)[:, None]
    scale = (high - low) * (1.0 - BINS * min_share)
    least = (high - low) * min_share
    knots = low + (least * (columns + 1.0) + scale * tl.cumsum(shares, 1))
    return logits, shares, tl.where(columns == BINS - 1, high, knots)


@triton.jit
def _at(values, columns, index):
    """The column `index` of every row, 0 where there is none."""
    return tl.sum(tl.where(columns == index[:, None], values, 0.0), 1)


@triton.jit
def _slope_row(knot, BINS: tl.constexpr, TAILS: tl.constexpr):
    """Row of a knot's slope among the derivatives, and whether it has one."""
    if TAILS == LINEAR:
        return knot - 1, (knot > 0) & (knot < BINS)
    if TAILS == CIRCULAR:
        return tl.where(knot == BINS, 0, knot), knot >= 0
    return knot, knot >= 0


@triton.jit
def _slope(
    source, mask, knot, rate, min_derivative, BINS: tl.constexpr, TAILS: tl.constexpr, ZUKO: tl.constexpr
):
    """Slope at a knot, and its derivative by its logit."""
    row, free = _slope_row(knot, BINS, TAILS)
    logit = tl.load(source + row, mask=mask & free, other=0.0).to(tl.float32)
    if ZUKO:
        slope = tl.exp(_clip(logit, rate))
        by_logit = slope * _clip_slope(logit, rate)
    else:
        slope = min_derivative + softplus(tl.where(logit > MAX_SLOPE_LOGIT, MAX_SLOPE_LOGIT, logit))
        by_logit = tl.where(logit > MAX_SLOPE_LOGIT, 0.0, sigmoid(logit))
    return tl.where(free, slope, 1.0), tl.where(free, by_logit, 0.0)


@triton.jit
def _solve(share, s, d0, d1):
    """t in [0, 1] where the curve reaches this share of the bin's height; as in spline_vec.h."""
    rest = 1.0 - share
    g = d0 * rest - d1 * share
    f = 2.0 * (s * share)
    b = g + f
    root = tl.sqrt(g * g + f * (2.0 * (s * rest)))
    rising = b >= 0.0
    return tl.where(rising, f, root - b) / tl.where(rising, b + root, 2.0 * (s - b))


@triton.jit
def _clamp(a, low, high):
    a = tl.where(a > high, high, a)
    return tl.where(a < low, low, a)


@triton.jit
def _unit(a):
    return _clamp(a, 0.0, 1.0)


@triton.jit
def _point(t, s, d0, d1):
    """The curve's share of the height, its slope, u = t (1 - t), v = 1 / denominator and m."""
    rest = 1.0 - t
    u = t * rest
    v = 1.0 / (s + (d0 + d1 - 2.0 * s) * u)
    m = d1 * t * t + 2.0 * s * u + d0 * rest * rest
    ratio = s * v
    return (s * t * t + d0 * u) * v, ratio * (ratio * m), u, v, m


@triton.jit
def _bin_of(argument, x_knots, y_knots, columns, left, bottom, BINS: tl.constexpr, INVERSE: tl.constexpr):
    """Number of the bin, and where it starts and ends on both axes."""
    searched = y_knots if INVERSE else x_knots
    reached = (argument[:, None] >= searched) & (columns < BINS - 1)
    index = tl.sum(reached.to(tl.int32), 1)
    x0 = tl.where(index == 0, left, _at(x_knots, columns, index - 1))
    y0 = tl.where(index == 0, bottom, _at(y_knots, columns, index - 1))
    return index, x0, _at(x_knots, columns, index), y0, _at(y_knots, columns, index)


@triton.jit
def rational_quadratic_spline_kernel(
    x, widths, heights, derivatives, value, log_derivative, num_elements,
    width_inner, width_outer, width_stride, height_inner, height_outer, height_stride,
    slope_inner, slope_outer, slope_stride,
    left, right, bottom, top, min_width, min_height, min_derivative, rate,
    BINS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    TAILS: tl.constexpr, ZUKO: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    elements = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = elements < num_elements
    columns = tl.arange(0, COLUMNS)[None, :]
    given = tl.load(x + elements, mask=mask, other=0.0).to(tl.float32)
    w_source = widths + _row_offsets(elements, width_inner, width_outer, width_stride)[:, None]
    h_source = heights + _row_offsets(elements, height_inner, height_outer, height_stride)[:, None]
    d_source = derivatives + _row_offsets(elements, slope_inner, slope_outer, slope_stride)
    _, _, x_knots = _axis(w_source, mask[:, None], columns, rate, left, right, min_width, BINS)
    _, _, y_knots = _axis(h_source, mask[:, None], columns, rate, bottom, top, min_height, BINS)

    low = bottom if INVERSE else left
    high = top if INVERSE else right
    inside = (given >= low) & (given <= high)
    argument = tl.where(inside, given, low)
    index, x0, x1, y0, y1 = _bin_of(argument, x_knots, y_knots, columns, left, bottom, BINS, INVERSE)
    w, h = x1 - x0, y1 - y0
    s = h / w
    d0, _ = _slope(d_source, mask, index, rate, min_derivative, BINS, TAILS, ZUKO)
    d1, _ = _slope(d_source, mask, index + 1, rate, min_derivative, BINS, TAILS, ZUKO)
    if INVERSE:
        t = _unit(_solve(_unit((argument - y0) / h), s, d0, d1))
        _, slope, _, _, _ = _point(t, s, d0, d1)
        found = _clamp(x0 + w * t, x0, x1)
        logarithm = -tl.log(slope)
    else:
        t = _unit((argument - x0) / w)
        share, slope, _, _, _ = _point(t, s, d0, d1)
        found = _clamp(y0 + h * share, y0, y1)
        logarithm = tl.log(slope)
    found = tl.where(inside, found, given)
    tl.store(value + elements, found.to(value.dtype.element_ty), mask=mask)
    tl.store(log_derivative + elements, tl.where(inside, logarithm, 0.0), mask=mask)


@triton.jit
def _store_axis(
    target, mask, columns, logits, shares, index, lower, upper, scale, rate, BINS: tl.constexpr
):  # fmt: skip
    """Gradients of an axis' logits from those of the knots of the bin: a softmax moves them."""
    to_bin = tl.where(columns < index[:, None], (lower + upper)[:, None], 0.0)
    to_bin = tl.where(columns == index[:, None], upper[:, None], to_bin)
    mean = tl.sum(shares * to_bin, 1)[:, None]
    gradient = scale * shares * (to_bin - mean) * _clip_slope(logits, 2.0 * rate)
    tl.store(target + columns, gradient.to(target.dtype.element_ty), mask=mask & (columns < BINS))


@triton.jit
def rational_quadratic_spline_backward_kernel(
    grad_value, grad_log, x, widths, heights, derivatives,
    to_x, to_widths, to_heights, to_derivatives, num_elements, elements_per_log,
    width_inner, width_outer, width_stride, height_inner, height_outer, height_stride,
    slope_inner, slope_outer, slope_stride,
    left, right, bottom, top, min_width, min_height, min_derivative, rate,
    BINS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    TAILS: tl.constexpr, ZUKO: tl.constexpr, INVERSE: tl.constexpr,
    TO_WIDTHS: tl.constexpr, TO_HEIGHTS: tl.constexpr, TO_SLOPES: tl.constexpr,
):  # fmt: skip
    elements = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = elements < num_elements
    columns = tl.arange(0, COLUMNS)[None, :]
    given = tl.load(x + elements, mask=mask, other=0.0).to(tl.float32)
    w_source = widths + _row_offsets(elements, width_inner, width_outer, width_stride)[:, None]
    h_source = heights + _row_offsets(elements, height_inner, height_outer, height_stride)[:, None]
    d_source = derivatives + _row_offsets(elements, slope_inner, slope_outer, slope_stride)
    w_logits, w_shares, x_knots = _axis(w_source, mask[:, None], columns, rate, left, right, min_width, BINS)
    h_logits, h_shares, y_knots = _axis(h_source, mask[:, None], columns, rate, bottom, top, min_height, BINS)

    low = bottom if INVERSE else left
    high = top if INVERSE else right
    inside = (given >= low) & (given <= high)
    argument = tl.where(inside, given, low)
    index, x0, x1, y0, y1 = _bin_of(argument, x_knots, y_knots, columns, left, bottom, BINS, INVERSE)
    w, h = x1 - x0, y1 - y0
    s = h / w
    d0, d0_by_logit = _slope(d_source, mask, index, rate, min_derivative, BINS, TAILS, ZUKO)
    d1, d1_by_logit = _slope(d_source, mask, index + 1, rate, min_derivative, BINS, TAILS, ZUKO)
    change = d0 + d1 - 2.0 * s
    t = _unit(_solve(_unit((argument - y0) / h), s, d0, d1)) if INVERSE else _unit((argument - x0) / w)
    r, slope, u, v, m = _point(t, s, d0, d1)

    rest, middle, uv = 1.0 - t, 1.0 - 2.0 * u, u * v
    log_t = 2.0 * (((d1 - s) * t - (d0 - s) * rest) / m - change * (rest - t) * v)
    log_s = 2.0 * (1.0 / s + u / m - middle * v)
    value_gradient = tl.load(grad_value + elements, mask=mask, other=0.0).to(tl.float32)
    to_y = tl.where(inside, value_gradient, 0.0)
    to_log = tl.load(grad_log + elements // elements_per_log, mask=mask, other=0.0)
    to_log = tl.where(inside, to_log, 0.0)
    if INVERSE:
        to_log = -to_log
        to_argument = (to_y + to_log * log_t / w) / slope
        to_y = -to_argument
    to_share = to_y * h
    to_t = (to_share * slope / s + to_log * log_t) / w
    to_s = (to_share * (t * t - r * middle) * v + to_log * log_s) / w
    if not INVERSE:
        to_argument = to_t
    to_argument = tl.where(inside, to_argument, value_gradient)
    tl.store(to_x + elements, to_argument.to(to_x.dtype.element_ty), mask=mask)

    rows = elements[:, None]
    w_scale = (right - left) * (1.0 - BINS * min_width)
    h_scale = (top - bottom) * (1.0 - BINS * min_height)
    _store_axis(
        to_widths + rows * TO_WIDTHS, mask[:, None], columns, w_logits, w_shares, index,
        s * to_s - rest * to_t, -s * to_s - t * to_t, w_scale, rate, BINS,
    )  # fmt: skip
    _store_axis(
        to_heights + rows * TO_HEIGHTS, mask[:, None], columns, h_logits, h_shares, index,
        to_y * (1.0 - r) - to_s, to_y * r + to_s, h_scale, rate, BINS,
    )  # fmt: skip
    to_d0 = (to_share * (1.0 - r) * uv + to_log * (rest * rest / m - 2.0 * uv)) * d0_by_logit
    to_d1 = (to_log * (t * t / m - 2.0 * uv) - to_share * r * uv) * d1_by_logit
    SLOPES: tl.constexpr = BINS - 1 if TAILS == LINEAR else (BINS if TAILS == CIRCULAR else BINS + 1)
    lower, _ = _slope_row(index, BINS, TAILS)
    upper, _ = _slope_row(index + 1, BINS, TAILS)
    slopes = tl.arange(0, 2 * COLUMNS)[None, :]
    gradient = tl.where(slopes == lower[:, None], to_d0[:, None], 0.0)
    gradient += tl.where(slopes == upper[:, None], to_d1[:, None], 0.0)
    target = to_derivatives + rows * TO_SLOPES + slopes
    tl.store(target, gradient.to(to_derivatives.dtype.element_ty), mask=mask[:, None] & (slopes < SLOPES))


class _Rows(NamedTuple):
    """Logits [*shape, K]: those of element i start at (i // inner) * outer + (i % inner) * stride."""

    tensor: torch.Tensor
    inner: int
    outer: int
    stride: int


def _rows(tensor: torch.Tensor) -> _Rows:
    groups = [[1, 0]]
    for size, stride in zip(reversed(tensor.shape[:-1]), reversed(tensor.stride()[:-1])):
        if size == 1:
            continue
        if groups[-1][0] == 1:
            groups[-1] = [size, stride]
        elif stride == groups[-1][0] * groups[-1][1]:
            groups[-1][0] *= size
        else:
            groups.append([size, stride])
    if len(groups) > 2 or (tensor.shape[-1] > 1 and tensor.stride(-1) != 1):
        return _rows(tensor.contiguous())
    (inner, stride), outer = groups[0], groups[1][1] if len(groups) > 1 else 0
    return _Rows(tensor, inner, outer, stride)


def _split(parameters: torch.Tensor, tails: int) -> list[torch.Tensor]:
    """Widths, heights and derivatives that lie behind each other."""
    free = (1, -1, 0)[tails]
    bins = (parameters.shape[-1] - free) // 3
    return list(parameters.split([bins, bins, bins + free], -1))


def _arguments(logits, inverse, tails, zuko, left, right, bottom, top, *minima_and_slope):
    """Tensors of logits, and everything else that a kernel takes after its tensors."""
    *minima, slope = minima_and_slope
    rows = [_rows(tensor) for tensor in logits]
    strides = [number for row in rows for number in row[1:]]
    bins = logits[0].shape[-1]
    rate = -1.0 / math.log(slope) if zuko else 0.0
    minima = (0.0, 0.0, minima[2]) if zuko else minima
    columns = triton.next_power_of_2(bins)
    options = {
        "BINS": bins,
        "COLUMNS": columns,
        "ROWS": max(TILE_ELEMENTS // columns, 16),
        "TAILS": tails,
        "ZUKO": zuko,
        "INVERSE": inverse,
        "num_warps": NUM_WARPS,
    }
    return [row.tensor for row in rows], (*strides, left, right, bottom, top, *minima, rate), options


def rational_quadratic_spline(
    x, widths, heights, derivatives, inverse, elementwise, tails, zuko, *numbers
) -> tuple[torch.Tensor, torch.Tensor]:
    """y like x, contiguous, and log|det| in fp32, [B] or of every element."""
    logits = _split(widths, tails) if heights is None else [widths, heights, derivatives]
    value = torch.empty_like(x, memory_format=torch.contiguous_format)
    log_derivative = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if x.numel():
        logits, numbers, options = _arguments(logits, inverse, tails, zuko, *numbers)
        with torch.cuda.device_of(x):
            rational_quadratic_spline_kernel[(triton.cdiv(x.numel(), options["ROWS"]),)](
                x.contiguous(), *logits, value, log_derivative, x.numel(), *numbers, **options
            )
    if not elementwise and x.ndim > 1:
        log_derivative = log_derivative.flatten(1).sum(1)
    return value, log_derivative


def rational_quadratic_spline_backward(
    grad_value, grad_log, x, widths, heights, derivatives, inverse, elementwise, tails, zuko, *numbers
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, widths, heights and derivatives, contiguous and like them; empty for None."""
    given = [widths] if heights is None else [widths, heights, derivatives]
    to_x, *found = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, *given))
    if x.numel():
        packed = heights is None
        logits, targets = (_split(t[0], tails) if packed else t for t in (given, found))
        logits, numbers, options = _arguments(logits, inverse, tails, zuko, *numbers)
        elements_per_log = 1 if elementwise else x.numel() // x.shape[0]
        strides = [found[0].shape[-1]] * 3 if packed else [t.shape[-1] for t in found]
        options |= dict(zip(("TO_WIDTHS", "TO_HEIGHTS", "TO_SLOPES"), strides))
        with torch.cuda.device_of(x):
            rational_quadratic_spline_backward_kernel[(triton.cdiv(x.numel(), options["ROWS"]),)](
                grad_value.contiguous(), grad_log.contiguous(), x.contiguous(), *logits, to_x, *targets,
                x.numel(), elements_per_log, *numbers, **options,
            )  # fmt: skip
    return (to_x, *found, *[x.new_empty(0)] * (3 - len(found)))
