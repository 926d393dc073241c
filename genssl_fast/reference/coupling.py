"""Layers of normalizing flows in plain PyTorch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from genssl_fast._autocast import without_autocast
from genssl_fast.reference.integrate import compute_dtype

__all__ = [
    "CLAMPS",
    "actnorm",
    "affine_coupling",
    "affine_coupling_backward",
    "gaussian_mixture_log_prob",
    "invertible_linear",
    "linear_weight",
    "permute",
    "planar",
    "radial",
    "rational_quadratic_spline",
    "rational_quadratic_spline_backward",
    "rational_quadratic_spline_tangent",
    "squeeze2d",
]

CLAMPS = ("none", "tanh", "atan", "sigmoid", "reciprocal_sigmoid", "softplus", "zuko")
# Tails of splines.
LINEAR, CIRCULAR = 1, 2
# A larger logit of a spline's slope counts as this one: squares of slopes stay finite.
MAX_SLOPE_LOGIT = 2.0**40


def affine_coupling(
    x, shift, log_scale, mask, split, inverse, clamp, limit, offset, min_scale, shift_first
) -> tuple[Tensor, Tensor]:
    """y = x e^s + t or (x + t) e^s, or its inverse, where ``mask`` or ``split`` says so; Σ s or −Σ s [B].

    ``clamp`` is a position in :data:`CLAMPS`; the first ``split`` channels, or the last if negative, stay.
    """
    dtype = x.dtype
    x, t = x.to(compute_dtype(dtype)), shift.to(compute_dtype(dtype))
    a = torch.zeros_like(t) if log_scale is None else log_scale.to(t.dtype)
    if mask is not None:
        t, a = torch.where(mask, t, 0.0), torch.where(mask, a, 0.0)
    low, high = x.tensor_split([split], 1) if split else (x[:0], x)
    part = low if split < 0 else high
    s = a if log_scale is None else clamped_log_scale(a, CLAMPS[clamp], limit, offset, min_scale)
    s = s if mask is None else torch.where(mask, s, 0.0)
    if inverse:
        y = part * torch.exp(-s) - t if shift_first else (part - t) * torch.exp(-s)
    else:
        y = (part + t) * torch.exp(s) if shift_first else part * torch.exp(s) + t
    log_abs_det = (-s if inverse else s).flatten(1).sum(1)
    if split:
        y = torch.cat([y, high] if split < 0 else [low, y], 1)
    return y.to(dtype), log_abs_det


def affine_coupling_backward(
    grad_y, grad_log_abs_det, x, shift, log_scale, *options
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shift and log_scale, the last empty without one."""

    def function(x, shift, *log_scale):
        return affine_coupling(x, shift, *(log_scale or (None,)), *options)

    given = (x, shift) if log_scale is None else (x, shift, log_scale)
    grads = torch.func.vjp(function, *given)[1]((grad_y, grad_log_abs_det))
    return grads if log_scale is not None else (*grads, x.new_zeros(0))


def clamped_log_scale(a, clamp: str, limit: float, offset: float, min_scale: float) -> Tensor:
    """The log-scale that a network's output ``a`` stands for."""
    match clamp:
        case "tanh":
            return limit * torch.tanh(a / limit)
        case "atan":
            return limit * 0.636 * torch.atan(a)
        case "zuko":
            return a / (1 + abs(a) / limit)
        case "sigmoid":
            return log_of_sigmoid(a + offset, min_scale)
        case "reciprocal_sigmoid":
            return -log_of_sigmoid(a + offset, min_scale)
        case "softplus":
            return log_of_softplus(a + offset, min_scale).clamp(max=math.log(limit))
    return a


def log_of_sigmoid(u: Tensor, min_scale: float) -> Tensor:
    return torch.log(torch.sigmoid(u) + min_scale) if min_scale else functional.logsigmoid(u)


