"""Elementwise transforms as plain data: what couplings and autoregressive networks give parameters to."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast._checks import check, check_choice, check_dtype, check_integer
from genssl_fast.ops.affine_coupling import (
    LAYOUTS,
    ORDERS,
    affine_coupling,
    affine_parameters,
    checked_options,
)
from genssl_fast.ops.rational_quadratic_spline import (
    MAX_BINS,
    PARAMETERIZATIONS,
    check_spline_options,
    checked_box,
    rational_quadratic_spline,
)
from genssl_fast.reference.coupling import CLAMPS

__all__ = [
    "AffineTransform",
    "SplineTransform",
    "apply_transform",
    "check_transform",
    "num_parameters",
    "pixel_parameters",
]

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
    _check_kind(transform)
    return 2 * transform.bins + _num_derivatives(transform)


def check_transform(transform: AffineTransform | SplineTransform) -> None:
    """A transform whose options are in range, whatever its parameters.

    Raises:
        ValueError, TypeError: another kind of transform, an option out of range; the message names it.

    Example:
        >>> from genssl_fast.ops.transforms import SplineTransform, check_transform
        >>> check_transform(SplineTransform(bins=65))
        Traceback (most recent call last):
        ValueError: transform.bins: expected 1 to 64, got 65
    """
    _check_kind(transform)
    check_options = _check_affine if isinstance(transform, AffineTransform) else _check_spline
    check_options(transform)


def _check_kind(transform) -> None:
    if not isinstance(transform, AffineTransform | SplineTransform):
        kind = type(transform).__name__
        raise TypeError(f"transform: expected an AffineTransform or a SplineTransform, got {kind}")


def _check_affine(transform: AffineTransform) -> None:
    clamp, limit, offset, min_scale, layout, order = transform
    check_choice("transform.clamp", clamp, CLAMPS)
    check_choice("transform.layout", layout, ("shift", *LAYOUTS))
    check_choice("transform.order", order, ORDERS)
    check(layout != "shift" or clamp == "none", "transform.clamp", "'none' for shifts alone", repr(clamp))
    checked_options(clamp, limit=limit, offset=offset, min_scale=min_scale)


def _check_spline(transform: SplineTransform) -> None:
    bins, tails, bound, min_width, min_height, min_derivative, parameterization, slope = transform
    check_integer("transform.bins", bins)
    check(1 <= bins <= MAX_BINS, "transform.bins", f"1 to {MAX_BINS}", bins)
    check_choice("transform.tails", tails, FREE_KNOTS)
    check_choice("transform.parameterization", parameterization, PARAMETERIZATIONS)
    checked_box(bound, tails)
    minima = min_width, min_height, min_derivative
    check_spline_options("transform.", bins, minima, parameterization, slope, torch.float32)


def apply_transform(
    transform: AffineTransform | SplineTransform, x: Tensor, parameters: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The transform of every element of x, with parameters as a network gave them.

    Arguments:
        transform: what to compute.
        x: [B, ...].
        parameters: D * P numbers for each sample of D elements, in the order that the transform says:
            [B, D * P] or [B, D, P], or any shape that flattens to it; 64 bits for both or for neither of
            ``x`` and these, as a network under autocast gives 16 bits for ``x`` of 32.
        inverse: compute the inverse transform.

    Returns:
        y like x, and log|det| [B] of the direction computed.

    Raises:
        ValueError, TypeError: a wrong number or dtype of parameters, or an unknown option.

    Example:
        >>> from genssl_fast.ops.transforms import AffineTransform, apply_transform
        >>> shifts_and_log_scales = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
        >>> apply_transform(AffineTransform(), torch.ones(1, 2), shifts_and_log_scales)
        (tensor([[2., 3.]]), tensor([0.]))
    """
    check_dtype("x", x)
    check_dtype("parameters", parameters)
    if (x.dtype == torch.float64) != (parameters.dtype == torch.float64):
        expected = "64 bits for both x and parameters or for neither"
        raise TypeError(f"parameters: expected {expected}, got {parameters.dtype} and x {x.dtype}")
    count = num_parameters(transform)
    features = math.prod(x.shape[1:])
    expected = f"{features} * {count} numbers for each of {len(x)} samples"
    fits = parameters.shape[0] == x.shape[0] and parameters.numel() == x.numel() * count
    check(fits, "parameters", expected, f"shape {list(parameters.shape)}")
    apply = _apply_affine if isinstance(transform, AffineTransform) else _apply_spline
    return apply(transform, x, parameters, inverse)


def _apply_affine(transform: AffineTransform, x, parameters, inverse):
    dtype = torch.promote_types(x.dtype, parameters.dtype)
    shift, log_scale = _shift_and_log_scale(transform.layout, x, parameters.to(dtype))
    y, log_abs_det = affine_coupling(
        x.to(dtype), shift, log_scale, inverse=inverse, clamp=transform.clamp, limit=transform.limit,
        offset=transform.offset, min_scale=transform.min_scale, order=transform.order,
    )  # fmt: skip
    return y.to(x.dtype), log_abs_det


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


def pixel_parameters(transform: AffineTransform | SplineTransform, output: Tensor, channels: int) -> Tensor:
    """A network's output [B, channels * P, H, W], in the order that :func:`apply_transform` reads.

    Example:
        >>> from genssl_fast.ops.transforms import SplineTransform, pixel_parameters
        >>> pixel_parameters(SplineTransform(bins=2), torch.zeros(1, 3 * 5, 4, 4), 3).shape
        torch.Size([1, 3, 4, 4, 5])
    """
    if getattr(transform, "layout", "").startswith(("cat", "shift")):
        return output
    return output.unflatten(1, (channels, -1)).movedim(2, -1)
