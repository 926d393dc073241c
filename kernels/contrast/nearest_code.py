"""The nearest code of every row, in Triton, without the matrix of distances.

    index_n = argmin_k |x_n - c_k|^2,  distance_n = |x_n - c_index|^2

Three launches, as the CPU kernel does in one (nearest_code.h says why the result is exact):

- `search_kernel` keeps, for a tile of rows, the lowest and the second lowest of the scores
  |c|^2 / 2 - x.c while the codes pass in tiles through `tl.dot` in full fp32, everything less the
  mean of the codes; where the two are closer than their rounding, or not finite, the index stays -1.
- `decide_kernel` compares the squared differences of such rows with all codes, in fp64.
- `distance_kernel` sums the squared differences to the chosen code in fp64.

Ties go to the lowest index, a NaN counts as nearest. fp64 goes to the second kernel at once.
"""

import torch
import triton
import triton.language as tl

ROWS, CODES, DEPTH = 64, 64, 16
SEARCH_WARPS, NUM_WARPS = 8, 4
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def load_tile(source, rows, num_rows, columns, dim):
    """source[rows, columns], whose index arrays broadcast; 0 past the ends."""
    mask = (rows < num_rows) & (columns < dim)
    return tl.load(source + rows.to(tl.int64) * dim + columns, mask=mask, other=0.0)


@triton.jit
def load_centered(x, center, rows, num_rows, columns, dim):
    """A tile [rows, columns] of x less the center in fp32; 0 past the columns."""
    tile = load_tile(x, rows[:, None], num_rows, columns[None, :], dim).to(tl.float32)
    return tile - tl.load(center + columns, mask=columns < dim, other=0.0)[None, :]


