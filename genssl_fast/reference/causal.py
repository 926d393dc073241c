"""Masked autoregressive networks and their inverse in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional

from genssl_fast._autocast import without_autocast
from genssl_fast.reference.coupling import affine_coupling, rational_quadratic_spline, softplus

__all__ = ["ACTIVATIONS", "LAYOUTS", "made", "made_inverse", "made_transform", "made_values", "transform"]

# Both in the order of the compiled kernels. A layout is that of the numbers of one dimension.
LAYOUTS = ("shift", "interleaved", "interleaved_scale_first")
NETWORK = 10  # arguments that describe a network
ACTIVATIONS = {
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": softplus,
}


def made(x, *network) -> Tensor:
    """Parameters [B, D, P], the last of :func:`made_values`."""
    last = made_values(x, *network)[-1]
    return last.reshape(*x.shape, last.shape[1] // x.shape[1])


@without_autocast
def made_values(
    x, weights, biases, degrees, input_gates, output_gates, gated_inputs, gated_outputs, activated, skips,
    activation,
) -> list[Tensor]:  # fmt: skip
    """v_{l+1} = o_l (W_l (i_l act(v_l)) + b_l) (+ v_{l-1}), a unit seeing those of its degree and below.

    ``gated_inputs``, ``gated_outputs``, ``activated`` and ``skips`` have a bit for every layer; gates are
    those of layers whose bit is set. ``activation`` is a position in :data:`ACTIVATIONS`. Autocast leaves
    the products as they are: a log-density is a sum over entries of what they say.
    """
    act, values = list(ACTIVATIONS.values())[activation], [x]
    input_gates, output_gates = iter(input_gates), iter(output_gates)
    for layer, (weight, bias) in enumerate(zip(weights, biases)):
        is_last = layer == len(weights) - 1
        columns = degrees[layer]
        rows = degrees[0].repeat_interleave(len(weight) // x.shape[1]) - 1 if is_last else degrees[layer + 1]
        masked = torch.where(rows[:, None] >= columns, weight, 0.0)
        given = act(values[-1]) if activated >> layer & 1 else values[-1]
        given = given * next(input_gates) if gated_inputs >> layer & 1 else given
        value = functional.linear(given, masked) + bias
        value = value * next(output_gates) if gated_outputs >> layer & 1 else value
        values.append(value + values[-2] if skips >> layer & 1 else value)
    return values


def made_transform(x, *args):
    """Elementwise transform of x with the network's parameters, and log|det| [B]."""
    network, options = args[:NETWORK], args[NETWORK:]
    return transform(x, made(x, *network), False, *options)


def made_inverse(y, *args):
    """The x whose transform is y: each pass makes the dimensions of one more degree right."""
    network, options = args[:NETWORK], args[NETWORK:]
    x, log_abs_det = torch.zeros_like(y), y.new_zeros(len(y))
    for _ in range(y.shape[1]):
        x, log_abs_det = transform(y, made(x, *network), True, *options)
    return x, log_abs_det


def transform(
    x, parameters, inverse: bool, layout, clamp, shift_first, limit, offset, min_scale, bins, *spline
) -> tuple[Tensor, Tensor]:
    """A spline of ``bins``, or an affine transform where they are 0; ``layout`` a position in LAYOUTS."""
    if bins:
        widths, heights, derivatives = parameters.tensor_split([bins, 2 * bins], -1)
        return rational_quadratic_spline(x, widths, heights, derivatives, inverse, False, *spline)
    first, second = parameters[..., 0], parameters[..., -1]
    shift, log_scale = {"shift": (first, None), "interleaved": (first, second)}.get(
        LAYOUTS[layout], (second, first)
    )
    return affine_coupling(
        x, shift, log_scale, None, 0, inverse, clamp, limit, offset, min_scale, shift_first
    )
