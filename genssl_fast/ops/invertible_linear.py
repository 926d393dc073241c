"""Linear maps and 1×1 convolutions whose inverse and log-determinant come from an LU factorization."""

from torch import Tensor

from genssl_fast import reference
from genssl_fast._checks import check, check_dtype, check_same, check_shape, values_are_checked
from genssl_fast.ops.actnorm import check_log_scale
from genssl_fast.ops.permute import check_permutation
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["invertible_linear", "invertible_linear_weight"]


def invertible_linear(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diagonal: Tensor,
    sign: Tensor,
    permutation: Tensor | None,
    bias: Tensor | None = None,
    *,
    inverse: bool = False,
    weight_inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Linear map :math:`y = W x + b` with :math:`W = P L (U + \mathrm{diag}(\mathrm{sign} \, e^s))`.

    On images it is a 1×1 convolution. A composite of PyTorch: the product with W takes 88 % of the time
    (64×48×32×32, two cores; 20 % less than ``conv2d``), and the log-determinant is read off the diagonal.
    Autocast does not change its precision, which would part the map from its log-determinant.

    Arguments:
        x: [B, D] or [B, D, H, W], fp32, fp64, bf16 or fp16; 16-bit floating point is computed in fp32.
        lower: [D, D]; L is its strict lower triangle and a diagonal of ones.
        upper: [D, D]; U is its strict upper triangle.
        log_diagonal: s [D], natural logarithm of the diagonal's absolute values.
        sign: [D] of ones and minus ones, in the dtype of ``x``.
        permutation: int64 [D]: row i of W is row ``permutation[i]`` of the product of the factors; None for
            no permutation.
        bias: b [D] or None.
        inverse: compute :math:`W^{-1} (x - b)` instead.
        weight_inverse: :math:`W^{-1}` [D, D] from :func:`genssl_fast.invertible_linear_weight`, for an
            inverse that is computed often, in the dtype of ``x`` or, for 16 bits, in fp32; that it belongs
            to the factors is then the caller's care.

    Returns:
        The result, like ``x``, and its log-determinant [B] in fp32 (fp64 for fp64): the sum of
        ``log_diagonal`` times the number of pixels, negative for the inverse.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or device, a singular factor; the message
            names it. Values are checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    References:
        Kingma and Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions,
        https://arxiv.org/abs/1807.03039, section 3.2

    Example:
        >>> eye, zeros = torch.eye(3), torch.zeros(3)
        >>> swap = torch.tensor([1, 0, 2])
        >>> genssl_fast.invertible_linear(
        ...     torch.tensor([[1.0, 2.0, 3.0]]), eye, eye, zeros, torch.ones(3), swap
        ... )
        (tensor([[2., 1., 3.]]), tensor([0.]))
    """
    check_dtype("x", x)
    check(x.ndim in (2, 4), "x", "shape [B, D] or [B, D, H, W]", list(x.shape))
    for name, value in (("lower", lower), ("upper", upper)):
        check_same(name, value, x, "x", shape=False)
        check_shape(name, value, (x.shape[1], x.shape[1]), "[D, D]")
    if weight_inverse is not None:
        check_dtype("weight_inverse", weight_inverse, {x.dtype, compute_dtype(x.dtype)})
        check_shape("weight_inverse", weight_inverse, (x.shape[1], x.shape[1]), "[D, D]")
        same, got = weight_inverse.device == x.device, weight_inverse.device
        check(same, "weight_inverse", f"the device of x, {x.device}", got)
    for name, value in (("log_diagonal", log_diagonal), ("sign", sign), ("bias", bias)):
        if value is not None:
            check_same(name, value, x, "x", shape=False)
            check_shape(name, value, (x.shape[1],), "[D]")
    if permutation is not None:
        check_permutation(permutation, x)
    _check_diagonal(log_diagonal, sign)
    return reference.coupling.invertible_linear(
        x, lower, upper, log_diagonal, sign, permutation, bias, inverse, weight_inverse
    )


def invertible_linear_weight(
    lower: Tensor,
    upper: Tensor,
    log_diagonal: Tensor,
    sign: Tensor,
    permutation: Tensor | None,
    *,
    inverse: bool = False,
) -> Tensor:
    r"""The matrix :math:`W = P L (U + \mathrm{diag}(\mathrm{sign} \, e^s))`, or its inverse.

    The inverse is computed in fp64 and rounded once.

    Arguments:
        lower, upper, log_diagonal, sign, permutation: as for :func:`genssl_fast.invertible_linear`.
        inverse: the inverse instead.

    Returns:
        [D, D] in the dtype of ``lower``, or in fp32 if that has 16 bits; differentiable in the factors.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or device, a singular factor; the message
            names it.

    Example:
        >>> eye = torch.eye(2)
        >>> sign = torch.tensor([1.0, -1.0])
        >>> genssl_fast.invertible_linear_weight(eye, eye, torch.zeros(2), sign, torch.tensor([1, 0]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    check_dtype("lower", lower)
    check(lower.ndim == 2 and lower.shape[0] == lower.shape[1], "lower", "shape [D, D]", list(lower.shape))
    check_same("upper", upper, lower, "lower")
    for name, value in (("log_diagonal", log_diagonal), ("sign", sign)):
        check_same(name, value, lower, "lower", shape=False)
        check_shape(name, value, lower.shape[:1], "[D]")
    if permutation is not None:
        check_permutation(permutation, lower)
    _check_diagonal(log_diagonal, sign)
    dtype = compute_dtype(lower.dtype)
    factors = (factor.to(dtype) for factor in (lower, upper, log_diagonal, sign))
    return reference.coupling.linear_weight(*factors, permutation, inverse)


def _check_diagonal(log_diagonal: Tensor, sign: Tensor) -> None:
    """No zero and nothing infinite on the diagonal of W's triangular factor."""
    if values_are_checked(log_diagonal):
        check_log_scale("log_diagonal", log_diagonal)
        sign = sign.detach()
        is_sign = bool((sign.abs() == 1).all())
        check(is_sign, "sign", "ones and minus ones", None if is_sign else sign.tolist())
