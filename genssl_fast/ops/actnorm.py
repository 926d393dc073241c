"""Affine normalization by channel."""

import math

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._checks import check, check_dtype, check_same, check_shape, values_are_checked
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["actnorm", "check_log_scale"]


def actnorm(
    x: Tensor, shift: Tensor, log_scale: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""Affine map by channel :math:`y = x e^s + t`, the activation normalization of Glow.

    A composite of PyTorch: forward is one ``addcmul``, at two thirds of the rate of a memory stream
    (64×48×32×32, two cores), inverse a subtraction and a product at half of it.

    Arguments:
        x: [B, C, ...], fp32, fp64, bf16 or fp16; 16-bit floating point is computed in fp32.
        shift: t [C], in the dtype of ``x``.
        log_scale: s [C], natural logarithm, in the dtype of ``x``.
        inverse: compute :math:`(x - t) e^{-s}` instead.

    Returns:
        The result, like ``x``, and its log-determinant [B] in fp32 (fp64 for fp64): the sum of ``log_scale``
        times the number of positions of a channel, negative for the inverse.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or device, a scale of 0 or infinity; the
            message names it. Values are checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    References:
        Kingma and Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions,
        https://arxiv.org/abs/1807.03039

    Example:
        >>> y, log_abs_det = genssl_fast.actnorm(torch.ones(2, 3, 4, 4), torch.zeros(3), torch.ones(3))
        >>> log_abs_det
        tensor([48., 48.])
    """
    check_dtype("x", x)
    check(x.ndim >= 2, "x", "shape [B, C, ...]", list(x.shape))
    for name, value in (("shift", shift), ("log_scale", log_scale)):
        check_same(name, value, x, "x", shape=False)
        check_shape(name, value, x.shape[1:2], "[C]")
    if values_are_checked(log_scale):
        check_log_scale("log_scale", log_scale)
    return reference.coupling.actnorm(x, shift, log_scale, inverse)


def check_log_scale(name: str, log_scale: Tensor) -> None:
    """Neither a scale nor its inverse is 0 or infinite in the dtype that computes it."""
    dtype = compute_dtype(log_scale.dtype)
    most = torch.linalg.vector_norm(log_scale.detach(), math.inf).item() if log_scale.numel() else 0.0
    invertible = most <= math.log(torch.finfo(dtype).max)
    expected = f"logarithms of scales that {dtype} holds, and their inverses"
    check(invertible, name, expected, None if invertible else log_scale.tolist())
