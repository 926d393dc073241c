"""The reductions over pairs of ops/similarity.py on a GPU, each in the structure that suits its shape.

`structure_of` chooses: fused_pairs.py for short rows, pair_chunks.py for long ones. Neither stores
the matrix of pairs, and scale, biases and gradients stay on the device.
"""

from types import ModuleType

import torch

from . import fused_pairs, pair_chunks
from .pair_terms import LOG_SUM, PSI, SIGMOID_LOSS, Pairs, Reduction, Side

FUSED_DEPTH = 64  # in fp32
FUSED_DEPTH_16_BIT = 255


def structure_of(x: torch.Tensor) -> ModuleType:
    """The module whose `sums` and `gradients` serve rows like x [N, D].

    Chunks move 8 bytes a pair forward and 14 to 16 backward, 4.7 ps at the 4.8 TB/s of an H200, and
    leave the products to cuBLAS. Fused kernels move nothing and pay products twice. 16-bit products
    of D = 128 take 0.4 ps at 600 TFLOP/s, so they are fused below 256, which is also where sums
    [rows, D] no longer fit in registers; at 768 siglip-kernel 0.1.2 measured chunks to win on Hopper.
    fp32 products run on the 67 TFLOP/s of the vector units, of which cuBLAS reaches most and
    Triton's dot about a third: 1.9 against 5 ps for D = 64, so fused up to there.
    These figures are derived, not measured. fp64 goes in chunks.
    """
    if x.dtype == torch.float64:
        return pair_chunks
    limit = FUSED_DEPTH if x.dtype == torch.float32 else FUSED_DEPTH_16_BIT
    return fused_pairs if x.shape[1] <= limit else pair_chunks


def _number_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _side(matrix, bias=None, ids=None, grad=None, offset=None) -> Side:
    """Contiguous, and all but matrix and ids in the dtype that is computed in."""
    bias, grad, offset = (
        None if t is None else t.to(_number_dtype(matrix)).contiguous() for t in (bias, grad, offset)
    )
    return Side(matrix.contiguous(), bias, None if ids is None else ids.contiguous(), grad, offset)


def _pairs(rows: Side, columns: Side, scale: torch.Tensor, reduction: Reduction) -> Pairs:
    return Pairs(rows, columns, scale.to(_number_dtype(rows.matrix)), reduction, rows is columns)


def _sums(pairs: Pairs, of_columns: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    with torch.cuda.device_of(pairs.scale):
        return structure_of(pairs.rows.matrix).sums(pairs, of_columns)


def _gradients(pairs: Pairs, to_rows: bool = True, to_columns: bool = False, values: bool = False):
    with torch.cuda.device_of(pairs.scale):
        return structure_of(pairs.rows.matrix).gradients(pairs, to_rows, to_columns, values)


def _gram_ids(z: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """Without ids a row is left out of its own sum alone."""
    return torch.arange(len(z), dtype=torch.int32, device=z.device) if ids is None else ids


def _scaled(pairs: Pairs, sums: torch.Tensor | None) -> torch.Tensor:
    """The gradient of a matrix, empty where it is not wanted."""
    matrix = pairs.rows.matrix
    return matrix.new_empty(0) if sums is None else (pairs.scale * sums).to(matrix.dtype)


def _or_empty(pairs: Pairs, numbers: torch.Tensor | None, wanted: bool) -> torch.Tensor:
    return numbers if wanted else pairs.scale.new_empty(0)


def _not_kept(pairs: Pairs) -> torch.Tensor:
    """In place of scores, which are computed again."""
    return pairs.scale.new_zeros(1)


def pair_logsumexp(x, y, scale, row_bias, column_bias, row_ids, column_ids, columns, keep):
    """Log-sum-exps of rows [N] and, if `columns`, of columns [M]; scores are not kept."""
    pairs = _pairs(_side(x, row_bias, row_ids), _side(y, column_bias, column_ids), scale, LOG_SUM)
    of_rows, of_columns = _sums(pairs, columns)
    return of_rows, _or_empty(pairs, of_columns, columns), _not_kept(pairs)


def pair_logsumexp_backward(
    grad_rows, grad_columns, rows, columns, scores, x, y, scale, row_bias, column_bias, row_ids, column_ids,
    to_x, to_y,
):  # fmt: skip
    """Gradients of x, y, scale and the biases."""
    of_columns = (grad_columns, columns) if columns.numel() else ()
    pairs = _pairs(
        _side(x, row_bias, row_ids, grad_rows, rows), _side(y, column_bias, column_ids, *of_columns),
        scale, LOG_SUM,
    )  # fmt: skip
    found = _gradients(pairs, to_x, to_y)
    return (
        _scaled(pairs, found.to_rows),
        _scaled(pairs, found.to_columns),
        found.products.to(pairs.scale.dtype),
        _or_empty(pairs, found.row_weights, row_bias is not None),
        _or_empty(pairs, found.column_weights, column_bias is not None),
    )


def gram_logsumexp(z, scale, bias, ids, keep):
    """Log-sum-exps of rows [N]; scores are not kept."""
    side = _side(z, bias, _gram_ids(z, ids))
    pairs = _pairs(side, side, scale, LOG_SUM)
    return _sums(pairs)[0], _not_kept(pairs)


def gram_logsumexp_backward(grad, log_sum, scores, z, scale, bias, ids):
    """Gradients of z, scale and bias."""
    side = _side(z, bias, _gram_ids(z, ids), grad, log_sum)
    return _gram_gradients(_pairs(side, side, scale, LOG_SUM))[0]


def gram_pair_sum(z, scale, bias, shift, psi):
    """Sums of psi(shift_i + s_ij) over the other rows [N]."""
    side = _side(z, bias, _gram_ids(z, None), offset=shift)
    return _sums(_pairs(side, side, scale, PSI[psi]))[0]


def gram_pair_sum_backward(grad, z, scale, bias, shift, psi):
    """Gradients of z, scale, bias and shift."""
    side = _side(z, bias, _gram_ids(z, None), grad, shift)
    gradients, own_weights = _gram_gradients(_pairs(side, side, scale, PSI[psi]))
    return *gradients, own_weights


def _gram_gradients(pairs: Pairs):
    """Those of z, scale and bias, and the rows' own weights."""
    found = _gradients(pairs)
    to_bias = _or_empty(pairs, found.row_weights, pairs.rows.bias is not None)
    to_scale = found.products.to(pairs.scale.dtype)
    return (_scaled(pairs, found.to_rows), to_scale, to_bias), found.own_weights


def sigmoid_pairs(x, y, scale, bias, row_ids, column_ids, gradients):
    """The loss [] and, if `gradients`, those of x, y, scale and bias."""
    rows = _side(x, bias.expand(len(x)), row_ids)
    pairs = _pairs(rows, _side(y, None, column_ids), scale, SIGMOID_LOSS)
    if not gradients:
        loss = _total(_sums(pairs)[0])
        return loss, x.new_empty(0), y.new_empty(0), loss.new_empty(0), loss.new_empty(0)
    found = _gradients(pairs, to_columns=True, values=True)
    return (
        _total(found.values),
        _scaled(pairs, found.to_rows),
        _scaled(pairs, found.to_columns),
        found.products.to(pairs.scale.dtype),
        _total(found.row_weights),
    )


def _total(numbers: torch.Tensor) -> torch.Tensor:
    """[], added in fp64."""
    return numbers.sum(dtype=torch.float64).to(numbers.dtype)
