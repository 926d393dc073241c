"""Values computed from weights and kept between calls."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genssl_fast._checks import is_traced
from genssl_fast._packing import identities

__all__ = ["Kept", "records_nothing"]


class Kept:
    """What was computed from tensors, for as long as they do not change.

    Tensors changed in place are noticed by their version. While gradients are recorded, in transforms and
    in traces nothing is kept. A copy starts empty.

    Example:
        >>> from genssl_fast.nn.kept import Kept
        >>> kept, weight = Kept(), torch.ones(2)
        >>> with torch.no_grad():
        ...     first = kept([weight], lambda: weight.sum())
        ...     kept([weight], lambda: weight.sum()) is first
        True
    """

    def __init__(self) -> None:
        self._key = self._value = self._tensors = None

    def __call__(self, tensors: Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        if not records_nothing():
            return compute()
        key = identities(tensors)
        if self._key is None or key != self._key:
            # The tensors are held, so that no others can take their addresses.
            self._key, self._value, self._tensors = key, compute(), [tensor.detach() for tensor in tensors]
        return self._value

    def __reduce__(self):
        return Kept, ()


def records_nothing() -> bool:
    """Whether nothing looks at single operations: no gradients, transforms, duals or tracing."""
    is_recorded = torch.is_grad_enabled() or forward_ad._current_level >= 0 or is_traced()
    return not is_recorded and not torch._C._are_functorch_transforms_active()
