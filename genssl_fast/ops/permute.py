"""Rearrangements of a sample: their log-determinant is zero, so they return the tensor alone."""

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._checks import check, check_dtype, check_shape, values_are_checked

__all__ = ["check_permutation", "permute", "squeeze2d"]


def permute(x: Tensor, permutation: Tensor, *, inverse: bool = False) -> Tensor:
    r"""Rearranges dimension 1: :math:`y_i = x_{p(i)}`, or :math:`y_{p(i)} = x_i` for the inverse.

    A composite of PyTorch: one gather.

    Arguments:
        x: [B, C, ...], fp32, fp64, bf16 or fp16.
        permutation: p, int64 [C], the numbers 0 to C − 1 in any order.
        inverse: undo it.

    Returns:
        The rearranged copy; its log-determinant is zero.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or device; the message names it. That
            ``permutation`` is one is checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    Example:
        >>> genssl_fast.permute(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2, 0, 1]))
        tensor([[3., 1., 2.]])
    """
    check_dtype("x", x)
    check(x.ndim >= 2, "x", "shape [B, C, ...]", list(x.shape))
    check_permutation(permutation, x)
    return reference.coupling.permute(x, permutation, inverse)


def check_permutation(permutation: Tensor, x: Tensor) -> None:
    """An int64 permutation of dimension 1 of x, on its device."""
    check_dtype("permutation", permutation, (torch.int64,))
    check_shape("permutation", permutation, x.shape[1:2], "[C]")
    expected, got = f"a tensor on {x.device}", f"one on {permutation.device}"
    check(permutation.device == x.device, "permutation", expected, got)
    if values_are_checked(permutation):
        numbers = torch.arange(len(permutation), device=x.device)
        expected = f"the numbers 0 to {len(permutation) - 1} in any order"
        check(torch.equal(permutation.sort().values, numbers), "permutation", expected, permutation.tolist())


def squeeze2d(x: Tensor, factor: int = 2, *, inverse: bool = False) -> Tensor:
    """Turns blocks of factor × factor pixels into channels, or channels into pixels for the inverse.

    The order is that of Glow, nflows, normflows and :func:`torch.nn.functional.pixel_unshuffle`: channel, row
    in the block, column in the block. A composite of PyTorch: one copy.

    Arguments:
        x: [B, C, H, W], fp32, fp64, bf16 or fp16.
        factor: side of a block; it divides H and W, and its square divides C for the inverse.
        inverse: undo it.

    Returns:
        [B, C factor², H / factor, W / factor], or the inverse of that; its log-determinant is zero.

    Raises:
        ValueError, TypeError: an argument of the wrong shape or dtype; the message names it.

    References:
        Dinh et al., Density Estimation using Real NVP, https://arxiv.org/abs/1605.08803

    Example:
        >>> genssl_fast.squeeze2d(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 12, 4, 4])
    """
    check_dtype("x", x)
    check(x.ndim == 4, "x", "shape [B, C, H, W]", list(x.shape))
    check(isinstance(factor, int) and factor >= 1, "factor", "an integer of at least 1", factor)
    if inverse:
        expected = f"channels divisible by factor² = {factor**2}"
        check(x.shape[1] % factor**2 == 0, "x", expected, x.shape[1])
    else:
        expected = f"height and width divisible by factor = {factor}"
        check(x.shape[2] % factor == 0 and x.shape[3] % factor == 0, "x", expected, list(x.shape[2:]))
    return reference.coupling.squeeze2d(x, factor, inverse)
