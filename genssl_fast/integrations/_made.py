"""The MADE of nflows and of normflows as :func:`genssl_fast.made_inverse` takes it."""

import sys

import torch
from torch import Tensor, nn

from genssl_fast._checks import check
from genssl_fast.integrations._activations import activation_name
from genssl_fast.integrations._plain import why_not_plain
from genssl_fast.ops.made import MAX_LAYERS, MADEWeights

__all__ = ["context_gates", "context_terms", "is_dropping", "masked_network", "why_not_one_pass"]

NFLOWS, NORMFLOWS = "nflows.transforms.made", "normflows.nets.made"


def why_not_one_pass(net: nn.Module) -> str | None:
    """What keeps this network's transform from being inverted in one pass of work."""
    if type(net).__name__ != "MADE" or type(net).__module__ not in (NFLOWS, NORMFLOWS):
        return f"its network is a {type(net).__name__}"
    reason = why_not_plain(_parts(net), _known(type(net).__module__))
    if reason:
        return reason
    if any(_normalizes(block) for block in net.blocks):
        return "its network normalizes batches"
    if _activation(net) is None:
        return "its network's activation has no compiled form"
    if not isinstance(getattr(net, "preprocessing", None), nn.Identity | None):
        return "its network preprocesses its input"
    if hasattr(net, "hidden_features"):
        return "its network's outputs are scaled"
    if 2 + sum(len(_linears(block)) for block in net.blocks) > MAX_LAYERS:
        return f"its network has more than {MAX_LAYERS} layers"
    return None


def _parts(net: nn.Module) -> list[nn.Module]:
    """The modules that a compiled form replaces; those of the context are called."""
    return [part for name, part in net.named_modules() if "context_layer" not in name]


def _known(module: str) -> set[type]:
    """The classes of which a MADE is made."""
    made = sys.modules[module]
    blocks = made.MaskedFeedforwardBlock, made.MaskedResidualBlock
    return {made.MADE, made.MaskedLinear, *blocks, nn.BatchNorm1d, nn.Dropout, nn.Identity, nn.ModuleList}


def is_dropping(net: nn.Module) -> bool:
    """Whether hidden units are dropped at random now."""
    return net.training and any(block.dropout.p > 0 for block in net.blocks)


def masked_network(net: nn.Module) -> tuple[MADEWeights, list[Tensor]]:
    """Layers, and degrees of the inputs and of every hidden layer."""
    layers = [
        net.initial_layer,
        *(linear for block in net.blocks for linear in _linears(block)),
        net.final_layer,
    ]
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    multiplier = net.final_layer.out_features // net.initial_layer.in_features
    degrees = [net.final_layer.degrees[::multiplier], *(layer.degrees for layer in layers[:-1])]
    activation = _activation(net)
    if _is_residual(net):
        return MADEWeights.with_residual_blocks(weights, biases, activation), degrees
    # normflows has no activation between its first layer and the next.
    activated = [type(net).__module__ == NFLOWS, *[True] * len(net.blocks)]
    return MADEWeights(tuple(weights), tuple(biases), activation, (False, *activated)), degrees


def context_terms(net: nn.Module, context: Tensor | None) -> list[Tensor | None] | None:
    """What the context adds to the bias of every layer."""
    if context is None:
        return None
    dtype = net.initial_layer.weight.dtype  # which autocast leaves alone
    first = net.context_layer(context).to(dtype)
    if type(net).__module__ == NORMFLOWS:
        return [first]
    terms = [net.activation(first)]
    for block in net.blocks if _is_residual(net) else ():
        terms += [block.context_layer(context).to(dtype), None]
    return terms


def context_gates(net: nn.Module, context: Tensor | None) -> list[Tensor | None] | None:
    """What the context multiplies the outputs of every layer by: normflows' blocks are gated linear units."""
    if context is None or type(net).__module__ == NFLOWS:
        return None
    check(_is_residual(net), "context", "None for blocks that are not residual, as in normflows", "a tensor")
    dtype = net.initial_layer.weight.dtype
    gates = [torch.sigmoid(block.context_layer(context)).to(dtype) for block in net.blocks]
    return [None, *(gate for pair in zip([None] * len(gates), gates) for gate in pair)]


def _is_residual(net: nn.Module) -> bool:
    """Blocks of two layers; normflows does not say so where it has no blocks, nor does it matter there."""
    return getattr(net, "use_residual_blocks", all(len(_linears(block)) == 2 for block in net.blocks))


def _linears(block: nn.Module) -> list[nn.Module]:
    return list(block.linear_layers) if hasattr(block, "linear_layers") else [block.linear]


def _normalizes(block: nn.Module) -> bool:
    return getattr(block, "use_batch_norm", False) or getattr(block, "batch_norm", None) is not None


def _activation(net: nn.Module) -> str | None:
    """The one activation of all blocks; any name will do where there is none."""
    used = [block.activation for block in net.blocks]
    used += [net.activation] if type(net).__module__ == NFLOWS else []
    names = {activation_name(activation) for activation in used} or {"relu"}
    return names.pop() if len(names) == 1 else None
