"""Affine coupling: an elementwise affine map and its log-determinant in one pass."""

import math

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import differentiable, rules_by_autograd
from genssl_fast._checks import (
    check,
    check_choice,
    check_dtype,
    check_integer,
    check_same,
    check_shape,
    values_are_checked,
)
from genssl_fast._library import define, implement_triton
from genssl_fast.reference.coupling import CLAMPS

__all__ = ["affine_coupling", "affine_parameters", "checked_options"]

OPTIONS = "int split, bool inverse, int clamp, float limit, float offset, float min_scale, bool shift_first"
TENSORS = "Tensor x, Tensor shift, Tensor? log_scale, Tensor? mask"
ORDERS = ("scale_shift", "shift_scale")
LAYOUTS = ("cat", "cat_scale_first", "interleaved", "interleaved_scale_first")
# Of each clamp, the options that it has.
DEFAULTS = {
    "none": {},
    "tanh": {"limit": 2.0},
    "atan": {"limit": 2.0},
    "sigmoid": {"offset": 2.0, "min_scale": 1e-3},
    "reciprocal_sigmoid": {"offset": 2.0, "min_scale": 1e-3},
    "softplus": {"limit": math.inf, "offset": 0.0, "min_scale": 1e-3},
    "zuko": {"limit": -math.log(1e-3)},
}


NEUTRAL = {"limit": 1.0, "offset": 0.0, "min_scale": 0.0}  # where a clamp has no such option
FLOAT32 = torch.finfo(torch.float32)


def _fake(x, *args):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=dtype)


def _fake_backward(grad_y, grad_log_abs_det, x, shift, log_scale, *args):
    like_log_scale = x.new_empty(0) if log_scale is None else log_scale.new_empty(log_scale.shape)
    return x.new_empty(x.shape), shift.new_empty(shift.shape), like_log_scale


raw_affine_coupling = define(
    f"_affine_coupling({TENSORS}, {OPTIONS}) -> (Tensor, Tensor)",
    reference=reference.coupling.affine_coupling,
    fake=_fake,
)
raw_affine_coupling_backward = define(
    f"_affine_coupling_backward(Tensor grad_y, Tensor grad_log_abs_det, {TENSORS}, {OPTIONS}) "
    "-> (Tensor, Tensor, Tensor)",
    reference=reference.coupling.affine_coupling_backward,
    fake=_fake_backward,
)
implement_triton("_affine_coupling", "coupling.affine_coupling", "affine_coupling")
implement_triton("_affine_coupling_backward", "coupling.affine_coupling", "affine_coupling_backward")

_affine_coupling_backward = differentiable(
    raw_affine_coupling_backward, **rules_by_autograd(reference.coupling.affine_coupling_backward)
)


def _backward(inputs, outputs, grads):
    to_x, to_shift, to_log_scale = _affine_coupling_backward(*grads, *inputs)
    return {
        "x": to_x,
        "shift": to_shift,
        "log_scale": None if inputs.log_scale is None else to_log_scale,
    }


_affine_coupling = differentiable(
    raw_affine_coupling,
    backward=_backward,
    jvp=rules_by_autograd(reference.coupling.affine_coupling)["jvp"],
)


