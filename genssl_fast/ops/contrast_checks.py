"""What the contrastive losses ask of their arguments, and how they prepare them."""

import math

import torch
from torch import Tensor

from genssl_fast._checks import (
    check,
    check_choice,
    check_dtype,
    check_same,
    check_shape,
    check_tensor,
    values_are_checked,
)
from genssl_fast.ops.fixed_sums import mean, total
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["checked_ids", "checked_matrix", "checked_number", "inverse_temperature", "reduced", "unit_rows"]

INT32 = torch.iinfo(torch.int32)
REDUCTIONS = ("mean", "sum", "none")
SMALLEST_NORM = 1e-12


def checked_matrix(name: str, tensor: Tensor, like: Tensor | None = None, like_name: str = "") -> None:
    """[N, D], N and D at least 1; of the same D, dtype and device as another argument."""
    check_dtype(name, tensor)
    check(tensor.ndim == 2 and tensor.numel() > 0, name, "shape [N, D], at least [1, 1]", list(tensor.shape))
    if like is not None:
        check_same(name, tensor, like, like_name, shape=False)
        check(
            tensor.shape[1] == like.shape[1], name, f"D = {like.shape[1]} as in {like_name}", tensor.shape[1]
        )


def checked_ids(name: str, ids: Tensor | None, count: int, device: torch.device, first: int = 0) -> Tensor:
    """int32 ids [N] on the device; those of None are ``first``, ``first`` + 1, …"""
    if ids is None:
        return torch.arange(first, first + count, dtype=torch.int32, device=device)
    check_tensor(name, ids)
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not whole:
        raise TypeError(f"{name}: expected integers, got {ids.dtype}")
    check_shape(name, ids, (count,), "[N]")
    check(ids.device == device, name, f"a tensor on {device}", f"one on {ids.device}")
    if ids.dtype == torch.int64 and values_are_checked(ids):
        low, high = int(ids.min()), int(ids.max())
        fits = INT32.min <= low and high <= INT32.max
        check(fits, name, "integers of 32 bits", f"{low} to {high}")
    return ids.to(torch.int32)


def checked_number(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """A number or a tensor [], as a tensor of the compute dtype of ``like``."""
    dtype = compute_dtype(like.dtype)
    if not isinstance(value, Tensor):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
        # Not math.isfinite, which no torch.compile traces once a number has changed between calls.
        check(-math.inf < value < math.inf, name, "a finite number", value)
        return torch.tensor(value, dtype=dtype, device=like.device)
    check_dtype(name, value)
    check(value.numel() == 1, name, "a number or a tensor of one", list(value.shape))
    check(value.device == like.device, name, f"a tensor on {like.device}", f"one on {value.device}")
    return value.reshape(()).to(dtype)


def inverse_temperature(temperature: float | Tensor, like: Tensor, name: str = "temperature") -> Tensor:
    """1 / temperature, [] or, of a temperature for each row of ``like``, [N]."""
    if isinstance(temperature, Tensor) and temperature.ndim == 1 and temperature.numel() != 1:
        check_dtype(name, temperature)
        check_shape(name, temperature, (len(like),), "[] or [N]")
        check(temperature.device == like.device, name, f"a tensor on {like.device}", temperature.device)
        temperature = temperature.to(compute_dtype(like.dtype))
    else:
        temperature = checked_number(name, temperature, like)
    if values_are_checked(temperature):
        least = float(temperature.detach().min())
        check(least > 0, name, "more than 0", least)
    return 1 / temperature


def unit_rows(name: str, tensor: Tensor, normalize: bool) -> Tensor:
    """Rows of length 1 if ``normalize``, in the precision that they are computed in."""
    tensor = tensor.contiguous()  # sums of PyTorch over rows of other strides round otherwise
    if not normalize:
        # Tensor cores multiply 16-bit numbers exactly; a CPU has no use for them.
        return tensor if tensor.is_cuda else tensor.to(compute_dtype(tensor.dtype))
    tensor = tensor.to(compute_dtype(tensor.dtype))
    norms = torch.linalg.vector_norm(tensor, dim=-1, keepdim=True)
    if values_are_checked(norms):
        zero = (norms.detach() == 0).flatten()
        if bool(zero.any()):
            row = int(zero.int().argmax())
            raise ValueError(
                f"{name}: expected rows that are not zero with normalize=True, got zeros in row {row}"
            )
    return tensor / norms.clamp_min(SMALLEST_NORM)


def reduced(losses: Tensor, reduction: str, ring=None) -> Tensor:
    """Mean, sum or all of the losses of rows; with a ring, mean or sum over all processes."""
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "none":
        return losses
    if ring is None:
        return mean(losses) if reduction == "mean" else total(losses)
    found = ring.total(total(losses))
    return found / ring.count if reduction == "mean" else found