def log_of_softplus(u: Tensor, min_scale: float) -> Tensor:
    """log(softplus(u) + min_scale); below rounding, softplus(u) is e^u."""
    if min_scale:
        return torch.log(softplus(u) + min_scale)
    tiny = softplus(u) < torch.finfo(u.dtype).eps / 16
    return torch.where(tiny, u, torch.log(softplus(torch.where(tiny, 0.0, u))))


def softplus(u: Tensor) -> Tensor:
    """log(1 + e^u); PyTorch's own is u above 20, which is not exact in fp64."""
    return -functional.logsigmoid(-u)


def rational_quadratic_spline(x, widths, heights, derivatives, inverse, elementwise, *options):
    """A monotone spline of rational quadratics for each element, the identity outside its box.

    widths, heights [*x.shape, K], derivatives [*x.shape, K - 1, K or K + 1], or all in ``widths`` and None;
    ``options`` as of :func:`spline_knots`. Returns y and log |dy/dx|, of samples or ``elementwise``.
    """
    dtype, argument = x.dtype, x.to(compute_dtype(x.dtype))
    if heights is None:
        widths, heights, derivatives = split_spline(widths, options[0])
    knots = spline_knots(*(p.to(argument.dtype) for p in (widths, heights, derivatives)), *options)
    low, high = options[4:6] if inverse else options[2:4]
    inside = (argument >= low) & (argument <= high)
    value, log_derivative = spline_of_knots(torch.where(inside, argument, low), *knots, inverse)
    value = torch.where(inside, value, argument)
    log_derivative = torch.where(inside, log_derivative, 0.0)
    if not elementwise and x.ndim > 1:
        log_derivative = log_derivative.flatten(1).sum(1)
    return value.to(dtype), log_derivative


def split_spline(parameters: Tensor, tails: int) -> tuple[Tensor, ...]:
    """Widths, heights and derivatives that lie behind each other."""
    free = {LINEAR: -1, CIRCULAR: 0}.get(tails, 1)
    bins = (parameters.shape[-1] - free) // 3
    return parameters.split([bins, bins, bins + free], -1)


def spline_knots(
    widths, heights, derivatives,
    tails, zuko, left, right, bottom, top, min_width, min_height, min_derivative, slope,
):  # fmt: skip
    """x and y of the K + 1 knots and the slopes there, each [*x.shape, K + 1], from logits."""
    if zuko:
        clip, min_width, min_height = -math.log(slope), 0.0, 0.0
        widths, heights = (a / (1 + abs(a / (clip / 2))) for a in (widths, heights))
        slopes = torch.exp(derivatives / (1 + abs(derivatives / clip)))
    else:
        slopes = min_derivative + softplus(derivatives.clamp(max=MAX_SLOPE_LOGIT))
    if tails == LINEAR:
        slopes = functional.pad(slopes, (1, 1), value=1.0)
    elif tails == CIRCULAR:
        slopes = torch.cat([slopes, slopes[..., :1]], -1)
    x = _axis_knots(widths, min_width, left, right, zuko)
    return x, _axis_knots(heights, min_height, bottom, top, zuko), slopes


def _axis_knots(logits: Tensor, min_share: float, low: float, high: float, zuko: bool) -> Tensor:
    """Knots from ``low`` to ``high``, both exact; those between round as nflows' or zuko's."""
    shares = min_share + (1 - min_share * logits.shape[-1]) * torch.softmax(logits, -1)
    sums = torch.cumsum(shares, -1)[..., :-1]
    inner = (low + high) / 2 + (high - low) / 2 * (2 * sums - 1) if zuko else low + (high - low) * sums
    ends = [torch.full_like(logits[..., :1], end) for end in (low, high)]
    return torch.cat([ends[0], inner, ends[1]], -1)


