"""What the Triton kernels of pairs share: two sides, and the terms of a pair with their derivatives.

    s_ij = scale <x_i, y_j> + row_bias_i + column_bias_j;  pairs.h has the reductions

Every reduction is of f(offset + s) for a function f, VALUE, and its gradient of s has f', SLOPE:

    W_ij = row_grad_i f'(row_offset_i + s_ij) + column_grad_j f'(column_offset_j + s_ij)

For log-sum-exps f is the exponential and the offset minus the log-sum; for sums over psi it is psi
and the shift. The sigmoid loss has W = f'(s), or -f'(-s) where ids are equal.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..common.functions import sigmoid, softplus

# Kinds of reductions.
SUM = tl.constexpr(0)
EXPONENTIAL = tl.constexpr(1)
LOGISTIC = tl.constexpr(2)

NOTHING = tl.constexpr(float("-inf"))


class Reduction(NamedTuple):
    """What is summed over pairs: a kind, and f with its derivative as `triton.jit` functions."""

    kind: int
    value: triton.JITFunction | None
    slope: triton.JITFunction


class Side(NamedTuple):
    """Rows or columns of the matrix of pairs, contiguous; all but the matrix may be absent."""

    matrix: torch.Tensor  # [N, D]
    bias: torch.Tensor | None = None  # [N], like what follows in the dtype that is computed in
    ids: torch.Tensor | None = None
    grad: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    def part(self, part: slice) -> "Side":
        return Side(*(None if tensor is None else tensor[part] for tensor in self))


class Pairs(NamedTuple):
    """A problem; `gram` where both sides are one."""

    rows: Side
    columns: Side
    scale: torch.Tensor  # [], of the dtype that is computed in
    reduction: Reduction
    gram: bool


class Gradients(NamedTuple):
    """Sums over the pairs of a row and of a column; None where they are not wanted.

    Of `gram` the rows' are whole, and the columns' absent.
    """

    to_rows: torch.Tensor | None  # sum_j W_ij y_j [N, D], not yet times scale
    to_columns: torch.Tensor | None
    row_weights: torch.Tensor | None  # sum_j W_ij [N]
    column_weights: torch.Tensor | None
    own_weights: torch.Tensor | None  # the same of row_grad alone
    products: torch.Tensor  # sum_ij W_ij <x_i, y_j> []
    values: torch.Tensor | None  # sum_j f [N]


@triton.jit
def hinge(u):
    return tl.where(u < 0.0, 0.0, u)


@triton.jit
def hinge_slope(u):
    return tl.where(u > 0.0, 1.0, 0.0)


@triton.jit
def sigmoid_slope(u):
    return sigmoid(u) * sigmoid(-u)


@triton.jit
def square(u):
    return u * u


@triton.jit
def square_slope(u):
    return 2.0 * u


@triton.jit
def exponential(u):
    return tl.exp(u)


def sum_of(value: triton.JITFunction, slope: triton.JITFunction) -> Reduction:
    return Reduction(SUM.value, value, slope)


# By number: the order of genssl_fast.reference.contrast.similarity.PSI, then users' own.
PSI = dict(
    enumerate(
        [
            sum_of(softplus, sigmoid),
            sum_of(hinge, hinge_slope),
            sum_of(sigmoid, sigmoid_slope),
            sum_of(square, square_slope),
        ]
    )
)
LOG_SUM = Reduction(EXPONENTIAL.value, None, exponential)
SIGMOID_LOSS = Reduction(LOGISTIC.value, softplus, sigmoid)  # the sign is in u


@triton.jit
def load_numbers(numbers, positions, present):
    """None without numbers, which adds nothing."""
    found = None
    if numbers is not None:
        found = tl.load(numbers + positions, mask=present, other=0.0)
    return found


@triton.jit
def load_offset(offset, positions, present, KIND: tl.constexpr):
    """Minus the log-sum for exponentials, 0 where that is -inf and there is no pair to weigh."""
    found = load_numbers(offset, positions, present)
    if KIND == EXPONENTIAL and offset is not None:
        found = tl.where(found == NOTHING, 0.0, -found)
    return found


@triton.jit
def same_ids(row_ids, column_ids, rows, columns, row_present, column_present):
    """[ROWS, COLUMNS], False without ids."""
    if row_ids is None:
        same = (rows[:, None] < 0) & (columns[None, :] < 0)
    else:
        of_rows = tl.load(row_ids + rows, mask=row_present, other=0)
        of_columns = tl.load(column_ids + columns, mask=column_present, other=0)
        same = of_rows[:, None] == of_columns[None, :]
    return same


@triton.jit
def logits_of(products, scale, row_bias, column_bias):
    logits = products * scale
    if row_bias is not None:
        logits += row_bias[:, None]
    if column_bias is not None:
        logits += column_bias[None, :]
    return logits


@triton.jit
def kept(same, present, KIND: tl.constexpr):
    """Which pairs count; padding never does."""
    keep = present
    if KIND != LOGISTIC:
        keep = present & (same == 0)
    return keep


@triton.jit
def terms_of(logits, same, keep, offset, KIND: tl.constexpr, VALUE: tl.constexpr):
    """f, 0 where a pair is left out; `offset` is [ROWS, 1] or [1, COLUMNS], or None."""
    u = logits
    if offset is not None:
        u = logits + offset
    if KIND == LOGISTIC:
        u = tl.where(same, -logits, logits)
    return tl.where(keep, VALUE(u), 0.0).to(u.dtype)


@triton.jit
def weights_of(logits, same, keep, grad, offset, KIND: tl.constexpr, SLOPE: tl.constexpr):
    """One of the two summands of W; `grad` and `offset` as `offset` above, and None for LOGISTIC."""
    if KIND == LOGISTIC:
        weights = tl.where(same, -SLOPE(-logits), SLOPE(logits))
    else:
        weights = grad * SLOPE(logits + offset)
    return tl.where(keep, weights, 0.0)


@triton.jit
def both_weights(
    logits,
    same,
    keep,
    row_grad,
    row_offset,
    column_grad,
    column_offset,
    KIND: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """W's summands of rows and of columns."""
    of_rows = tl.zeros_like(logits)
    of_columns = tl.zeros_like(logits)
    if KIND == LOGISTIC:
        of_rows = weights_of(logits, same, keep, None, None, KIND, SLOPE)
    elif row_grad is not None:
        of_rows = weights_of(logits, same, keep, row_grad[:, None], row_offset[:, None], KIND, SLOPE)
    if column_grad is not None:
        of_columns = weights_of(logits, same, keep, column_grad[None, :], column_offset[None, :], KIND, SLOPE)
    return of_rows, of_columns


@triton.jit
def add_log(largest, total, more_largest, more_total):
    """Sums e^largest total of both, [n], with the larger of the maxima; nothing is (-inf, 0)."""
    new = tl.maximum(largest, more_largest)
    safe = tl.where(new == NOTHING, 0.0, new)
    return new, total * tl.exp(largest - safe) + more_total * tl.exp(more_largest - safe)


@triton.jit
def log_sums(logits, AXIS: tl.constexpr):
    """Maxima over an axis, and sums of e^(logit - maximum)."""
    largest = tl.max(logits, axis=AXIS)
    safe = tl.where(largest == NOTHING, 0.0, largest)
    return largest, tl.sum(tl.exp(logits - tl.expand_dims(safe, AXIS)), axis=AXIS)


@triton.jit
def log_of(largest, total):
    none = total == 0.0
    return tl.where(none, NOTHING, largest + tl.log(tl.where(none, 1.0, total)))
