"""Flows of other libraries as :class:`genssl_fast.FlowPlan` takes them."""

from collections.abc import Callable, Container, Iterable
from types import FunctionType

from torch import nn

from genssl_fast.integrations._activations import MODULES, activation_name
from genssl_fast.integrations._plain import has_own_code
from genssl_fast.ops.flow_layers import Layer, MLPWeights
from genssl_fast.reference.causal import ACTIVATIONS

__all__ = ["PlannedFlow", "check_kind", "check_plain", "perceptron", "sequential", "unplanned"]


class PlannedFlow(nn.Module):
    """A flow that describes its layers; the plan watches its parameters and buffers.

    Arguments:
        flow: theirs.
        describe: called with ``flow``, it returns the layers from data to noise.
    """

    def __init__(self, flow: nn.Module, describe: Callable[[nn.Module], list[Layer]]):
        super().__init__()
        self.flow, self.describe = flow, describe

    def plan_layers(self) -> list[Layer]:
        """The layers as they are now."""
        return self.describe(self.flow)


def check_kind(name: str, flow, base: type) -> None:
    """A flow of the library, not another module of it."""
    if not isinstance(flow, base):
        kind = f"{base.__module__.split('.')[0]}'s {base.__name__}"
        raise TypeError(f"{name}: expected {kind}, got {type(flow).__name__}")


def check_plain(flow: nn.Module, base: type, parts: Iterable[nn.Module], known: Container[type]) -> None:
    """Raises where a flow does more than the classes of its parts say.

    Arguments:
        flow: theirs.
        base: their class of flows, from which named ones differ in nothing but how they are built.
        parts: the modules of the flow that a plan stands for.
        known: the classes that they and the modules within may have, besides activations.
    """
    if _has_own_methods(type(flow), base):
        raise unplanned(flow, f"it differs from {base.__name__} in its methods")
    for module in [flow, *(module for part in parts for module in part.modules())]:
        if module is not flow and type(module) not in known and type(module) not in MODULES:
            raise unplanned(module, "no plan for this class")
        if has_own_code(module):
            raise unplanned(module, "it has hooks")


def _has_own_methods(kind: type, base: type) -> bool:
    """Whether a class derived from ``base`` gives another body to a method that makes it a flow."""
    inherited = {
        name
        for parent in base.__mro__[: base.__mro__.index(nn.Module)]
        for name, value in vars(parent).items()
        if isinstance(value, FunctionType) and not name.startswith("__")
    }
    return any(getattr(kind, name) is not getattr(base, name) for name in inherited)


def unplanned(part: nn.Module, reason: str) -> TypeError:
    """What to raise where a plan cannot run a part of a flow."""
    return TypeError(f"flow: expected layers that FlowPlan runs, got {type(part).__name__}: {reason}")


def perceptron(
    net: nn.Module, linears: Iterable[nn.Module], activations: Iterable, *, residual: bool = False
) -> MLPWeights:
    """A network of these layers with one activation, if it has a compiled form."""
    names = {activation_name(activation) for activation in activations} or {"relu"}
    if len(names) > 1 or not names <= ACTIVATIONS.keys():
        raise unplanned(net, "its activations have no compiled form")
    weights, biases = zip(*((linear.weight, _bias(linear)) for linear in linears))
    return MLPWeights(weights, biases, names.pop(), residual)


def sequential(net: nn.Module, parts: Iterable[nn.Module], linear: type[nn.Module]) -> MLPWeights:
    """:func:`perceptron` of matrices with activations between them; dropouts do nothing."""
    parts = [part for part in parts if type(part) is not nn.Dropout]
    linears, activations = parts[::2], parts[1::2]
    alternate = len(linears) == len(activations) + 1
    if not alternate or not all(type(part) is linear for part in linears):
        raise unplanned(net, "it is not matrices with an activation between any two")
    return perceptron(net, linears, activations)


def _bias(linear: nn.Module):
    return linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias
