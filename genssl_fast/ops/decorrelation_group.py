"""Barlow Twins and VICReg of views whose rows are spread over processes.

Sums over rows, D numbers for each view, are reduced over all processes. Squared correlations are summed by
Gram matrices: blocks of rows travel the ring of :mod:`genssl_fast.ops.ring`, and a visiting block y makes
G = x yᵀ [rows here, rows there] of both views, in tiles of ``TILE``² numbers. The sum of the products
of elements of two G is that of the squares, and G y, summed over visits, is the gradient for x: the whole
Gram matrix is symmetric, so that no gradient travels. Neither D×D numbers nor all rows are ever in one place.

Gradients are found with the value where one is wanted: a backward pass exchanges nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from genssl_fast._autocast import without_autocast
from genssl_fast._autograd import wants_gradient
from genssl_fast.ops.ring import Ring, check_first_derivative, not_compiled
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["barlow_twins", "vicreg"]

TILE = 1024


class _Loss(torch.autograd.Function):
    """The value of a loss that finds its own gradients [P, N, D]."""

    @staticmethod
    def forward(ctx, z1, z2, ring, loss, options, wanted):
        positions = [z.reshape(len(z), -1, z.shape[-1]) for z in (z1, z2)]
        value, gradients = loss(ring, *positions, *options, wanted)
        ctx.size, ctx.dtype = ring.size, z1.dtype
        ctx.save_for_backward(*(found.transpose(0, 1).reshape(z1.shape) for found in gradients))
        return value.to(compute_dtype(z1.dtype))

    @staticmethod
    def backward(ctx, grad):
        check_first_derivative()
        found = ((grad * ctx.size * gradient).to(ctx.dtype) for gradient in ctx.saved_tensors)
        return *found, None, None, None, None


class _Centred:
    """Views [N, P, D] as [P, N, D] in their compute dtype, less the means of all processes' rows.

    The means are kept with what their rounding leaves; ``squares`` [2, P, 1, D], in fp64, are the sums over
    all rows of the squares of what is centred.
    """

    def __init__(self, ring: Ring, *views: Tensor):
        wide = [_wide(z) for z in views]
        self.mean = (_row_sums(ring, *wide) / ring.count).to(wide[0].dtype)
        x = [z - mean for z, mean in zip(wide, self.mean)]
        rest, squares = _row_sums(ring, *x, *map(torch.square, x)).chunk(2)
        rest = rest / ring.count
        self.rest, self.squares = rest.to(self.mean.dtype), squares - ring.count * rest.square()

    def __call__(self, *views: Tensor) -> list[Tensor]:
        return [_wide(z) - mean - rest for z, mean, rest in zip(views, self.mean, self.rest)]


def _barlow_twins(ring, z1, z2, weight, scale, eps, wanted):
    n, centred = ring.count, _Centred(ring, z1, z2)
    factors = torch.rsqrt(centred.squares / n + eps).to(centred.mean.dtype)

    def normalized(*views):
        return [x * factor for x, factor in zip(centred(*views), factors)]

    a, b = normalized(z1, z2)
    moment = _row_sums(ring, a * b)[0] / n
    squares, products = _squares(ring, z1, z2, normalized, wanted, crossed=True)
    coupling = 2 * scale * weight / n**2
    squares = squares - (n * moment).square().sum()
    loss = scale * (1 - moment).square().sum() + coupling / 2 * squares
    if not wanted:
        return loss, ()
    diagonal = (-2 * scale / n * (1 - moment) - coupling * n * moment).to(a.dtype)
    to_x = [coupling * product + diagonal * other for product, other in zip(products, (b, a))]
    along = (_row_sums(ring, *map(torch.mul, to_x, (a, b))) / n).to(a.dtype)
    return loss, [factor * (to - x * part) for factor, to, x, part in zip(factors, to_x, (a, b), along)]


def _vicreg(ring, z1, z2, invariance, variance, covariance, gamma, eps, wanted):
    n, features, centred = ring.count, z1[0].numel(), _Centred(ring, z1, z2)
    apart = _wide(z1) - _wide(z2)
    moment = centred.squares / (n - 1)
    std = torch.sqrt(moment + eps)
    squares, products = _squares(ring, z1, z2, centred, wanted)
    coupling = 4 * covariance / features / (n - 1) ** 2
    squares = squares - centred.squares.square().sum()
    loss = invariance / (n * features) * _row_sums(ring, apart.square()).sum()
    loss = loss + variance / features * torch.relu(gamma - std).sum() + coupling / 4 * squares
    if not wanted:
        return loss, ()
    spread = -variance / (features * (n - 1)) * (std < gamma).to(std.dtype) / std
    diagonal = (spread - coupling * centred.squares).to(apart.dtype)
    to_difference = 2 * invariance / (n * features) * apart
    to_x = [coupling * product + own * x for product, own, x in zip(products, diagonal, centred(z1, z2))]
    return loss, (to_x[0] + to_difference, to_x[1] - to_difference)


def _squares(ring: Ring, z1, z2, standardized: Callable, wanted: bool, crossed: bool = False):
    """Σ_{ij} S_ij² and, where ``wanted``, the products of Gram matrices and rows [P, N, D] of each view.

    S is xᵀx of each view, whose squares are added up, or xᵀy of both where ``crossed``.
    """
    here, squares = standardized(z1, z2), z1.new_zeros(1, dtype=torch.float64)
    height = max(1, TILE // z1.shape[1])
    products = [torch.zeros_like(x) for x in here] if wanted else ()
    for there in ring.visits("rows", z1, z2):
        there = standardized(*there)
        for begin in range(0, len(z1), height):
            rows = slice(begin, begin + height)
            for y in zip(*(y.split(TILE, 1) for y in there)):
                grams = [x[:, rows] @ columns.mT for x, columns in zip(here, y)]
                partners = grams[::-1] if crossed else grams
                for gram, partner in list(zip(grams, partners))[: 1 if crossed else 2]:
                    squares += (gram * partner).sum(dtype=torch.float64)
                for product, gram, columns in zip(products, partners, y):
                    product[:, rows].baddbmm_(gram, columns)
    dist.all_reduce(squares, group=ring.group)
    return squares[0], products


def _row_sums(ring: Ring, *tensors: Tensor) -> Tensor:
    """Sums of each tensor [P, N, D] over all processes' rows, [len(tensors), P, 1, D] in fp64."""
    sums = torch.stack([tensor.sum(1, keepdim=True, dtype=torch.float64) for tensor in tensors])
    dist.all_reduce(sums, group=ring.group)
    return sums


def _wide(z: Tensor) -> Tensor:
    """A view [N, P, D] as [P, N, D] in its compute dtype."""
    return z.to(compute_dtype(z.dtype)).transpose(0, 1)


@not_compiled
@without_autocast
def barlow_twins(z1: Tensor, z2: Tensor, ring: Ring, weight: float, scale: float, eps: float) -> Tensor:
    """:func:`genssl_fast.reference.contrast.barlow_twins` of all processes' rows [N, D]."""
    return _Loss.apply(z1, z2, ring, _barlow_twins, (weight, scale, eps), wants_gradient((z1, z2)))


@not_compiled
@without_autocast
def vicreg(z1: Tensor, z2: Tensor, ring: Ring, *options: float) -> Tensor:
    """:func:`genssl_fast.reference.contrast.vicreg` of all processes' rows, the mean over positions.

    Views are [N, ..., D] and the options those of the reference.
    """
    return _Loss.apply(z1, z2, ring, _vicreg, options, wants_gradient((z1, z2)))
