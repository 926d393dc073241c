"""Flows of other libraries as :class:`genssl_fast.FlowPlan` takes them."""

from collections.abc import Callable, Iterable

from torch import nn

from genssl_fast.integrations._activations import activation_name
from genssl_fast.ops.flow_layers import ACTIVATIONS, Layer, MLPWeights

__all__ = ["PlannedFlow", "perceptron", "unplanned"]


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


def unplanned(part: nn.Module, reason: str) -> TypeError:
    """What to raise where a plan cannot run a part of a flow."""
    return TypeError(f"flow: expected layers that FlowPlan runs, got {type(part).__name__}: {reason}")


def perceptron(
    net: nn.Module, linears: Iterable[nn.Linear], activations: Iterable, *, residual: bool = False
) -> MLPWeights:
    """A network of these layers with one activation, if it has a compiled form."""
    names = {activation_name(activation) for activation in activations} or {"relu"}
    if len(names) > 1 or not names <= ACTIVATIONS.keys():
        raise unplanned(net, "its activations have no compiled form")
    weights, biases = zip(*((linear.weight, linear.bias) for linear in linears))
    return MLPWeights(weights, biases, names.pop(), residual)
