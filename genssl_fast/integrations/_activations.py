"""The activations of other libraries' networks by the names that this library has for them."""

import torch
from torch import nn
from torch.nn import functional

__all__ = ["activation_name"]

FUNCTIONS = {
    functional.relu: "relu",
    functional.leaky_relu: "leaky_relu",
    functional.elu: "elu",
    functional.silu: "silu",
    functional.tanh: "tanh",
    functional.sigmoid: "sigmoid",
    functional.softplus: "softplus",
    torch.relu: "relu",
    torch.tanh: "tanh",
    torch.sigmoid: "sigmoid",
}
MODULES = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Softplus: "softplus",
}


def activation_name(activation) -> str | None:
    """The name of a function or a module with default options; None for any other."""
    if not isinstance(activation, nn.Module):
        return FUNCTIONS.get(activation)
    kind = type(activation)
    if kind is nn.LeakyReLU and activation.negative_slope == 0:
        return "relu"
    is_known = kind in MODULES and _options(activation) == _options(kind())
    return MODULES[kind] if is_known else None


def _options(module: nn.Module) -> dict:
    """What the constructor was given, but for where the result is written."""
    hidden = ("training", "inplace")
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in hidden}
