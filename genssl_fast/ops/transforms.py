"""Elementwise transforms as plain data: what couplings and autoregressive networks give parameters to."""

import math
from typing import NamedTuple

from torch import Tensor

from genssl_fast._checks import check, check_choice
from genssl_fast.ops.affine_coupling import LAYOUTS, affine_coupling, affine_parameters
from genssl_fast.ops.rational_quadratic_spline import rational_quadratic_spline

__all__ = ["AffineTransform", "SplineTransform", "apply_transform", "num_parameters"]

# Knots whose derivative is a parameter, beyond the number of bins.
FREE_KNOTS = {"linear": -1, "circular": 0, None: 1}


class AffineTransform(NamedTuple):
    """:func:`genssl_fast.affine_coupling` of each element, with its options by their names.

    ``layout`` is the order of a sample's parameters: all shifts, then all log-scales (``"cat"``), the other
    way round (``"cat_scale_first"``), in pairs (``"interleaved"``, ``"interleaved_scale_first"``), or shifts
    alone (``"shift"``, NICE).
    """

    clamp: str = "none"
    limit: float | None = None
    offset: float | None = None
    min_scale: float | None = None
    layout: str = "cat"
    order: str = "scale_shift"


class SplineTransform(NamedTuple):
    """:func:`genssl_fast.rational_quadratic_spline` of each element, with its options by their names.

    The parameters of an element lie together, as widths, heights and derivatives.
    """

    bins: int = 8
    tails: str | None = "linear"
    bound: float | tuple[float, float, float, float] = 1.0
    min_bin_width: float = 1e-3
    min_bin_height: float = 1e-3
    min_derivative: float = 1e-3
    parameterization: str = "softmax"
    slope: float = 1e-3


def num_parameters(transform: AffineTransform | SplineTransform) -> int:
    """How many parameters an element takes.

    Example:
        >>> from genssl_fast.ops.transforms import SplineTransform, num_parameters
        >>> num_parameters(SplineTransform(bins=8, tails="linear"))
        23
    """
    if isinstance(transform, AffineTransform):
        return 1 if transform.layout == "shift" else 2
    return 2 * transform.bins + _num_derivatives(transform)


def apply_transform(
    transform: AffineTransform | SplineTransform, x: Tensor, parameters: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The transform of every element of x, with parameters as a network gave them.

    Arguments:
        transform: what to compute.
        x: [B, ...].
        parameters: D * P numbers for each sample of D elements, in the order that the transform says:
            [B, D * P] or [B, D, P], or any shape that flattens to it.
        inverse: compute the inverse transform.

    Returns:
        y like x, and log|det| [B] of the direction computed.

    Raises:
        ValueError: a wrong number of parameters, or an unknown option.

    Example:
        >>> from genssl_fast.ops.transforms import AffineTransform, apply_transform
        >>> shifts_and_log_scales = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
        >>> apply_transform(AffineTransform(), torch.ones(1, 2), shifts_and_log_scales)
        (tensor([[2., 3.]]), tensor([0.]))
    """
    count = num_parameters(transform)
    features = math.prod(x.shape[1:])
    expected = f"{features} * {count} numbers for each of {len(x)} samples"
    check(parameters.shape[0] == len(x), "parameters", expected, f"shape {list(parameters.shape)}")
    check(
        parameters[:1].numel() == min(len(x), 1) * features * count,
        "parameters", expected, f"shape {list(parameters.shape)}",
    )  # fmt: skip
    apply = _apply_affine if isinstance(transform, AffineTransform) else _apply_spline
    return apply(transform, x, parameters, inverse)


def _apply_affine(transform: AffineTransform, x, parameters, inverse):
    shift, log_scale = _shift_and_log_scale(transform.layout, x, parameters)
    return affine_coupling(
        x, shift, log_scale, inverse=inverse, clamp=transform.clamp, limit=transform.limit,
        offset=transform.offset, min_scale=transform.min_scale, order=transform.order,
    )  # fmt: skip


def _shift_and_log_scale(layout: str, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
    """Views of the parameters in the shape of x."""
    check_choice("layout", layout, ("shift", *LAYOUTS))
    if layout == "shift":
        return parameters.reshape(x.shape), None
    shift, log_scale = affine_parameters(parameters.flatten(1), layout)
    return shift.reshape(x.shape), log_scale.reshape(x.shape)


def _apply_spline(transform: SplineTransform, x, parameters, inverse):
    return rational_quadratic_spline(
        x, parameters.reshape(*x.shape, num_parameters(transform)), inverse=inverse, tails=transform.tails,
        bound=transform.bound, min_bin_width=transform.min_bin_width,
        min_bin_height=transform.min_bin_height, min_derivative=transform.min_derivative,
        parameterization=transform.parameterization, slope=transform.slope,
    )  # fmt: skip


def _num_derivatives(transform: SplineTransform) -> int:
    check_choice("tails", transform.tails, FREE_KNOTS)
    return transform.bins + FREE_KNOTS[transform.tails]
