"""What plans share: objects of the native module that keep packed weights and take tensors by address."""

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from genssl_fast._checks import check
from genssl_fast._library import native_module

__all__ = ["Watch", "address", "check_runs_here", "contiguous", "identities", "identity", "number"]


_data_pointer, _version = Tensor.data_ptr, attrgetter("_version")
_optimizer_steps = 0


def _count_optimizer_step(*_) -> None:
    """Optimizers with ``fused=True`` change weights without a new version; compiled ones count versions."""
    global _optimizer_steps
    if not torch.compiler.is_compiling():
        _optimizer_steps += 1


register_optimizer_step_post_hook(_count_optimizer_step)


def identity(tensor: Tensor | None):
    """What changes with the values; inference tensors do not count changes, so they never compare equal."""
    if tensor is None:
        return None
    version = object() if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, _optimizer_steps


def identities(tensors: Sequence[Tensor]) -> tuple:
    """:func:`identity` of many tensors, in a fifth of its time."""
    try:
        return list(map(_data_pointer, tensors)), list(map(_version, tensors)), _optimizer_steps
    except RuntimeError:  # inference tensors have no version
        return tuple(map(identity, tensors))


class Watch:
    """Notices when tensors change; it holds them, so that no others can take their addresses.

    On the CPU contents are compared, too, for changes that have no version: through ``.data`` and NumPy.

    Example:
        >>> from genssl_fast._packing import Watch
        >>> weight = torch.zeros(3)
        >>> watch = Watch([weight])
        >>> weight.data.fill_(1.0)
        tensor([1., 1., 1.])
        >>> watch.sees_same([weight])
        False
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self._key = identities(tensors)
        self._held = [tensor.detach() for tensor in tensors]
        on_cpu = all(tensor.device.type == "cpu" and tensor.layout == torch.strided for tensor in tensors)
        watched = on_cpu and native_module is not None
        self._contents = native_module.Contents(list(map(_span, self._held))) if watched else None

    def sees_same(self, tensors: Sequence[Tensor], *, everything: bool = True) -> bool:
        """Whether the tensors are those, unchanged.

        Arguments:
            tensors: that may be others by now.
            everything: whether all contents are compared, or, in far less time, some of each tensor's.
        """
        if self._key != identities(tensors):
            return False
        return self._contents is None or self._contents.unchanged(everything)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes from the first element to the last."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


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