def spline_of_knots(argument, x, y, slopes, inverse: bool):
    """The spline or its inverse within its box, and the log-derivative of what was computed."""
    searched = y if inverse else x
    index = (argument[..., None] >= searched[..., 1:-1]).sum(-1, keepdim=True)
    x0, y0, d0 = (knots.gather(-1, index).squeeze(-1) for knots in (x, y, slopes))
    x1, y1, d1 = (knots.gather(-1, index + 1).squeeze(-1) for knots in (x, y, slopes))
    w, h = x1 - x0, y1 - y0
    s = h / w
    change = d0 + d1 - 2 * s
    if inverse:
        t = _solve_spline(((argument - y0) / h).clamp(0, 1), s, d0, d1)
    else:
        t = ((argument - x0) / w).clamp(0, 1)
    u, denominator = t * (1 - t), s + change * t * (1 - t)
    log_slope = 2 * torch.log(s) - 2 * torch.log(denominator)
    log_slope = log_slope + torch.log(d1 * t**2 + 2 * s * u + d0 * (1 - t) ** 2)
    if inverse:
        return _clamped(x0 + w * t, x0, x1), -log_slope
    return _clamped(y0 + h * (s * t**2 + d0 * u) / denominator, y0, y1), log_slope


def _clamped(value, low, high):
    """The value at most rounding away from [low, high], clamped to it; derivatives as without."""
    return value + (value.clamp(low, high) - value).detach()


def _solve_spline(share, s, d0, d1):
    """t in [0, 1] where the curve reaches this share e of the bin's height: (s − b) t² + b t = s e.

    With b = g + 2 s e and g = d0 (1 − e) − d1 e, b² + 4 (s − b) s e is g² + 4 s² e (1 − e): nothing cancels.
    """
    g, f = d0 * (1 - share) - d1 * share, 2 * s * share
    b, root = g + f, torch.sqrt(g**2 + 2 * f * s * (1 - share))
    rising = b >= 0
    return _clamped(torch.where(rising, f, root - b) / torch.where(rising, b + root, 2 * (s - b)), 0, 1)


def rational_quadratic_spline_backward(grad_value, grad_log, x, widths, heights, derivatives, *options):
    """Gradients of x, widths, heights and derivatives; empty for None."""

    def spline(*tensors):
        return rational_quadratic_spline(*_with_absent(tensors), *options)

    _, pullback = torch.func.vjp(spline, *_present(x, widths, heights, derivatives))
    found = pullback((grad_value, grad_log))
    return found + (x.new_empty(0),) * (4 - len(found))


def rational_quadratic_spline_tangent(
    dx, dwidths, dheights, dderivatives, x, widths, heights, derivatives, *options
):
    """Tangents of the value and of the log-derivative."""

    def spline(*tensors):
        return rational_quadratic_spline(*_with_absent(tensors), *options)

    tangents = _present(dx, dwidths, dheights, dderivatives)
    return torch.func.jvp(spline, _present(x, widths, heights, derivatives), tangents)[1]


def _present(*tensors):
    return tuple(tensor for tensor in tensors if tensor is not None)


def _with_absent(tensors):
    """x, widths, heights and derivatives, the last two None where they are absent."""
    return (*tensors, *[None] * (4 - len(tensors)))


