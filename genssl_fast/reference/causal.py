"""Masked autoregressive networks and their inverse in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional

from genssl_fast.reference.coupling import affine_coupling, rational_quadratic_spline, softplus

__all__ = ["ACTIVATIONS", "LAYOUTS", "made", "made_inverse", "made_transform"]

# Both in the order of the compiled kernels. A layout is that of the numbers of one dimension.
LAYOUTS = ("shift", "interleaved", "interleaved_scale_first")
ACTIVATIONS = {
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": softplus,
}


def made(x, weights, biases, degrees, activated, skips, activation) -> Tensor:
    """v_{l+1} = W_l act(v_l) + b_l (+ v_{l-1}), a unit seeing those of its degree and below. [B, D, P]

    ``activated`` and ``skips`` have a bit for every layer, ``activation`` is a position in
    :data:`ACTIVATIONS`.
    """
    act, values = list(ACTIVATIONS.values())[activation], [x]
    for layer, (weight, bias) in enumerate(zip(weights, biases)):
        is_last = layer == len(weights) - 1
        columns = degrees[layer]
        rows = degrees[0].repeat_interleave(len(weight) // x.shape[1]) - 1 if is_last else degrees[layer + 1]
        masked = weight * (rows[:, None] >= columns)
        value = functional.linear(act(values[-1]) if activated >> layer & 1 else values[-1], masked) + bias
        values.append(value + values[-2] if skips >> layer & 1 else value)
    return values[-1].unflatten(1, (x.shape[1], len(weights[-1]) // x.shape[1]))


def made_transform(x, weights, biases, degrees, activated, skips, activation, *options):
    """Elementwise transform of x with the network's parameters, and log|det| [B]."""
    parameters = made(x, weights, biases, degrees, activated, skips, activation)
    return _transform(x, parameters, False, *options)


def made_inverse(y, weights, biases, degrees, activated, skips, activation, *options):
    """The x whose transform is y: each pass makes the dimensions of one more degree right."""
    x, log_abs_det = torch.zeros_like(y), y.new_zeros(len(y))
    for _ in range(y.shape[1]):
        parameters = made(x, weights, biases, degrees, activated, skips, activation)
        x, log_abs_det = _transform(y, parameters, True, *options)
    return x, log_abs_det


def _transform(
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
