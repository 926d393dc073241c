"""Sums of the rows of every code, in Triton, without atomics.

    counts_k = sum of w_n,  sums_k = sum of w_n x_n  over the rows n of code k, in fp64

Rows are sorted by code, stably; a program adds up the rows of one code for a slice of the columns, a
tile of rows after the other. So the bits do not depend on how programs are scheduled.
"""

import torch
import triton
import triton.language as tl

ROWS, COLUMNS, NUM_WARPS = 32, 32, 4


@triton.jit
def code_sums_kernel(
    x,
    weights,
    order,
    offsets,
    counts,
    sums,
    dim: tl.int32,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    code = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = tl.load(offsets + code), tl.load(offsets + code + 1)
    total = tl.zeros([COLUMNS], tl.float64)
    count = tl.zeros([ROWS], tl.float64)
    for first in range(begin, end, ROWS):
        places = first + tl.arange(0, ROWS)
        rows = tl.load(order + places, mask=places < end, other=0)
        weight = (places < end).to(tl.float64)
        if weights is not None:
            weight = tl.load(weights + rows, mask=places < end, other=0.0).to(tl.float64)
        mask = (places < end)[:, None] & (columns < dim)[None, :]
        tile = tl.load(x + rows[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        total += tl.sum(weight[:, None] * tile.to(tl.float64), 0)
        count += weight
    out_dtype = sums.dtype.element_ty
    tl.store(sums + code * dim + columns, total.to(out_dtype), mask=columns < dim)
    if tl.program_id(1) == 0:
        tl.store(counts + code, tl.sum(count, 0).to(out_dtype))


def code_sums(
    x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor | None, num_codes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """counts [K] and sums [K, D] of x [N, D]; indices outside of [0, K) are left out."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    counts = x.new_empty(num_codes, dtype=dtype)
    sums = x.new_empty(num_codes, x.shape[1], dtype=dtype)
    if num_codes == 0:
        return counts, sums
    kept = (indices >= 0) & (indices < num_codes)
    codes, order = torch.where(kept, indices, num_codes).sort(stable=True)
    offsets = torch.searchsorted(codes, torch.arange(num_codes + 1, device=x.device))
    with torch.cuda.device_of(x):
        code_sums_kernel[(num_codes, triton.cdiv(x.shape[1], COLUMNS))](
            x.contiguous(),
            None if weights is None else weights.contiguous(),
            order,
            offsets,
            counts,
            sums,
            dim=x.shape[1],
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=NUM_WARPS,
        )
    return counts, sums