def actnorm(x: Tensor, shift: Tensor, log_scale: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """x e^s + t with s and t [C] by channel of x [B, C, ...]."""
    dtype = compute_dtype(x.dtype)
    shift, log_scale = (_per_channel(value.to(dtype), x) for value in (shift, log_scale))
    if inverse:
        y = (x.to(dtype) - shift) * torch.exp(-log_scale)
    else:
        y = torch.addcmul(shift, x.to(dtype), torch.exp(log_scale))
    log_abs_det = _positions(x) * log_scale.sum()
    return y.to(x.dtype), _for_every_sample(-log_abs_det if inverse else log_abs_det, x)


def permute(x: Tensor, permutation: Tensor, inverse: bool) -> Tensor:
    """Channel i of the result is channel permutation[i] of x [B, C, ...]."""
    return x.index_select(1, permutation.argsort() if inverse else permutation)


def squeeze2d(x: Tensor, factor: int, inverse: bool) -> Tensor:
    """[B, C, H, W] -> [B, C f², H/f, W/f]; PyTorch's ``pixel_unshuffle`` fails for an empty batch."""
    batch, channels, height, width = x.shape
    if inverse:
        x = x.reshape(batch, channels // factor**2, factor, factor, height, width).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(batch, channels // factor**2, height * factor, width * factor)
    height, width = height // factor, width // factor
    x = x.reshape(batch, channels, height, factor, width, factor).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, channels * factor**2, height, width)


@without_autocast
def linear_weight(
    lower: Tensor,
    upper: Tensor,
    log_diagonal: Tensor,
    sign: Tensor,
    permutation: Tensor | None,
    inverse: bool,
) -> Tensor:
    """W = P L (U + diag(sign e^log_diagonal)), or its inverse, which is computed in fp64. [D, D]"""
    unit = torch.eye(len(log_diagonal), dtype=lower.dtype, device=lower.device)
    lower = lower.tril(-1) + unit
    upper = upper.triu(1) + torch.diag(sign * torch.exp(log_diagonal))
    if not inverse:
        weight = lower @ upper
        return weight if permutation is None else weight.index_select(0, permutation)
    half = torch.linalg.solve_triangular(lower.double(), unit.double(), upper=False, unitriangular=True)
    weight = torch.linalg.solve_triangular(upper.double(), half, upper=True).to(lower.dtype)
    return weight if permutation is None else weight.index_select(1, permutation)


@without_autocast
def invertible_linear(
    x, lower, upper, log_diagonal, sign, permutation, bias, inverse, weight_inverse
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """W x + b along dimension 1 of x [B, D] or [B, C, H, W]."""
    dtype = compute_dtype(x.dtype)
    factors = [value.to(dtype).contiguous() for value in (lower, upper, log_diagonal, sign)]
    y = x.to(dtype).contiguous()
    if inverse and bias is not None:
        y = y - _per_channel(bias.to(dtype), x)
    if inverse and weight_inverse is not None:
        weight = weight_inverse.to(dtype)
    else:
        weight = linear_weight(*factors, permutation, inverse)
    y = functional.linear(y, weight) if x.ndim == 2 else (weight @ y.flatten(2)).reshape(x.shape)
    if not inverse and bias is not None:
        y = y + _per_channel(bias.to(dtype), x)
    log_abs_det = _positions(x) * factors[2].sum()
    return y.to(x.dtype), _for_every_sample(-log_abs_det if inverse else log_abs_det, x)


def planar(
    x: Tensor, u: Tensor, w: Tensor, b: Tensor, inverse: bool, solve: Callable | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x + û tanh(w·x + b), where û is u moved along w until w·û = softplus(w·u) − 1 > −1."""
    dtype = compute_dtype(x.dtype)
    u, w, b, y = (value.to(dtype).contiguous() for value in (u, w, b, x))
    square = (w * w).sum(-1)
    log_slope = torch.where(square == 0, 0.0, log_of_softplus((w * u).sum(-1), 0.0))
    slope = torch.where(square == 0, 1.0, softplus((w * u).sum(-1)))
    along = (slope - 1 - (w * u).sum(-1)) * torch.where(square == 0, 0.0, 1 / _nonzero(square))
    u = u + along[..., None] * w
    inner = (w * y).sum(-1)
    if inverse:
        inner = (solve or planar_root)(inner, slope.expand_as(inner), b.expand_as(inner))
    height = torch.tanh(inner + b)
    log_abs_det = _log_or(height * height + slope * (1 - height * height), log_slope)
    step = u * height[..., None]
    if inverse:
        return (y - step).to(x.dtype), -log_abs_det
    return (y + step).to(x.dtype), log_abs_det


def planar_root(target: Tensor, slope: Tensor, b: Tensor) -> Tensor:
    """The a with a + (slope − 1) tanh(a + b) = target, by bisection; derivatives as of Newton's steps."""

    def excess(a):
        return a + (slope - 1) * torch.tanh(a + b) - target

    root = bisected_planar_root(target.detach(), slope.detach(), b.detach())
    for _ in range(2):  # each doubles the order of the derivatives that are right
        height = torch.tanh(root + b)
        step = excess(root) / (height * height + slope * (1 - height * height))
        root = root - (step - step.detach())
    return root


def bisected_planar_root(target: Tensor, slope: Tensor, b: Tensor) -> Tensor:
    """:func:`planar_root` without derivatives."""
    reach = (slope - 1).abs()
    low, high = target - reach, target + reach
    for _ in range(64 if target.dtype == torch.float64 else 32):
        middle = low + (high - low) / 2
        is_above = middle + (slope - 1) * torch.tanh(middle + b) > target
        low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
    return low + (high - low) / 2


def radial(
    x: Tensor, center: Tensor, log_alpha: Tensor, beta: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """center + d (r + softplus(beta)) / (r + alpha) with d = x − center, r = |d|; in fp64, whose range no
    finite fp32 alpha or radius leaves."""
    center, log_alpha, beta = center.double(), log_alpha.double(), beta.double()
    alpha, rest = torch.exp(log_alpha), softplus(beta)
    difference = (x.double() - center).contiguous()
    square = (difference * difference).sum(-1)
    radius = torch.where(square == 0, 0.0, torch.sqrt(_nonzero(square)))
    if inverse:
        radius = _radial_root(radius, alpha, rest)
    stretch = (radius + rest) / (radius + alpha)
    log_least = log_of_softplus(beta, 0.0) - log_alpha
    tangential = _log_or(stretch, log_least)
    near, far = alpha / (radius + alpha), radius / (radius + alpha)
    radially = _log_or(far * (1 + near) + near * (rest / (radius + alpha)), log_least)
    log_abs_det = ((x.shape[1] - 1) * tangential + radially).to(compute_dtype(x.dtype))
    if inverse:
        return (center + difference / _nonzero(stretch)[..., None]).to(x.dtype), -log_abs_det
    return (center + difference * stretch[..., None]).to(x.dtype), log_abs_det


def _radial_root(radius: Tensor, alpha: Tensor, rest: Tensor) -> Tensor:
    """The r ≥ 0 with r (r + rest) / (r + alpha) = radius: the root of r² + p r − radius alpha."""
    p = rest - radius
    product = radius * alpha
    square = p * p + 4 * product
    root = torch.where(square == 0, 0.0, torch.sqrt(_nonzero(square)))
    return torch.where(p > 0, 2 * product / _nonzero(p + root), (root - p) / 2)


def gaussian_mixture_log_prob(
    z: Tensor, means: Tensor, log_scales: Tensor, weights: Tensor
) -> Tensor:  # fmt: skip
    """log Σ_k weights_k N(z; means_k, diag(e^(2 log_scales_k))). [B, D] -> [B]"""
    dtype = compute_dtype(z.dtype)
    z, means, log_scales, weights = (value.to(dtype) for value in (z, means, log_scales, weights))
    log_scales = (log_scales if log_scales.ndim == 2 else log_scales.reshape(-1, 1)).expand_as(means)
    scaled = (z[:, None] - means) * torch.exp(-log_scales)
    log_density = -0.5 * (scaled * scaled + math.log(2 * math.pi)).sum(-1) - log_scales.sum(-1)
    return torch.logsumexp(torch.log(weights) + log_density, -1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[C] shaped to meet dimension 1 of ``like`` [B, C, ...]."""
    return values.reshape(-1, *(1,) * (like.ndim - 2))


def _positions(x: Tensor) -> int:
    """How often a channel occurs in a sample of x [B, C, ...]."""
    return math.prod(x.shape[2:])


def _for_every_sample(value: Tensor, x: Tensor) -> Tensor:
    """[] -> [B]"""
    return value.expand(x.shape[0]).clone()


def _log_or(values: Tensor, log_limit: Tensor) -> Tensor:
    """log(values), and their limit's logarithm where they underflow to zero."""
    return torch.where(values == 0, log_limit, torch.log(_nonzero(values)))


def _nonzero(values: Tensor) -> Tensor:
    """One where they are zero, so that neither a quotient nor its derivative is lost there."""
    return torch.where(values == 0, 1.0, values)
