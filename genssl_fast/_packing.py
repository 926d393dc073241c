"""What plans share: objects of the native module that keep packed weights and take tensors by address."""

from collections.abc import Sequence
from operator import attrgetter, methodcaller

import torch
from torch import Tensor

from genssl_fast._checks import check

__all__ = ["address", "check_runs_here", "contiguous", "identities", "identity", "number"]


_data_pointer, _version = methodcaller("data_ptr"), attrgetter("_version")


def identity(tensor: Tensor | None):
    """What changes with the values; inference tensors do not count changes, so they never compare equal."""
    if tensor is None:
        return None
    return tensor.data_ptr(), object() if tensor.is_inference() else tensor._version


def identities(tensors: Sequence[Tensor]) -> tuple:
    """:func:`identity` of many tensors, in a fifth of its time."""
    try:
        return list(map(_data_pointer, tensors)), list(map(_version, tensors))
    except RuntimeError:  # inference tensors have no version
        return tuple(map(identity, tensors))


def check_runs_here(argument: str, tensor: Tensor) -> None:
    """Native plans take fp32 and fp64 on the CPU."""
    check(tensor.device.type == "cpu", argument, "a tensor on the CPU", f"one on {tensor.device}")
    dtypes = (torch.float32, torch.float64)
    check(tensor.dtype in dtypes, argument, "dtype torch.float32 or torch.float64", tensor.dtype)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor, or a copy, contiguous and without gradient."""
    return None if tensor is None else tensor.detach().contiguous()


def address(tensor: Tensor | None) -> int:
    """Where the numbers lie; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def number(folded: tuple[int, Tensor | None]) -> int:
    """The value of a folded seed or step, which may be a tensor."""
    value, tensor = folded
    return value if tensor is None else int(tensor)
