"""Monotone rational-quadratic splines of every element, with the log-determinant."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genssl_fast._autograd import differentiable, rules_by_autograd
from genssl_fast._checks import check, check_choice, check_dtype, check_shape, values_are_checked
from genssl_fast._library import define, implement_triton
from genssl_fast.reference import coupling as reference
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["check_inside", "check_spline_options", "checked_box", "rational_quadratic_spline"]

TAILS = (None, "linear", "circular")
PARAMETERIZATIONS = ("softmax", "zuko")
MAX_BINS = 64

TENSORS = "Tensor x, Tensor widths, Tensor? heights, Tensor? derivatives"
OPTIONS = (
    "bool inverse, bool elementwise, int tails, bool zuko, float left, float right, float bottom, float top, "
    "float min_width, float min_height, float min_derivative, float slope"
)


def _fake(x, widths, heights, derivatives, inverse, elementwise, *options):
    log_shape = x.shape if elementwise else x.shape[:1]
    return x.new_empty(x.shape), x.new_empty(log_shape, dtype=torch.float32)


def _fake_tangent(dx, dwidths, dheights, dderivatives, *args):
    return _fake(*args)


def _fake_backward(grad_value, grad_log, *args):
    return tuple(args[0].new_empty(0) if t is None else t.new_empty(t.shape) for t in args[:4])


raw_spline = define(
    f"_rational_quadratic_spline({TENSORS}, {OPTIONS}) -> (Tensor, Tensor)",
    reference=reference.rational_quadratic_spline,
    fake=_fake,
)
raw_spline_backward = define(
    f"_rational_quadratic_spline_backward(Tensor grad_value, Tensor grad_log, {TENSORS}, {OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.rational_quadratic_spline_backward,
    fake=_fake_backward,
)
raw_spline_tangent = define(
    "_rational_quadratic_spline_tangent(Tensor dx, Tensor dwidths, Tensor? dheights, Tensor? dderivatives, "
    f"{TENSORS}, {OPTIONS}) -> (Tensor, Tensor)",
    reference=reference.rational_quadratic_spline_tangent,
    fake=_fake_tangent,
)
KERNELS = "coupling.rational_quadratic_spline"
implement_triton("_rational_quadratic_spline", KERNELS, "rational_quadratic_spline")
implement_triton("_rational_quadratic_spline_backward", KERNELS, "rational_quadratic_spline_backward")
_spline_backward = differentiable(
    raw_spline_backward, **rules_by_autograd(reference.rational_quadratic_spline_backward)
)
_spline_tangent = differentiable(
    raw_spline_tangent, **rules_by_autograd(reference.rational_quadratic_spline_tangent)
)


def _backward(inputs, outputs, grads):
    found = _spline_backward(*grads, *inputs)
    names = ("x", "widths", "heights", "derivatives")
    return {name: grad for name, grad in zip(names, found) if getattr(inputs, name) is not None}


def _jvp(inputs, outputs, tangents):
    given = [
        torch.zeros_like(v) if t is None and v is not None else t for t, v in zip(tangents[:4], inputs[:4])
    ]
    return _spline_tangent(*given, *inputs)


_spline = differentiable(raw_spline, backward=_backward, jvp=_jvp)


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None = None,
    derivatives: Tensor | None = None,
    *,
    inverse: bool = False,
    tails: str | None = "linear",
    bound: float | tuple[float, float, float, float] = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    parameterization: str = "softmax",
    slope: float = 1e-3,
    elementwise: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""A monotone spline of rational quadratics for every element, and the log-determinant.

    With K bins between knots :math:`(x_k, y_k)` and slopes :math:`d_k` there, in the bin that holds x, with
    :math:`w = x_{k+1} - x_k`, :math:`h = y_{k+1} - y_k`, :math:`s = h / w`, :math:`t = (x - x_k) / w`:

    .. math::
        y = y_k + h \frac{s t^2 + d_k t (1 - t)}{s + (d_k + d_{k+1} - 2 s) t (1 - t)}

    Outside its box the spline is the identity, whose log-derivative is 0. The inverse is computed in closed
    form. Both are finite for any finite parameters; a slope's logit counts as 2^40 at most. fp64 is computed
    by PyTorch, with knots equal to nflows'.

    Arguments:
        x: [B, ...], fp32, fp64, bf16 or fp16.
        widths, heights: logits of the bins [\*x.shape, K], K from 1 to 64. Parameters share one dtype: that
            of ``x``, or another of up to 32 bits if ``x`` has up to 32 bits. Chunks of a network's output
            [..., 3K - 1] are read where they lie.
            Or ``widths`` alone, an element's widths, heights and derivatives behind each other: then its
            gradient need not be put together from three.
        derivatives: logits of the slopes [\*x.shape, K - 1] of the inner knots for linear tails, K for
            circular ones (the last knot shares the first one's), K + 1 without tails.
        inverse: compute the inverse transform, x being its argument.
        tails: ``"linear"``: slope 1 at both ends, smooth continuation as the identity; ``"circular"``: equal
            slopes at both ends; None: free slopes, and no x may lie outside the box.
        bound: the box: [-bound, bound] on both axes, or (left, right, bottom, top), which must be the same
            interval twice unless ``tails`` is None; as numbers of the dtype of ``x``.
        min_bin_width, min_bin_height: least share of a bin in the box; K of them are at most 1.
        min_derivative: least slope at a knot.
        parameterization: ``"softmax"``: bins by softmax and slopes by softplus over their minima (nflows,
            normflows); ``"zuko"``: soft-clipped logits, slopes by exp, and no minima.
        slope: with ``"zuko"``, the least slope of a bin.
        elementwise: return log-derivatives of elements instead of their sums over a sample.

    Returns:
        y, contiguous and like ``x``, and log|det| of the direction computed: [B], or the shape of ``x`` if
        ``elementwise``; fp32, or fp64 for fp64 ``x``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.
            That x lies in the box without tails is checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``;
            unchecked, x outside it stays as it is.

    References:
        Durkan et al., Neural Spline Flows, https://arxiv.org/abs/1906.04032;
        Rezende et al., Normalizing Flows on Tori and Spheres, https://arxiv.org/abs/2002.02428 (circular)

    Example:
        >>> x, parameters = torch.randn(4, 3), torch.randn(4, 3, 23)
        >>> widths, heights, derivatives = parameters.split([8, 8, 7], dim=-1)
        >>> y, log_abs_det = genssl_fast.rational_quadratic_spline(x, widths, heights, derivatives, bound=3.0)
        >>> y.shape, log_abs_det.shape
        (torch.Size([4, 3]), torch.Size([4]))
    """
    check_choice("tails", tails, TAILS)
    check_choice("parameterization", parameterization, PARAMETERIZATIONS)
    bins = _checked_bins(x, widths, heights, derivatives, tails)
    box, zuko = checked_box(bound, tails, x.dtype), parameterization == "zuko"
    minima = min_bin_width, min_bin_height, min_derivative
    check_spline_options("", bins, minima, parameterization, slope, compute_dtype(x.dtype))
    if tails is None and x.numel() and values_are_checked(x):
        check_inside(x, *(box[2:] if inverse else box[:2]))
    # In fp64, an oracle rather than a hot path, PyTorch's own sums give nflows' knots to the last bit: steep
    # splines magnify any other rounding of them. With the kernels' knots, which round less, log-derivatives
    # would differ from nflows' by up to 4e-11 on the splines of test_nflows.
    apply = reference.rational_quadratic_spline if x.dtype == torch.float64 else _spline
    return apply(
        x, widths, heights, derivatives, bool(inverse), bool(elementwise), TAILS.index(tails), zuko, *box,
        float(min_bin_width), float(min_bin_height), float(min_derivative), float(slope),
    )  # fmt: skip


