"""Feature decorrelation by products of PyTorch that never hold a D×D matrix.

What runs on a device without a kernel. With x [N, D] a normalised view and S = xᵀy summed over the rows,
the losses need Σ_{i≠j} S_ij² and their gradients the products x S without its diagonal: by Gram matrices
x xᵀ [N, N], or by blocks of ``BLOCK`` rows of S. The operations return

    loss, products, statistics

``products`` are both Gram matrices [2, N, N], or the products of both views [2, N, padded D], or empty where
nothing is kept for a gradient; ``statistics`` [11, D] have the rows named below, two for the two views.
"""

import torch

from genssl_fast.reference.integrate import compute_dtype

__all__ = [
    "STATISTICS",
    "barlow_twins",
    "barlow_twins_backward",
    "padded",
    "vicreg",
    "vicreg_backward",
]

MEAN, SCALE, OFFSET, DIAGONAL, MOMENT, DIFFERENCE, STATISTICS = 0, 2, 4, 6, 8, 10, 11
BLOCK = 1024


def padded(columns: int) -> int:
    """Numbers from a row of products to the next: whole registers, and no power of two."""
    return -(-columns // 32) * 32 + 16


def barlow_twins(z1, z2, weight, scale, eps, gram, keep):
    views, statistics = _centred_statistics(z1, z2)
    n = len(z1)
    for view, z in enumerate(views):
        x = _normalized(z, statistics, view)
        factor = torch.rsqrt(x.square().mean(0) + eps)
        statistics[SCALE + view] = factor
        statistics[OFFSET + view] *= factor
    a, b = (_normalized(z, statistics, view) for view, z in enumerate(views))
    moment = (a * b).mean(0)
    diagonal = -2 * scale / n * (1 - moment)
    coupling = 2 * scale * weight / n**2
    if gram:
        products = torch.stack([a @ a.T, b @ b.T])
        squares = _total(products[0] * products[1]) - _total((n * moment).square())
        diagonal = diagonal - coupling * n * moment
    else:
        squares, products = _product_off_diagonal(a, b, keep)
    statistics[MOMENT : MOMENT + 2] = moment
    statistics[DIAGONAL : DIAGONAL + 2] = diagonal
    loss = scale * _total((1 - moment).square()) + coupling / 2 * squares
    return loss.to(a.dtype), _kept(products, keep), statistics


def vicreg(z1, z2, invariance, variance, covariance, gamma, eps, gram, keep):
    views, statistics = _centred_statistics(z1, z2)
    n, d = z1.shape
    coupling = 4 * covariance / d / (n - 1) ** 2
    difference = (views[0] - views[1]).square().sum(0)
    statistics[DIFFERENCE] = difference
    loss = invariance / (n * d) * _total(difference)
    products = []
    for view, z in enumerate(views):
        x = _normalized(z, statistics, view)
        moment = x.square().sum(0) / (n - 1)
        std = torch.sqrt(moment + eps)
        diagonal = -variance / (d * (n - 1)) * (std < gamma).to(std.dtype) / std
        if gram:
            product = x @ x.T
            squares = _total(product.square()) - _total(((n - 1) * moment).square())
            diagonal = diagonal - coupling * (n - 1) * moment
        else:
            squares, product = _product_off_diagonal(x, None, keep)
        products.append(product)
        statistics[MOMENT + view], statistics[DIAGONAL + view] = moment, diagonal
        loss = loss + variance / d * _total(torch.relu(gamma - std)) + coupling / 4 * squares
    return loss.to(std.dtype), _kept(torch.stack(products), keep), statistics


def barlow_twins_backward(grad, z1, z2, products, statistics, weight, scale, eps, gram):
    n, coupling = len(z1), 2 * scale * weight / len(z1) ** 2
    x = [_normalized(z.to(statistics.dtype), statistics, view) for view, z in enumerate((z1, z2))]
    found = []
    for view in range(2):
        product = products[1 - view] @ x[view] if gram else products[view, :, : z1.shape[1]]
        to_x = coupling * product + statistics[DIAGONAL + view] * x[1 - view]
        along = (to_x * x[view]).sum(0) / n
        found.append(grad * statistics[SCALE + view] * (to_x - x[view] * along))
    return tuple(f.to(z1.dtype) for f in found)


def vicreg_backward(
    grad, z1, z2, products, statistics, invariance, variance, covariance, gamma, eps, gram
):  # fmt: skip
    n, d = z1.shape
    z = [v.to(statistics.dtype) for v in (z1, z2)]
    coupling, apart = 4 * covariance / d / (n - 1) ** 2, 2 * invariance / (n * d) * (z[0] - z[1])
    found = []
    for view in range(2):
        x = _normalized(z[view], statistics, view)
        product = products[view] @ x if gram else products[view, :, :d]
        to_x = coupling * product + statistics[DIAGONAL + view] * x
        found.append(grad * (to_x + apart if view == 0 else to_x - apart))
    return tuple(f.to(z1.dtype) for f in found)


def _centred_statistics(z1, z2):
    """Views in their compute dtype, and statistics that center them: scales of 1."""
    views = [z.to(compute_dtype(z.dtype)) for z in (z1, z2)]
    statistics = views[0].new_zeros(STATISTICS, z1.shape[1])
    for view, z in enumerate(views):
        mean = z.mean(0)
        statistics[MEAN + view], statistics[SCALE + view] = mean, 1
        statistics[OFFSET + view] = -(z - mean).mean(0)
    return views, statistics


def _normalized(z, statistics, view):
    return (z - statistics[MEAN + view]) * statistics[SCALE + view] + statistics[OFFSET + view]


def _product_off_diagonal(x, y, keep):
    """Σ_{i≠j} S_ij² of S = xᵀy, and y Sᵀ and x S; of S = xᵀx, and x S, where y is None."""
    n, d = x.shape
    other, single = (x, True) if y is None else (y, False)
    products = x.new_zeros(1 if single else 2, n, padded(d) if keep else 0)
    squares = 0
    for begin in range(0, d, BLOCK):
        rows = slice(begin, min(begin + BLOCK, d))
        block = x[:, rows].T @ other
        block[:, rows].fill_diagonal_(0)
        squares = squares + _total(block.square())
        if keep:
            products[0, :, rows] = other @ block.T
        if keep and not single:
            products[1, :, :d] += x[:, rows] @ block
    return squares, products[0] if single else products


def _total(values):
    return values.sum(dtype=torch.float64)


def _kept(products, keep):
    return products if keep else products.new_empty(0)
