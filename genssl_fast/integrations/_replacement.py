"""Which class a layer of another library is given."""

from torch import nn

__all__ = ["by_class"]


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
        return replacements[type(layer)]
    for known in replacements:
        if isinstance(layer, known):
            return f"its class is derived from {known.__name__} and may differ from it"
    if isinstance(layer, base) and not isinstance(layer, without_work):
        return "no kernel for this class"
    return None
