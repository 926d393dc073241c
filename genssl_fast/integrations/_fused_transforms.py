"""zuko's transforms whose value and log-determinant come from one kernel, those of the inverse, too."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.transforms import _InverseTransform
from zuko import transforms
from zuko.flows.spline import CircularRQSTransform

from genssl_fast.ops.rational_quadratic_spline import MAX_BINS
from genssl_fast.ops.transforms import AffineTransform, SplineTransform, apply_transform

__all__ = [
    "AutoregressiveTransform",
    "CouplingTransform",
    "ElementwiseTransform",
    "Univariate",
    "VectorTransform",
    "univariate_of",
]


class _FusedTransform(Transform):
    """A transform whose value and log-determinant come together, those of the inverse, too."""

    bijective = True

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and log|det f'(x)|."""
        raise NotImplementedError

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse at y and its log|det|."""
        raise NotImplementedError

    def _call(self, x):
        return self.call_and_ladj(x)[0]

    def _inverse(self, y):
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x, y):
        return self.call_and_ladj(x)[1]

    @property
    def inv(self):
        return _FusedInverse(self)


class _FusedInverse(_InverseTransform):
    """zuko computes an inverse and its log-determinant by a pass each; this takes both from one."""

    def call_and_ladj(self, y):
        return self._inv.inverse_and_ladj(y)


class ElementwiseTransform(_FusedTransform):
    """One kernel for numbers [...] whose parameters are tensors that broadcast with them."""

    domain = constraints.real
    codomain = constraints.real
    sign = +1

    def call_and_ladj(self, x):
        return self._apply(x, inverse=False)

    def inverse_and_ladj(self, y):
        return self._apply(y, inverse=True)


class Univariate(NamedTuple):
    """What a layer does with each feature; circular shifts come before the transform."""

    transform: AffineTransform | SplineTransform
    circular_bound: float | None = None


def univariate_of(function: Callable[..., Transform], shapes: Sequence) -> Univariate | None:
    """The kernel's description of zuko's constructor of a transform, if there is one.

    Arguments:
        function: the class, or a ``functools.partial`` of it.
        shapes: of its parameters.
    """
    is_partial = isinstance(function, partial)
    known, options = (function.func, function.keywords) if is_partial else (function, {})
    if is_partial and function.args:
        return None
    if any(shape[0] > MAX_BINS for shape in shapes if shape):
        return None
    slope = options.get("slope", 1e-3)
    if known is transforms.MonotonicAffineTransform and options.keys() <= {"slope"}:
        return Univariate(AffineTransform("zuko", limit=-math.log(slope), layout="interleaved"))
    if known is transforms.AdditiveTransform and not options:
        return Univariate(AffineTransform(layout="shift"))
    spline = partial(SplineTransform, parameterization="zuko", slope=slope)
    if known is transforms.MonotonicRQSTransform and options.keys() <= {"slope", "bound"}:
        return Univariate(spline(shapes[0][0], bound=float(options.get("bound", 5.0))))
    if known is CircularRQSTransform and options.keys() <= {"slope"}:
        return Univariate(spline(shapes[0][0], bound=math.pi), circular_bound=math.pi)
    return None


class VectorTransform(_FusedTransform):
    """Every feature of a vector through a kernel, log-determinants summed there.

    Arguments:
        univariate: what the kernel computes.
        parameters: [..., D, P], to be broadcast with vectors [..., D].
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, univariate: Univariate, parameters: Tensor):
        super().__init__()
        self.univariate, self.parameters = univariate, parameters

    def call_and_ladj(self, x):
        return self._apply(self._shifted(x), inverse=False)

    def inverse_and_ladj(self, y):
        x, log_abs_det = self._apply(y, inverse=True)
        return self._shifted(x), log_abs_det

    def _shifted(self, x):
        bound = self.univariate.circular_bound
        return x if bound is None else torch.remainder(x, 2 * bound) - bound

    def _apply(self, x, inverse):
        parameters = self.parameters.to(x.dtype)
        if x.shape[:-1] != parameters.shape[:-2]:
            batch = torch.broadcast_shapes(x.shape[:-1], parameters.shape[:-2])
            x, parameters = x.expand(*batch, -1), parameters.expand(*batch, -1, -1)
        rows, parameters = x.reshape(-1, x.shape[-1]), parameters.reshape(-1, *parameters.shape[-2:])
        y, log_abs_det = apply_transform(self.univariate.transform, rows, parameters, inverse=inverse)
        return y.view(x.shape), log_abs_det.view(x.shape[:-1])


class CouplingTransform(transforms.CouplingTransform, _FusedTransform):
    """zuko's coupling with an inverse that keeps its log-determinant."""

    def inverse_and_ladj(self, y):
        given, moved = self.split(y)
        moved, log_abs_det = self.meta(given).inverse_and_ladj(moved)
        return self.merge(given, moved, y.shape), log_abs_det


class AutoregressiveTransform(transforms.AutoregressiveTransform, _FusedTransform):
    """zuko's autoregressive transform with an inverse in one pass of work, where ``solve`` returns one."""

    def __init__(self, meta: Callable, passes: int, solve: Callable):
        super().__init__(meta, passes)
        self.solve = solve

    def _inverse(self, y):
        return self.inverse_and_ladj(y)[0]

    def inverse_and_ladj(self, y):
        solution = self.solve(y)
        if solution is not None:
            return solution
        x, log_abs_det = torch.zeros_like(y), None
        for _ in range(self.passes):  # the last one has every parameter right
            x, log_abs_det = self.meta(x).inverse_and_ladj(y)
        return x, log_abs_det
