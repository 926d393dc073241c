"""Which class a layer of another library is given."""

from torch import nn

__all__ = ["Replacement", "by_class"]


class Replacement:
    """A layer whose work is in kernels."""

    def remaining(self) -> str | None:
        """What :func:`genssl_fast.accelerate` reports as still being what it was."""
        return None

    def forget(self) -> None:
        """Drops what the layer keeps for the kernels, before it gets its own class again."""


def by_class(
    layer: nn.Module, replacements: dict[type, type], base: type, without_work: tuple[type, ...]
) -> type | str | None:
    """The replacement of exactly this class, a reason why there is none, or None if none is needed.

    Arguments:
        layer: any module.
        replacements: our class for each of theirs.
        base: what all their layers are derived from.
        without_work: their containers and permutations.
    """
    if type(layer) in replacements:
        method = _replaced_method(layer)
        return f"its {method} is replaced" if method else replacements[type(layer)]
    for known in replacements:
        if isinstance(layer, known):
            return f"its class is derived from {known.__name__} and may differ from it"
    if isinstance(layer, base) and not isinstance(layer, without_work):
        return "no kernel for this class"
    return None


def _replaced_method(layer: nn.Module) -> str | None:
    """A method of the layer's class that the layer has another one for."""
    return next((name for name in vars(layer) if callable(getattr(type(layer), name, None))), None)
