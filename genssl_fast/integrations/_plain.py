"""Which networks compute what their classes and parameters say, and nothing else."""

from collections.abc import Container, Iterable

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from genssl_fast.integrations._activations import MODULES

__all__ = ["has_own_code", "why_not_plain"]


def has_own_code(module: nn.Module) -> bool:
    """Whether a call of this module runs more than the code of its class: hooks, or a forward of its own.

    PyTorch's older ``weight_norm``, ``spectral_norm`` and pruning are hooks, too.
    """
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in vars(module)
        or _has_any_global_hook()
    )


def why_not_plain(parts: Iterable[nn.Module], known: Container[type]) -> str | None:
    """What keeps a compiled form from replacing a network.

    Arguments:
        parts: the network's modules.
        known: the classes whose code the compiled form repeats, besides activations. A class derived from
            one of them, as parametrized modules have, is another.
    """
    for part in parts:
        kind = type(part)
        if kind not in known and kind not in MODULES:
            return f"its network has a {kind.__name__}"
        if has_own_code(part):
            return f"its network has a {kind.__name__} with hooks"
    return None
