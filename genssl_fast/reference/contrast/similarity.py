"""Reductions over all pairs of rows in plain PyTorch, which stores the matrix of pairs.

A pair of rows i, j has the logit ``s_ij = scale ⟨x_i, y_j⟩ + row_bias_i + column_bias_j``; pairs with equal
ids are left out, and without ids no pair is (of one matrix with itself: the diagonal).
"""

import torch
from torch import Tensor
from torch.nn import functional

from genssl_fast.reference.integrate import compute_dtype

__all__ = [
    "FUNCTIONS",
    "PSI",
    "gram_logsumexp",
    "gram_logsumexp_backward",
    "gram_pair_sum",
    "gram_pair_sum_backward",
    "pair_logsumexp",
    "pair_logsumexp_backward",
    "sigmoid_pairs",
]


def _softplus(u: Tensor) -> Tensor:
    return -functional.logsigmoid(-u)


# Functions of a difference of distances, with their derivatives.
PSI = {
    "softplus": (_softplus, torch.sigmoid),
    "hinge": (torch.relu, lambda u: (u > 0).to(u.dtype)),
    "sigmoid": (torch.sigmoid, lambda u: torch.sigmoid(u) * torch.sigmoid(-u)),
    "quadratic": (torch.square, lambda u: 2 * u),
}
FUNCTIONS = dict(enumerate(PSI.values()))  # by number, as operations name them; users' own follow


def widened(*tensors: Tensor | None) -> list[Tensor | None]:
    """Floating-point tensors in the precision that they are computed in."""
    return [t if t is None else t.to(compute_dtype(t.dtype)) for t in tensors]


def products(x: Tensor, y: Tensor) -> Tensor:
    return x @ y.mT


def pair_logits(x, y, scale, row_bias, column_bias, row_ids, column_ids) -> Tensor:
    """[N, M], −∞ where a pair is left out."""
    logits = scale * products(x, y)
    if row_bias is not None:
        logits = logits + row_bias[:, None]
    if column_bias is not None:
        logits = logits + column_bias
    if row_ids is not None:
        logits = logits.masked_fill(row_ids[:, None] == column_ids, -torch.inf)
    return logits


def logsumexp(logits: Tensor, dim: int) -> Tensor:
    """−∞ without a gradient where nothing is summed."""
    some = (logits > -torch.inf).any(dim) | logits.isnan().any(dim)
    inside = torch.where(some.unsqueeze(dim), logits, 0.0)
    return torch.where(some, inside.logsumexp(dim), -torch.inf)


def softmax_of(logits: Tensor, log_sum: Tensor) -> Tensor:
    """e^(logits − log_sum), 0 where a pair is left out."""
    left_out = logits == -torch.inf
    return torch.where(left_out, 0.0, torch.exp(torch.where(left_out, 0.0, logits - log_sum)))


def pair_logsumexp(
    x, y, scale, row_bias, column_bias, row_ids, column_ids, columns, keep=False
) -> tuple[Tensor, Tensor, Tensor]:
    """log Σ_j e^(s_ij) [N], log Σ_i e^(s_ij) [M] (without ``columns`` empty), s_ij (without ``keep`` a 0)."""
    x, y, scale, row_bias, column_bias = widened(x, y, scale, row_bias, column_bias)
    logits = pair_logits(x, y, scale, row_bias, column_bias, row_ids, column_ids)
    of_columns = logsumexp(logits, 0) if columns else x.new_zeros(0)
    return logsumexp(logits, 1), of_columns, _kept(logits, keep)


def _kept(logits: Tensor, keep: bool) -> Tensor:
    """For the backward pass of a kernel; that of the reference can be derived again, and computes them."""
    return logits.detach() if keep else logits.new_zeros(1)


