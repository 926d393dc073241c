"""Assignment of vectors to their nearest codes, and sums over the vectors of a code."""

import torch
from torch import Tensor

from genssl_fast.reference.integrate import compute_dtype

__all__ = ["code_distances", "code_sums", "nearest_code"]

CHUNK_ELEMENTS = 1 << 20  # of x [N, 1, D] - codebook [K, D]


def nearest_code(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """argmin_k ‖x_n − c_k‖² and its value, both [N]; the first of equal codes, a NaN before any number."""
    x, codebook = (tensor.to(compute_dtype(tensor.dtype)) for tensor in (x, codebook))
    indices = [
        (rows[:, None] - codebook).square().sum(-1).argmin(-1)
        for rows in x.split(max(1, CHUNK_ELEMENTS // max(codebook.numel(), 1)))
    ]
    indices = torch.cat(indices)
    return indices, code_distances(x, codebook, indices)


def code_distances(x: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
    """‖x_n − c_index‖² for given indices [N], in fp32 or fp64."""
    x, codebook = (tensor.to(compute_dtype(tensor.dtype)) for tensor in (x, codebook))
    return (x - codebook[indices]).square().sum(-1)


def code_sums(
    x: Tensor, indices: Tensor, weights: Tensor | None, num_codes: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Σ w_n [K] and Σ w_n x_n [K, D] over the rows of each code; rows of index −1 are left out."""
    x = x.to(compute_dtype(x.dtype))
    weights = x.new_ones(len(x)) if weights is None else weights.to(x.dtype)
    kept = indices >= 0
    codes = torch.where(kept, indices, 0)
    weights = torch.where(kept, weights, 0)
    weighted = torch.where(kept[:, None], weights[:, None] * x, 0)
    counts = x.new_zeros(num_codes).index_add(0, codes, weights)
    return counts, x.new_zeros(num_codes, x.shape[1]).index_add(0, codes, weighted)
