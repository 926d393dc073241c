"""Functions that compute in the precision of their arguments, whatever autocast says."""

from collections.abc import Callable
from functools import wraps

import torch

__all__ = ["without_autocast"]


def without_autocast(function: Callable) -> Callable:
    """The function with autocast off on the device of its first argument: a tensor, or a tuple of some.

    Example:
        >>> from genssl_fast._autocast import without_autocast
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     without_autocast(torch.mm)(torch.eye(2), torch.eye(2)).dtype
        torch.float32
    """

    @wraps(function)
    def run(first, *args, **kwargs):
        if not torch._C._is_any_autocast_enabled():
            return function(first, *args, **kwargs)
        tensor = first if isinstance(first, torch.Tensor) else first[0]
        with torch.autocast(tensor.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return run
