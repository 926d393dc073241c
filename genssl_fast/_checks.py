"""Errors for bad arguments: the argument's name, what was expected, what came."""

import os
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = [
    "check",
    "check_choice",
    "check_count",
    "check_dtype",
    "check_integer",
    "check_number",
    "check_same",
    "check_shape",
    "check_tensor",
    "is_traced",
    "values_are_checked",
]

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check(condition: bool, argument: str, expected: str, got) -> None:
    """Raises ``ValueError`` that names the argument unless the condition holds."""
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {got}")


def check_choice(argument: str, value, choices: Iterable) -> None:
    """The value must be one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_count(argument: str, value, least: int = 0) -> None:
    """The value must be an integer of at least ``least``."""
    check_integer(argument, value)
    check(value >= least, argument, f"at least {least}", value)


def check_integer(argument: str, value) -> None:
    """The value must be an int; a bool is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected an integer, got {value!r}")


def check_number(argument: str, value) -> None:
    """The value must be an int or a float; a bool is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected a number, got {type(value).__name__}")


def check_tensor(argument: str, value) -> None:
    """The value must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a tensor, got {type(value).__name__}")


def check_dtype(argument: str, tensor: Tensor, dtypes: Iterable[torch.dtype] = FLOATING) -> None:
    """The tensor's dtype must be one of the dtypes."""
    check_tensor(argument, tensor)
    dtypes = tuple(dtypes)
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{argument}: expected dtype {names}, got {tensor.dtype}")


def check_shape(argument: str, tensor: Tensor, shape: tuple, meaning: str) -> None:
    """The tensor must have this shape; ``meaning`` says it in words, such as ``[B, D]``."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{argument}: expected shape {meaning} = {list(shape)}, got {list(tensor.shape)}")


def check_same(argument: str, tensor: Tensor, other: Tensor, other_name: str, *, shape: bool = True) -> None:
    """Same shape (unless told otherwise), dtype and device as another argument."""
    check_tensor(argument, tensor)
    if shape and tensor.shape != other.shape:
        raise ValueError(
            f"{argument}: expected the shape of {other_name}, {list(other.shape)}, got {list(tensor.shape)}"
        )
    if tensor.dtype != other.dtype:
        raise TypeError(f"{argument}: expected the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(
            f"{argument}: expected the device of {other_name}, {other.device}, got {tensor.device}"
        )


def is_traced() -> bool:
    """Whether tensors may be stand-ins without values: in torch.compile, make_fx or a fake mode."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def values_are_checked(tensor: Tensor) -> bool:
    """Reading values of a CUDA tensor would synchronise, and a traced or transformed one has none."""
    if is_traced() or torch._C._are_functorch_transforms_active():
        return False
    return tensor.device.type == "cpu" or os.environ.get("GENSSL_CHECK") == "1"