def pair_logsumexp_backward(
    grad_rows, grad_columns, rows, columns, scores, x, y, scale, row_bias, column_bias, row_ids, column_ids,
    to_x=True, to_y=True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, y, scale, row_bias and column_bias; empty where not wanted or without the bias.

    ``columns`` is empty where the operation had no sums over columns.
    """
    dtypes = x.dtype, y.dtype
    x, y, scale, row_bias, column_bias = widened(x, y, scale, row_bias, column_bias)
    logits = pair_logits(x, y, scale, row_bias, column_bias, row_ids, column_ids)
    weights = grad_rows[:, None] * softmax_of(logits, rows[:, None])
    if columns.numel():
        weights = weights + grad_columns * softmax_of(logits, columns)
    return (
        (scale * weights @ y).to(dtypes[0]) if to_x else x.new_zeros(0, dtype=dtypes[0]),
        (scale * weights.mT @ x).to(dtypes[1]) if to_y else y.new_zeros(0, dtype=dtypes[1]),
        (weights * products(x, y)).sum(),
        _sum_for(row_bias, weights, 1),
        _sum_for(column_bias, weights, 0),
    )


def _sum_for(bias: Tensor | None, weights: Tensor, dim: int) -> Tensor:
    return weights.new_zeros(0) if bias is None else weights.sum(dim)


def diagonal_ids(z: Tensor, ids: Tensor | None) -> Tensor:
    """Ids under which a row is left out of its own sum."""
    return torch.arange(len(z), dtype=torch.int32, device=z.device) if ids is None else ids


def gram_logsumexp(z, scale, bias, ids, keep=False) -> tuple[Tensor, Tensor]:
    """log Σ_{j≠i} e^(s_ij) [N] of s_ij = scale ⟨z_i, z_j⟩ + bias_i + bias_j, and the logits if ``keep``."""
    ids = diagonal_ids(z, ids)
    of_rows, _, scores = pair_logsumexp(z, z, scale, bias, bias, ids, ids, False, keep)
    return of_rows, scores


def gram_logsumexp_backward(grad, log_sum, scores, z, scale, bias, ids) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, scale and bias."""
    ids, dtype = diagonal_ids(z, ids), z.dtype
    z, scale, bias = widened(z, scale, bias)
    logits = pair_logits(z, z, scale, bias, bias, ids, ids)
    weights = grad[:, None] * softmax_of(logits, log_sum[:, None])
    return _of_symmetric_weights(weights, z, scale, bias, dtype)


def gram_pair_sum(z, scale, bias, shift, psi) -> Tensor:
    """Σ_{j≠i} ψ(shift_i + s_ij) [N]; ``psi`` is a number in :data:`FUNCTIONS`."""
    z, scale, bias, shift = widened(z, scale, bias, shift)
    values = FUNCTIONS[psi][0](shift[:, None] + pair_logits(z, z, scale, bias, bias, None, None))
    return values.masked_fill(_diagonal(z), 0.0).sum(1)


def gram_pair_sum_backward(grad, z, scale, bias, shift, psi) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, scale, bias and shift."""
    dtype = z.dtype
    z, scale, bias, shift = widened(z, scale, bias, shift)
    slopes = FUNCTIONS[psi][1](shift[:, None] + pair_logits(z, z, scale, bias, bias, None, None))
    weights = (grad[:, None] * slopes).masked_fill(_diagonal(z), 0.0)
    return *_of_symmetric_weights(weights, z, scale, bias, dtype), weights.sum(1)


def _diagonal(z: Tensor) -> Tensor:
    return torch.eye(len(z), dtype=torch.bool, device=z.device)


def _of_symmetric_weights(weights, z, scale, bias, dtype) -> tuple[Tensor, Tensor, Tensor]:
    both = weights + weights.mT
    return (scale * both @ z).to(dtype), (weights * products(z, z)).sum(), _sum_for(bias, both, 1)


def sigmoid_pairs(
    x, y, scale, bias, row_ids, column_ids, gradients=True
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Σ_ij log(1 + e^(±s_ij)) of s_ij = scale ⟨x_i, y_j⟩ + bias, minus where ids are equal; its gradients.

    Those are of x, y, scale and bias; empty unless ``gradients``.
    """
    dtypes = x.dtype, y.dtype
    x, y, scale, bias = widened(x, y, scale, bias)
    similarity = products(x, y)
    sign = torch.where(row_ids[:, None] == column_ids, -1.0, 1.0).to(x.dtype)
    signed = sign * (scale * similarity + bias)
    loss = _softplus(signed).sum()
    if not gradients:
        return loss, *(x.new_zeros(0, dtype=dtype) for dtype in (*dtypes, x.dtype, x.dtype))
    weights = sign * torch.sigmoid(signed)
    return (
        loss,
        (scale * weights @ y).to(dtypes[0]),
        (scale * weights.mT @ x).to(dtypes[1]),
        (weights * similarity).sum(),
        weights.sum(),
    )