def affine_coupling(
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor | None,
    *,
    inverse: bool = False,
    clamp: str = "none",
    limit: float | None = None,
    offset: float | None = None,
    min_scale: float | None = None,
    order: str = "scale_shift",
    mask: Tensor | None = None,
    split: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""An affine map of each element, and the logarithm of its Jacobian determinant, in one pass.

    .. math::
        y = x e^{s} + t, \qquad \log |\det| = \sum s

    where t is ``shift`` and s, the clamped log-scale, depends on a = ``log_scale``:

    ======================== ==========================================================================
    ``"none"``               :math:`s = a`
    ``"tanh"``               :math:`s = \mathrm{limit} \tanh(a / \mathrm{limit})` (RealNVP)
    ``"atan"``               :math:`s = 0.636 \, \mathrm{limit} \arctan a` (FrEIA)
    ``"sigmoid"``            :math:`e^s = \sigma(a + \mathrm{offset}) + \mathrm{min\_scale}`
                             (nflows; Glow with ``min_scale=0``)
    ``"reciprocal_sigmoid"`` :math:`e^{-s} = \sigma(a + \mathrm{offset}) + \mathrm{min\_scale}` (normflows)
    ``"softplus"``           :math:`e^s = \min(\log(1 + e^{a + \mathrm{offset}}) + \mathrm{min\_scale},
                             \mathrm{limit})` (nflows' MAF)
    ``"zuko"``               :math:`s = a / (1 + |a| / \mathrm{limit})`
    ======================== ==========================================================================

    Arguments:
        x: [B, ...], fp32, fp64, bf16 or fp16.
        shift: like ``x``, or like its transformed part with ``split``. Any strides: a view of a network's
            output, such as :func:`affine_parameters` gives, is not copied.
        log_scale: like ``shift``; None for an additive coupling (NICE), which takes no clamp.
        inverse: compute :math:`x = (y - t) e^{-s}` from y instead, and the log-determinant of that.
        clamp: how ``log_scale`` is bounded.
        limit: of tanh and atan, by default 2; of zuko, by default −log 1e-3; of softplus, an upper bound of
            the scale, by default none. This and the next two are numbers of fp32.
        offset: of the sigmoids, by default 2; of softplus, by default 0.
        min_scale: at least 0, by default 1e-3; of the sigmoids and of softplus. With 0 the scale is not
            bounded below, that of reciprocal_sigmoid (as normflows has it) not above.
        order: ``"scale_shift"``, or ``"shift_scale"`` for :math:`y = (x + t) e^s` (Glow, FlowGMM).
        mask: bool of the shape of a sample, ``x.shape[1:]``; True is transformed, the rest passes through.
        split: the first ``split`` entries of dimension 1 pass through, or the last ones if it is negative.

    Returns:
        y, contiguous and like ``x``, and log|det| [B] in fp32 (fp64 for fp64), natural logarithm.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.
            A mask of nothing but False is found on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    References:
        Dinh et al., Density estimation using Real NVP, https://arxiv.org/abs/1605.08803;
        Kingma and Dhariwal, Glow, https://arxiv.org/abs/1807.03039

    Example:
        >>> x, network_output = torch.ones(2, 6), torch.zeros(2, 6)
        >>> shift, log_scale = genssl_fast.affine_parameters(network_output)
        >>> y, log_abs_det = genssl_fast.affine_coupling(x, shift, log_scale, clamp="tanh", split=3)
        >>> y.shape, log_abs_det
        (torch.Size([2, 6]), tensor([0., 0.]))
    """
    _check_tensors(x, shift, log_scale, mask, split)
    check_choice("clamp", clamp, CLAMPS)
    check_choice("order", order, ORDERS)
    check(log_scale is not None or clamp == "none", "clamp", "'none' without a log_scale", repr(clamp))
    options = checked_options(clamp, limit=limit, offset=offset, min_scale=min_scale)
    return _affine_coupling(
        x, shift, log_scale, mask, split or 0, inverse, CLAMPS.index(clamp), *options, order == "shift_scale"
    )


def affine_parameters(network_output: Tensor, layout: str = "cat", dim: int = 1) -> tuple[Tensor, Tensor]:
    """The shift and log_scale in a network's output, as views.

    Arguments:
        network_output: 2 C entries in dimension ``dim``.
        layout: ``"cat"`` for all shifts before all log-scales (nflows), ``"interleaved"`` for pairs of shift
            and log-scale (normflows); ``"cat_scale_first"`` (FrEIA) and ``"interleaved_scale_first"``
            (nflows' MAF) have the log-scale first.
        dim: dimension to take apart.

    Returns:
        shift and log_scale, with C entries in dimension ``dim``.

    Raises:
        ValueError: an odd number of entries, or an unknown layout.

    Example:
        >>> genssl_fast.affine_parameters(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "interleaved")
        (tensor([[1., 3.]]), tensor([[2., 4.]]))
    """
    check_choice("layout", layout, LAYOUTS)
    size = network_output.shape[dim]
    check(size % 2 == 0, "network_output", f"an even number of entries in dimension {dim}", size)
    interleaved = layout.startswith("interleaved")
    pairs = network_output.unflatten(dim, (size // 2, 2) if interleaved else (2, size // 2))
    dim = dim % network_output.ndim
    first, second = pairs.unbind(dim + interleaved)
    return (second, first) if layout.endswith("scale_first") else (first, second)


def _check_tensors(x, shift, log_scale, mask, split) -> None:
    check_dtype("x", x)
    check(x.ndim >= 2, "x", "shape [B, ...] with at least one dimension after the batch", list(x.shape))
    check_same("shift", shift, x, "x", shape=False)
    if split is None:
        check_same("shift", shift, x, "x")
    else:
        check(mask is None, "mask, split", "at most one of them", "both")
        check_integer("split", split)
        channels = x.shape[1]
        check(0 < abs(split) < channels, "split", f"from 1 to {channels - 1}, or the negative of it", split)
        part = (x.shape[0], channels - abs(split), *x.shape[2:])
        check_shape("shift", shift, part, "the transformed part of x")
    if log_scale is not None:
        check_same("log_scale", log_scale, shift, "shift")
    if mask is not None:
        _check_mask(mask, x)


def _check_mask(mask, x) -> None:
    check_dtype("mask", mask, (torch.bool,))
    check_shape("mask", mask, x.shape[1:], "that of a sample")
    check(mask.device == x.device, "mask", f"a tensor on {x.device}", f"one on {mask.device}")
    if values_are_checked(mask):
        check(bool(mask.any()), "mask", "True where an element is transformed", "nothing but False")


def checked_options(clamp: str, **given: float | None) -> tuple[float, float, float]:
    """limit, offset and min_scale, with the clamp's defaults."""
    defaults = DEFAULTS[clamp]
    for name, value in given.items():
        check(value is None or name in defaults, name, f"None with clamp={clamp!r}", value)
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    chosen = defaults | {name: float(value) for name, value in given.items() if value is not None}
    limit, offset, min_scale = (chosen.get(name, neutral) for name, neutral in NEUTRAL.items())
    largest, has_bound = FLOAT32.max, clamp != "softplus" or limit != math.inf
    check(FLOAT32.tiny <= limit <= largest or not has_bound, "limit", "a positive number of fp32", limit)
    check(abs(offset) <= largest, "offset", "a finite number of fp32", offset)
    check(0 <= min_scale <= largest, "min_scale", "a finite number of fp32, at least 0", min_scale)
    return limit, offset, min_scale
