"""Values computed from weights and kept between calls."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genssl_fast._checks import is_traced
from genssl_fast._packing import Watch

__all__ = ["Kept", "records_nothing"]


class Kept:
    """What was computed from tensors, for as long as they do not change.

    Tensors changed in place are noticed by their version, steps of optimizers and, on the CPU, their
    contents; for other changes there is :meth:`forget`. While gradients are recorded, in transforms and in
    traces nothing is kept. A copy starts empty.

    Example:
        >>> from genssl_fast.nn.kept import Kept
        >>> kept, weight = Kept(), torch.ones(2)
        >>> with torch.no_grad():
        ...     first = kept([weight], lambda: weight.sum())
        ...     kept([weight], lambda: weight.sum()) is first
        True
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Keeps nothing, until the next call."""
        self._watch = self._value = None

    def __call__(self, tensors: Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        if not records_nothing():
            return compute()
        if self._watch is None or not self._watch.sees_same(tensors):
            self._watch, self._value = Watch(tensors), compute()
        return self._value

    def __reduce__(self):
        return Kept, ()


def records_nothing() -> bool:
    """Whether nothing looks at single operations: no gradients, transforms, duals or tracing."""
    is_recorded = torch.is_grad_enabled() or forward_ad._current_level >= 0 or is_traced()
    return not is_recorded and not torch._C._are_functorch_transforms_active()
