"""Planar and radial flows."""

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import differentiable
from genssl_fast._checks import check, check_dtype, check_same
from genssl_fast._library import define

__all__ = ["planar", "radial"]

raw_planar_root = define(
    "_planar_root(Tensor target, Tensor slope, Tensor b) -> Tensor",
    reference=reference.coupling.bisected_planar_root,
    fake=lambda target, slope, b: torch.empty_like(target),
    has_kernels=False,
)


def _root_derivatives(inputs, root: Tensor) -> dict[str, Tensor]:
    """By the implicit function theorem, from root + (slope − 1) tanh(root + b) = target."""
    height = torch.tanh(root + inputs.b)
    incline = 1 - height * height
    to_target = 1 / (height * height + inputs.slope * incline)
    return {
        "target": to_target,
        "slope": -height * to_target,
        "b": (1 - inputs.slope) * incline * to_target,
    }


def _root_backward(inputs, outputs, grads):
    return {name: grads[0] * slope for name, slope in _root_derivatives(inputs, outputs[0]).items()}


def _root_jvp(inputs, outputs, tangents):
    slopes = _root_derivatives(inputs, outputs[0])
    given = {name: getattr(tangents, name) for name in slopes}
    terms = [slope * given[name] for name, slope in slopes.items() if given[name] is not None]
    return torch.stack(terms).sum(0) if terms else torch.zeros_like(outputs[0])


_planar_root = differentiable(
    raw_planar_root, backward=_root_backward, jvp=_root_jvp, save_outputs=True
)  # fmt: skip


def planar(
    x: Tensor, u: Tensor, w: Tensor, b: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""Planar flow :math:`y = x + \hat{u} \tanh(w \cdot x + b)`, always invertible.

    .. math:: \hat{u} = u + (\mathrm{softplus}(w \cdot u) - 1 - w \cdot u) \, w / |w|^2

    so that :math:`w \cdot \hat{u} > -1`. The inverse solves one monotone equation a sample by a fixed number
    of bisections. A composite of PyTorch: two dot products and an update of ``x``.

    Arguments:
        x: [B, D], fp32, fp64, bf16 or fp16; 16-bit floating point is computed in fp32.
        u, w: [D], or [B, D] for parameters of each sample's own, in the dtype of ``x``.
        b: [] or [B], in the dtype of ``x``.
        inverse: find the x of which ``x`` is the result.

    Returns:
        The result, like ``x``, and its log-determinant [B] in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or device; the message names it.

    References:
        Rezende and Mohamed, Variational Inference with Normalizing Flows, https://arxiv.org/abs/1505.05770,
        section 4.1 and appendix A.1

    Example:
        >>> u, w, b = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor(0.0)
        >>> y, log_abs_det = genssl_fast.planar(torch.zeros(3, 2), u, w, b)
        >>> x, back = genssl_fast.planar(y, u, w, b, inverse=True)
        >>> torch.allclose(log_abs_det, -back)
        True
    """
    _check_samples(x)
    _check_parameters(x, ("u", u, True), ("w", w, True), ("b", b, False))
    return reference.coupling.planar(x, u, w, b, inverse, _planar_root)


def radial(
    x: Tensor, center: Tensor, log_alpha: Tensor, beta: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""Radial flow :math:`y = x + \hat{\beta} (x - c) / (\alpha + |x - c|)`, always invertible.

    With :math:`\alpha` positive, :math:`\hat{\beta} = \mathrm{softplus}(\beta) - \alpha`. The inverse is in
    closed form. A composite of PyTorch: a norm and an update of ``x``.

    Arguments:
        x: [B, D], fp32, fp64, bf16 or fp16; 16-bit floating point is computed in fp32.
        center: c [D], or [B, D] for parameters of each sample's own, in the dtype of ``x``.
        log_alpha: natural logarithm of α, [] or [B], in the dtype of ``x``.
        beta: β, [] or [B], in the dtype of ``x``.
        inverse: find the x of which ``x`` is the result.

    Returns:
        The result, like ``x``, and its log-determinant [B] in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or device; the message names it.

    References:
        Rezende and Mohamed, Variational Inference with Normalizing Flows, https://arxiv.org/abs/1505.05770,
        section 4.1 and appendix A.2

    Example:
        >>> center, log_alpha, beta = torch.zeros(2), torch.tensor(0.0), torch.tensor(2.0)
        >>> y, log_abs_det = genssl_fast.radial(torch.ones(3, 2), center, log_alpha, beta)
        >>> x, back = genssl_fast.radial(y, center, log_alpha, beta, inverse=True)
        >>> torch.allclose(log_abs_det, -back)
        True
    """
    _check_samples(x)
    _check_parameters(x, ("center", center, True), ("log_alpha", log_alpha, False), ("beta", beta, False))
    return reference.coupling.radial(x, center, log_alpha, beta, inverse)


def _check_samples(x: Tensor) -> None:
    check_dtype("x", x)
    check(x.ndim == 2 and x.shape[1] > 0, "x", "shape [B, D] with D of at least 1", list(x.shape))


def _check_parameters(x: Tensor, *parameters: tuple[str, Tensor, bool]) -> None:
    """Each is a name, a tensor for all samples or for each, and whether it is a vector [D] or a number []."""
    for name, value, is_vector in parameters:
        check_same(name, value, x, "x", shape=False)
        event = tuple(x.shape[1:]) if is_vector else ()
        shapes = (event, (x.shape[0], *event))
        expected = "shape [D] or [B, D]" if is_vector else "shape [] or [B]"
        check(tuple(value.shape) in shapes, name, expected, list(value.shape))
