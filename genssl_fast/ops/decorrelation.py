"""Feature decorrelation without a D×D matrix: Barlow Twins and VICReg.

**Many processes.** With ``group`` the rows of both views are spread over the processes of a group, in parts
of one or more, and the loss is that of all of them: means, variances and correlations too. Values, gradients
and what raises an error are as in :mod:`genssl_fast.ops.contrastive`. It takes Gram matrices whatever D is:
blocks of rows travel a ring, and a process stores O(N D) for its own N. Every process finds its gradient
together with the value, so that the backward pass exchanges nothing.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from genssl_fast._autograd import differentiable, rules_by_autograd, wants_gradient
from genssl_fast._checks import check, check_choice, check_dtype, check_number, check_same
from genssl_fast._library import define
from genssl_fast.ops import decorrelation_group
from genssl_fast.ops.ring import Ring
from genssl_fast.reference import contrast
from genssl_fast.reference.contrast import decorrelation_products
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["barlow_twins", "vicreg"]

FORMS = ("gram", "tiles")
# How code bases weight their terms: weight of what is off the diagonal, scale of the loss.
BARLOW_TWINS = {"original": (0.0051, 1.0), "lightly": (5e-3, 1.0), "solo-learn": (5e-3, 0.025)}
VICREG = ("original", "paper", "lightly", "solo-learn")


def _fake(z1, z2, *options):
    gram, keep = options[-2:]
    (n, d), dtype = z1.shape, compute_dtype(z1.dtype)
    kept = (2, n, n if gram else decorrelation_products.padded(d)) if keep else (0,)
    statistics = z1.new_empty(decorrelation_products.STATISTICS, d, dtype=dtype)
    return z1.new_empty((), dtype=dtype), z1.new_empty(kept, dtype=dtype), statistics


def _fake_backward(grad, z1, z2, *args):
    return z1.new_empty(z1.shape), z2.new_empty(z2.shape)


def _loss(name: str, options: str, reference: Callable, implementation, implementation_backward) -> Callable:
    """The loss of two views, what its gradient needs and statistics, differentiable in the views.

    Derivatives of the loss are its kernel's; second and forward-mode ones those of the D×D reference.
    """
    raw = define(
        f"_{name}(Tensor z1, Tensor z2, {options}, bool gram, bool keep) -> (Tensor, Tensor, Tensor)",
        reference=implementation,
        fake=_fake,
    )
    raw_backward = define(
        f"_{name}_backward(Tensor grad, Tensor z1, Tensor z2, Tensor products, Tensor statistics, "
        f"{options}, bool gram) -> (Tensor, Tensor)",
        reference=implementation_backward,
        fake=_fake_backward,
    )

    def reference_gradient(grad, z1, z2, products, statistics, *options):
        _, pullback = torch.func.vjp(lambda *views: reference(*views, *options[:-1]), z1, z2)
        return pullback(grad)

    apply_backward = differentiable(raw_backward, **rules_by_autograd(reference_gradient))
    tangent = rules_by_autograd(lambda z1, z2, *options: reference(z1, z2, *options[:-2]))["jvp"]

    def backward(inputs, outputs, grads):
        views, options = (inputs.z1, inputs.z2), inputs[2:-1]
        if not inputs.keep:
            outputs = apply(*views, *options, True)
        to_z1, to_z2 = apply_backward(grads[0], *views, *outputs[1:], *options)
        return {"z1": to_z1, "z2": to_z2}

    def jvp(inputs, outputs, tangents):
        return tangent(inputs, outputs[:1], tangents), *map(torch.zeros_like, outputs[1:])

    apply = differentiable(raw, backward=backward, jvp=jvp, save_outputs=True)
    return apply


_barlow_twins = _loss(
    "barlow_twins",
    "float weight, float scale, float eps",
    contrast.barlow_twins,
    decorrelation_products.barlow_twins,
    decorrelation_products.barlow_twins_backward,
)
_vicreg = _loss(
    "vicreg",
    "float invariance, float variance, float covariance, float gamma, float eps",
    contrast.vicreg,
    decorrelation_products.vicreg,
    decorrelation_products.vicreg_backward,
)


def barlow_twins(
    z1: Tensor,
    z2: Tensor,
    *,
    weight: float | None = None,
    scale: float | None = None,
    eps: float = 1e-5,
    convention: str = "original",
    form: str | None = None,
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""Barlow Twins: the correlations of two views' features are drawn to the identity.

    .. math::
        L = \mathrm{scale} \Big( \sum_i (1 - C_{ii})^2 + \mathrm{weight} \sum_{i \ne j} C_{ij}^2 \Big),
        \qquad C = \tfrac{1}{N} \hat{z}_1^\top \hat{z}_2

    where :math:`\hat{z}` is z with its features normalised over the batch as batch norm does (biased
    variance, ``eps`` added to it). C [D, D] is never stored. With Gram matrices [N, N] the loss and its
    gradient take :math:`6 N^2 D` operations instead of :math:`6 N D^2`; memory is linear in z either way.

    Arguments:
        z1, z2: [N, D], N at least 2, over all processes; fp32, fp64, bf16 or fp16 (the last two computed in
            fp32).
        weight: of the redundancy term, by default the convention's.
        scale: of the whole loss, by default the convention's.
        eps: added to the variances, greater than 0; a feature without variance has no correlation.
        convention: ``"original"`` (facebookresearch/barlowtwins: weight 0.0051, scale 1), ``"lightly"``
            (weight 0.005, scale 1) or ``"solo-learn"`` (weight 0.005, scale 0.025).
        form: ``"gram"``, ``"tiles"`` for blocks of C, or None: Gram matrices where 2 N < D or with ``group``.
        group: processes over which the rows are spread; see :mod:`genssl_fast.ops.decorrelation`.

    Returns:
        The loss, a scalar in fp32 (fp64 for fp64). Its gradient is as fast as its value; second derivatives
        and forward mode go through the D×D formula, with ``group`` they raise ``NotImplementedError``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.

    References:
        Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction,
        https://arxiv.org/abs/2103.03230

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> genssl_fast.barlow_twins(z, -z).item()  # two features, correlations of −1
        7.999919891357422
    """
    check_dtype("z1", z1)
    check(z1.ndim == 2, "z1", "shape [N, D]", list(z1.shape))
    check_same("z2", z2, z1, "z1")
    gram = _checked_form(z1, form, group)
    check_choice("convention", convention, BARLOW_TWINS)
    default_weight, default_scale = BARLOW_TWINS[convention]
    weight = _checked_number("weight", default_weight if weight is None else weight)
    scale = _checked_number("scale", default_scale if scale is None else scale)
    eps = _checked_number("eps", eps, positive=True)
    if group is not None:
        same = {"weight": weight, "scale": scale, "eps": eps}
        ring = _ring(group, z1, z2, {"loss": "barlow_twins", "convention": convention} | same)
        return decorrelation_group.barlow_twins(z1, z2, ring, weight, scale, eps)
    return _barlow_twins(z1, z2, weight, scale, eps, gram, wants_gradient((z1, z2)))[0]