def _checked_bins(x, widths, heights, derivatives, tails) -> int:
    """Number of bins, once every tensor fits it."""
    check_dtype("x", x)
    check(x.ndim >= 1, "x", "shape [B, ...]", list(x.shape))
    check_dtype("widths", widths)
    check((heights is None) == (derivatives is None), "heights, derivatives", "both or neither", "one")
    packed, free = heights is None, {"linear": -1, "circular": 0, None: 1}[tails]
    columns = widths.shape[-1] if widths.ndim else 0
    bins = (columns - free) // 3 if packed else columns
    check(1 <= bins <= MAX_BINS, "widths", f"1 to {MAX_BINS} bins in the last dimension", bins)
    slopes = f"{bins + free} for {bins} bins and tails {tails!r}"
    if packed:
        _check_logits("widths", widths, x, widths, 3 * bins + free, f"2 K + {slopes}")
    else:
        _check_logits("widths", widths, x, widths, bins, "K")
        _check_logits("heights", heights, x, widths, bins, "K")
        _check_logits("derivatives", derivatives, x, widths, bins + free, slopes)
    if (x.dtype == torch.float64) != (widths.dtype == torch.float64):
        expected = "64 bits for both x and parameters or for neither"
        raise TypeError(f"widths: expected {expected}, got {widths.dtype} and x {x.dtype}")
    return bins


