"""Swaps the layers of a user's model for those of this library, and back."""

import importlib
from typing import NamedTuple

from torch import nn

__all__ = ["AccelerationReport", "Replaced", "Skipped", "accelerate"]

# Each module has ``replacement(layer)``: the class to give the layer, why there is none, or None for what
# does no work of its own. Such a class is derived from ``integrations._replacement.Replacement``.
INTEGRATIONS = {
    "nflows": "genssl_fast.integrations.nflows",
    "normflows": "genssl_fast.integrations.normflows",
    "zuko": "genssl_fast.integrations.zuko",
}


class Replaced(NamedTuple):
    """A layer that now runs kernels of this library."""

    name: str  # as in ``named_modules()``; empty for the model itself
    original: type
    replacement: type


class Skipped(NamedTuple):
    """A layer that stays as it was."""

    name: str
    kind: type
    reason: str


class AccelerationReport:
    """What :func:`accelerate` replaced in a model, what it left, and the way back.

    Attributes:
        replaced: one :class:`Replaced` per layer that was swapped.
        skipped: one :class:`Skipped`, with the reason, per layer of a known library that was not, and per
            part of a replaced layer that still is what it was.
    """

    def __init__(self, replaced: list[Replaced], skipped: list[Skipped], layers: list[nn.Module]):
        self.replaced, self.skipped = tuple(replaced), tuple(skipped)
        self._layers = layers

    def undo(self) -> None:
        """Gives every replaced layer its own class again; a second call does nothing."""
        for entry, layer in zip(self.replaced, self._layers):
            if type(layer) is entry.replacement:
                layer.forget()
                layer.__class__ = entry.original

    def __repr__(self) -> str:
        lines = [f"{len(self.replaced)} replaced, {len(self.skipped)} skipped"]
        lines += [f"  replaced {name or 'model'}: {kind.__name__}" for name, kind, _ in self.replaced]
        lines += [f"  skipped {name or 'model'}: {kind.__name__}, {why}" for name, kind, why in self.skipped]
        return "\n".join(lines)


def accelerate(module: nn.Module) -> AccelerationReport:
    """Makes a model of nflows, zuko or normflows run on the kernels of this library, in place.

    Layers keep their parameters, buffers, hooks, state dict and names; only their class changes, to a
    subclass that computes the same results. So optimizers, checkpoints and ``isinstance`` go on working, and
    :meth:`AccelerationReport.undo` restores everything. A layer whose options no kernel covers, or whose
    class a user derived from a library's, stays as it was and is reported.

    Hooks of layers and of their networks run as before. Only the inverse of an autoregressive layer and plans
    do without calls of the network: where it has hooks, such as those of ``weight_norm``, or parts of other
    classes than the library's, the inverse is the library's own, also where they came after acceleration,
    and a plan raises.

    For densities and samples without gradients of flows of couplings, ``plan`` in
    ``genssl_fast.integrations.nflows``, ``.normflows`` and ``.zuko`` is faster still.

    Arguments:
        module: the model, or any module that holds layers of these libraries.

    Returns:
        What was replaced and what was not.

    Raises:
        TypeError: ``module`` is not a ``torch.nn.Module``.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> layer = MaskedAffineAutoregressiveTransform(features=4, hidden_features=16)
        >>> report = genssl_fast.accelerate(layer)
        >>> report
        1 replaced, 0 skipped
          replaced model: MaskedAffineAutoregressiveTransform
        >>> x, log_abs_det = layer.inverse(torch.randn(8, 4))  # one pass of work instead of four
        >>> report.undo()
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    replaced, skipped, layers = [], [], []
    for name, layer in list(module.named_modules()):
        found = _replacement(layer)
        if isinstance(found, str):
            skipped.append(Skipped(name, type(layer), found))
        elif found is not None:
            replaced.append(Replaced(name, type(layer), found))
            layers.append(layer)
    for entry, layer in zip(replaced, layers):
        layer.__class__ = entry.replacement
        remaining = layer.remaining()
        if remaining:
            skipped.append(Skipped(entry.name, entry.original, remaining))
    return AccelerationReport(replaced, skipped, layers)


def _replacement(layer: nn.Module) -> type | str | None:
    """What the integration of the layer's library says; nothing where no library knows it."""
    packages = [kind.__module__.split(".")[0] for kind in type(layer).__mro__]
    if packages[0] == "genssl_fast":
        return None
    library = next((package for package in packages if package in INTEGRATIONS), None)
    if library is None:
        return None
    return importlib.import_module(INTEGRATIONS[library]).replacement(layer)