def vicreg(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
    convention: str = "original",
    form: str | None = None,
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""VICReg: invariance of two views, features of at least unit deviation and without covariance.

    .. math::
        L = \mathrm{invariance} \, s(z_1, z_2)
            + \mathrm{variance} \, \big(v(z_1) + v(z_2)\big) h
            + \mathrm{covariance} \, \big(c(z_1) + c(z_2)\big)

        v(z) = \tfrac{1}{D} \sum_i \max\big(0, \gamma - \sqrt{\mathrm{Var}(z_i) + \mathrm{eps}}\big),
        \qquad c(z) = \tfrac{1}{D} \sum_{i \ne j} \mathrm{Cov}(z)_{ij}^2

    with unbiased variances and covariances. The code bases differ in s and h:

    ============== ====================================================== =====
    convention     s                                                      h
    ============== ====================================================== =====
    ``original``   mean of :math:`(z_1 - z_2)^2` over rows and features   1/2
    ``lightly``    the same                                               1/2
    ``solo-learn`` the same                                               1
    ``paper``      mean over rows of :math:`\|z_1 - z_2\|^2`, D times it  1
    ============== ====================================================== =====

    The covariances [D, D] are never stored; see :func:`barlow_twins` for the two forms. Where a few features
    have nearly all the variance, Gram matrices lose digits that tiles keep.

    Arguments:
        z1, z2: [N, D], N at least 2, over all processes; fp32, fp64, bf16 or fp16 (the last two computed in
            fp32). Dimensions between, as in [N, P, D], are positions: the loss is the mean of theirs.
        invariance, variance, covariance: weights of the terms, at least 0.
        gamma: the deviation below which a feature is pushed apart.
        eps: added to the variances, greater than 0.
        convention: ``"original"`` (facebookresearch/vicreg), ``"paper"``, ``"lightly"`` or ``"solo-learn"``.
        form: ``"gram"``, ``"tiles"`` for blocks of the covariances, or None: Gram matrices where 2 N < D or
            with ``group``.
        group: processes over which the rows are spread; see :mod:`genssl_fast.ops.decorrelation`.

    Returns:
        The loss, a scalar in fp32 (fp64 for fp64). Its gradient is as fast as its value; second derivatives
        and forward mode go through the D×D formula, with ``group`` they raise ``NotImplementedError``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.

    References:
        Bardes, Ponce and LeCun, VICReg: Variance-Invariance-Covariance Regularization,
        https://arxiv.org/abs/2105.04906

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> genssl_fast.vicreg(z, z).item()  # invariant, spread and uncorrelated
        0.0
    """
    check_dtype("z1", z1)
    check(z1.ndim >= 2, "z1", "shape [N, ..., D]", list(z1.shape))
    check_same("z2", z2, z1, "z1")
    if z1.ndim > 2 and group is None:
        options = dict(invariance=invariance, variance=variance, covariance=covariance, gamma=gamma)
        positions = (z.flatten(1, -2).unbind(1) for z in (z1, z2))
        each = [vicreg(*z, **options, eps=eps, convention=convention, form=form) for z in zip(*positions)]
        check(len(each) > 0, "z1", "at least one position", list(z1.shape))
        return torch.stack(each).mean()
    gram = _checked_form(z1, form, group)
    check_choice("convention", convention, VICREG)
    invariance = _checked_number("invariance", invariance)
    variance = _checked_number("variance", variance)
    covariance = _checked_number("covariance", covariance)
    gamma, eps = _checked_number("gamma", gamma), _checked_number("eps", eps, positive=True)
    same = {"invariance": invariance, "variance": variance, "covariance": covariance, "gamma": gamma}
    if convention == "paper":
        invariance *= z1.shape[-1]
    if convention in ("original", "lightly"):
        variance /= 2
    if group is not None:
        same |= {"eps": eps, "convention": convention, "positions": list(z1.shape[1:-1])}
        ring = _ring(group, z1, z2, {"loss": "vicreg"} | same)
        return decorrelation_group.vicreg(z1, z2, ring, invariance, variance, covariance, gamma, eps)
    keep = wants_gradient((z1, z2))
    return _vicreg(z1, z2, invariance, variance, covariance, gamma, eps, gram, keep)[0]


def _checked_form(z1: Tensor, form: str | None, group) -> bool:
    """Whether Gram matrices are used."""
    n, d = z1.shape[:-1].numel(), z1.shape[-1]
    if group is None:
        check(n >= 2, "z1", "at least 2 rows, for a variance", n)
    else:
        check(n >= 1, "z1", "at least one row on every process of the group", n)
    check(d >= 1, "z1", "at least one feature", d)
    if form is None:
        return 2 * n < d
    check_choice("form", form, FORMS if group is None else FORMS[:1])
    return form == "gram"


def _ring(group, z1: Tensor, z2: Tensor, same: dict[str, object]) -> Ring:
    """The processes of a group, with 2 rows or more among them."""
    first_position = z1[:, *[0] * (z1.ndim - 2)]
    ring = Ring(group, {"rows": (first_position,)}, (z2,), same)
    check(ring.count >= 2, "z1", "at least 2 rows over all processes, for a variance", ring.count)
    return ring


def _checked_number(name: str, value, positive: bool = False) -> float:
    check_number(name, value)
    least = "greater than 0" if positive else "at least 0"
    in_range = 0 < value < math.inf if positive else 0 <= value < math.inf
    check(in_range, name, f"a finite number {least}", value)
    return float(value)
