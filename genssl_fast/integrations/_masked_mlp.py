"""zuko's masked network as :func:`genssl_fast.made_inverse` takes it."""

from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor, nn
from zuko.nn import MaskedLinear, MaskedMLP, Residual

from genssl_fast._packing import identities
from genssl_fast.integrations._activations import activation_name
from genssl_fast.integrations._plain import why_not_plain
from genssl_fast.ops.made import MAX_LAYERS, MADEWeights

__all__ = ["Masks", "masked_network", "why_not_one_pass"]

KNOWN = {MaskedMLP, MaskedLinear, Residual}


class Masks:
    """What a network's masks say.

    Attributes:
        degrees: of the inputs and of the units of every hidden layer: a unit's is the highest that it sees.
        are_by_degree: whether a layer sees all that the degrees allow; columns of a context have none.
    """

    def __init__(self, sources: list[Tensor]):
        self.sources, self.key = sources, identities(sources)
        order, *masks = sources
        self.degrees, self.are_by_degree = [order + 1], []
        for mask in masks[:-1]:
            inputs = self.degrees[-1]
            units = (mask[:, : len(inputs)] * inputs).amax(1)
            self._append(mask, units[:, None] >= inputs)
            self.degrees.append(units)
        outputs = (order + 1).repeat_interleave(len(masks[-1]) // len(order))
        self._append(masks[-1], outputs[:, None] > self.degrees[-1])

    def _append(self, mask: Tensor, by_degree: Tensor) -> None:
        columns = by_degree.shape[1]
        is_by_degree = torch.equal(mask[:, :columns], by_degree) and bool(mask[:, columns:].all())
        self.are_by_degree.append(is_by_degree)

    def are_of(self, sources: list[Tensor]) -> bool:
        """Whether these tensors, order and masks, are the same and unchanged."""
        are_same = len(sources) == len(self.sources) and all(map(is_, sources, self.sources))
        return are_same and self.key == identities(sources)


class _Layer(NamedTuple):
    linear: MaskedLinear
    activated: bool = False  # before it
    skips: bool = False  # ends a residual block


def why_not_one_pass(net: nn.Module) -> str | None:
    """What keeps this network's transform from being inverted in one pass of work."""
    if type(net) is not MaskedMLP:
        return f"its network is a {type(net).__name__}"
    if _activation(net) is None:
        return "its network's activation has no compiled form"
    reason = why_not_plain(net.modules(), KNOWN)
    if reason:
        return reason
    layers = _layers(net)
    if layers is None:
        return "its network's layers are in an order of their own"
    if len(layers) > MAX_LAYERS:
        return f"its network has more than {MAX_LAYERS} layers"
    return None


def masked_network(net: MaskedMLP, order: Tensor, kept: Masks | None) -> tuple[MADEWeights, Masks]:
    """Layers, masked where degrees do not say all, and the masks, which are ``kept`` if they are still so.

    Arguments:
        net: with no reason against one pass; its first layer's last columns may be of a context.
        order: place of every input [D] in the order in which they are found, from 0.
        kept: what the last call gave, as reading masks takes longer than an inverse of one sample.
    """
    linears, activated, skips = zip(*_layers(net))
    sources = [order, *(linear.mask for linear in linears)]
    masks = kept if kept and kept.are_of(sources) else Masks(sources)
    weights = [
        linear.weight if is_by_degree else linear.weight * linear.mask
        for linear, is_by_degree in zip(linears, masks.are_by_degree)
    ]
    biases = tuple(linear.bias for linear in linears)
    return MADEWeights(tuple(weights), biases, _activation(net), activated, skips), masks


def _layers(net: MaskedMLP) -> list[_Layer] | None:
    """The masked matrices in order; None where activations and blocks are not where they should be."""
    found, activated = [], False
    for module in net:
        if isinstance(module, MaskedLinear):
            found.append(_Layer(module, activated))
            activated = False
        elif activated:
            return None
        elif not isinstance(module, Residual):
            activated = True
        elif [isinstance(part, MaskedLinear) for part in module] == [True, False, True]:
            found += [_Layer(module[0]), _Layer(module[2], activated=True, skips=True)]
        else:
            return None
    return found if found and not activated else None


def _activation(net: MaskedMLP) -> str | None:
    """The one activation of the network; any name will do where there is none."""
    used = [part for part in net.modules() if not isinstance(part, MaskedLinear | Residual | MaskedMLP)]
    names = {activation_name(part) for part in used} or {"relu"}
    return names.pop() if len(names) == 1 else None