def _check_logits(name, tensor, x, widths, size, meaning) -> None:
    check_dtype(name, tensor)
    check_shape(name, tensor, (*x.shape, size), f"[*x.shape, {meaning}]")
    check(tensor.device == x.device, name, f"a tensor on {x.device}", f"one on {tensor.device}")
    if tensor.dtype != widths.dtype:
        raise TypeError(f"{name}: expected the dtype of widths, {widths.dtype}, got {tensor.dtype}")


def check_spline_options(
    name: str, bins: int, minima: tuple[float, float, float], parameterization: str, slope: float, dtype
) -> None:
    """Least widths, heights and derivatives of bins, or Zuko's slope, as numbers of a dtype."""
    if parameterization == "zuko":
        is_usable = torch.finfo(dtype).tiny <= rounded(slope, dtype) < 1
        check(is_usable, f"{name}slope", "a number between 0 and 1", slope)
        return
    *shares, derivative = minima
    for axis, share in zip(("width", "height"), shares):
        fits = share > 0 and share * bins <= 1
        check(fits, f"{name}min_bin_{axis}", f"a positive share, {bins} of them at most 1", share)
    is_usable = torch.finfo(dtype).tiny <= derivative <= reference.MAX_SLOPE_LOGIT
    check(is_usable, f"{name}min_derivative", "a positive number of at most 2^40", derivative)


def checked_box(bound, tails, dtype=torch.float64) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) as numbers of the dtype of x."""
    if isinstance(bound, int | float):
        check(0 < bound < math.inf, "bound", "a positive finite number", bound)
        left, right, bottom, top = (-float(bound), float(bound)) * 2
    else:
        if not isinstance(bound, Sequence):
            raise TypeError(f"bound: expected a number or (left, right, bottom, top), got {bound!r}")
        check(len(bound) == 4, "bound", "a number or (left, right, bottom, top)", bound)
        left, right, bottom, top = map(float, bound)
        check(-math.inf < left < right < math.inf, "bound", "left < right, both finite", bound)
        check(-math.inf < bottom < top < math.inf, "bound", "bottom < top, both finite", bound)
        same = (left, right) == (bottom, top)
        check(tails is None or same, "bound", f"one interval on both axes for tails {tails!r}", bound)
    left, right, bottom, top = (rounded(number, dtype) for number in (left, right, bottom, top))
    limits = torch.finfo(compute_dtype(dtype))
    for side in (right - left, top - bottom):
        fits = limits.tiny / limits.eps <= side <= limits.max
        check(fits, "bound", f"sides of the box between 0 and infinity in {dtype}", bound)
    return left, right, bottom, top


def rounded(number: float, dtype: torch.dtype) -> float:
    """The nearest number of a dtype; infinity beyond its largest."""
    if dtype == torch.float64 or not math.isfinite(number):
        return float(number)
    limits = torch.finfo(dtype)
    step = max(2.0 ** (math.frexp(number)[1] - 1), limits.tiny) * limits.eps
    nearest = round(number / step) * step
    return nearest if abs(nearest) <= limits.max else math.copysign(math.inf, number)


def check_inside(x: Tensor, low: float, high: float) -> None:
    outside = (x < low) | (x > high)
    if outside.any():
        least, most = (value.item() for value in torch.aminmax(x.detach()[outside]))
        expected = f"values in the box, [{low:g}, {high:g}], without tails"
        check(False, "x", expected, f"{least:g} to {most:g}")