@triton.jit(do_not_specialize=["num_rows", "num_codes"])
def search_kernel(
    x,
    codes,
    center,
    half_norms,
    radius,
    indices,
    num_rows: tl.int64,
    num_codes: tl.int32,
    dim: tl.int32,
    ROUNDOFF: tl.constexpr,
    TINY: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    squares = tl.zeros([ROWS], tl.float32)
    for k in range(0, dim, DEPTH):
        tile = load_centered(x, center, rows, num_rows, k + tl.arange(0, DEPTH), dim)
        squares += tl.sum(tile * tile, 1)

    lowest = tl.full([ROWS], INFINITY, tl.float32)
    second = tl.full([ROWS], INFINITY, tl.float32)
    place = tl.zeros([ROWS], tl.int32)
    for first in range(0, num_codes, CODES):
        numbers = first + tl.arange(0, CODES)
        dots = tl.zeros([ROWS, CODES], tl.float32)
        for k in range(0, dim, DEPTH):
            columns = k + tl.arange(0, DEPTH)
            tile = load_centered(x, center, rows, num_rows, columns, dim)
            weights = load_tile(codes, numbers[None, :], num_codes, columns[:, None], dim)
            dots = tl.dot(tile, weights, dots, input_precision="ieee")
        norms = tl.load(half_norms + numbers, mask=numbers < num_codes, other=INFINITY)
        scores = norms[None, :] - dots
        scores = tl.where(scores == scores, scores, INFINITY)  # its rows stay undecided
        best, at = tl.min(scores, 1, return_indices=True, return_indices_tie_break_left=True)
        others = tl.where(tl.arange(0, CODES)[None, :] == at[:, None], INFINITY, scores)
        second = tl.minimum(tl.minimum(second, tl.maximum(lowest, best)), tl.min(others, 1))
        place = tl.where(best < lowest, first + at, place)
        lowest = tl.minimum(lowest, best)

    largest = tl.load(radius)
    depth = dim.to(tl.float32)
    length = tl.sqrt(squares + depth * TINY)
    bound = 2 * (depth + 8) * (ROUNDOFF * (largest * (length + largest)) + TINY)
    bound = tl.where(largest == 0, 0.0, bound)  # then all codes are equal and all scores exact
    is_decided = (bound < INFINITY) & (second - lowest >= bound)
    index = tl.where(is_decided, place, -1).to(tl.int64)
    tl.store(indices + rows, index, mask=rows < num_rows)


@triton.jit
def nearest_by_differences(
    x, codebook, row, num_codes, dim, CODES: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """The code of one row, from squared differences in fp64."""
    lowest = tl.full([], INFINITY, tl.float64)
    index = tl.full([], 0, tl.int32)
    for first in range(0, num_codes, CODES):
        numbers = first + tl.arange(0, CODES)
        squares = tl.zeros([CODES], tl.float64)
        for k in range(0, dim, DEPTH):
            columns = k + tl.arange(0, DEPTH)
            values = tl.load(x + row * dim + columns, mask=columns < dim, other=0.0).to(tl.float64)
            tile = load_tile(codebook, numbers[:, None], num_codes, columns[None, :], dim)
            differences = values[None, :] - tile.to(tl.float64)
            squares += tl.sum(differences * differences, 1)
        squares = tl.where(squares == squares, squares, -1.0)  # a NaN is nearest
        squares = tl.where(numbers < num_codes, squares, INFINITY)
        best, at = tl.min(squares, 0, return_indices=True, return_indices_tie_break_left=True)
        index = tl.where(best < lowest, first + at, index)
        lowest = tl.minimum(lowest, best)
    return index


@triton.jit(do_not_specialize=["num_rows", "num_codes"])
def decide_kernel(
    x,
    codebook,
    indices,
    num_rows: tl.int64,
    num_codes: tl.int32,
    dim: tl.int32,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(first, tl.minimum(first + ROWS, num_rows)):
        if tl.load(indices + row) < 0:
            index = nearest_by_differences(x, codebook, row, num_codes, dim, CODES, DEPTH)
            tl.store(indices + row, index.to(tl.int64))


@triton.jit(do_not_specialize=["num_rows", "num_codes"])
def distance_kernel(
    x,
    codebook,
    indices,
    distances,
    num_rows: tl.int64,
    num_codes: tl.int32,
    dim: tl.int32,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    index = tl.load(indices + rows, mask=rows < num_rows, other=0)
    squares = tl.zeros([ROWS], tl.float64)
    for k in range(0, dim, DEPTH):
        columns = (k + tl.arange(0, DEPTH))[None, :]
        values = load_tile(x, rows[:, None], num_rows, columns, dim).to(tl.float64)
        code = load_tile(codebook, index[:, None], num_codes, columns, dim).to(tl.float64)
        squares += tl.sum((values - code) * (values - code), 1)
    tl.store(distances + rows, squares.to(distances.dtype.element_ty), mask=rows < num_rows)


def nearest_code(x: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """indices int64 [N] and squared distances [N] of x [N, D] and codebook [K, D]."""
    x, codebook = x.contiguous(), codebook.contiguous()
    (num_rows, dim), num_codes = x.shape, codebook.shape[0]
    is_double = x.dtype == torch.float64
    indices = x.new_full((num_rows,), -1, dtype=torch.int64)
    distances = x.new_empty(num_rows, dtype=torch.float64 if is_double else torch.float32)
    if num_rows == 0:
        return indices, distances
    sizes = {"num_rows": num_rows, "num_codes": num_codes, "dim": dim}
    with torch.cuda.device_of(x):
        if not is_double:
            center = codebook.double().mean(0).float()
            codes = codebook.float() - center
            half_norms = codes.double().square().sum(1) / 2
            radius = (2 * half_norms.amax()).sqrt().float()
            search_kernel[(triton.cdiv(num_rows, ROWS),)](
                x,
                codes,
                center,
                half_norms.float(),
                radius,
                indices,
                **sizes,
                ROUNDOFF=torch.finfo(torch.float32).eps / 2,
                TINY=torch.finfo(torch.float32).tiny,
                ROWS=ROWS,
                CODES=CODES,
                DEPTH=DEPTH,
                num_warps=SEARCH_WARPS,
            )
        decide_kernel[(triton.cdiv(num_rows, 8),)](
            x, codebook, indices, **sizes, ROWS=8, CODES=CODES, DEPTH=DEPTH, num_warps=NUM_WARPS
        )  # fmt: skip
        distance_kernel[(triton.cdiv(num_rows, 32),)](
            x, codebook, indices, distances, **sizes, ROWS=32, DEPTH=DEPTH, num_warps=NUM_WARPS
        )  # fmt: skip
    return indices, distances
