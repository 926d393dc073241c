"""Flows of masked autoregressive transforms: MADE, MAF, IAF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genssl_fast._checks import check_choice, check_count
from genssl_fast.flows.flow import Flow, constructor_arguments, event_shape, mixed
from genssl_fast.nn import Inverse, MaskedAutoregressive
from genssl_fast.ops.transforms import AffineTransform, SplineTransform

__all__ = ["IAF", "MADE", "MAF", "ORDERS", "autoregressive_layers"]

ORDERS = ("reversed", "random")


class MAF(Flow):
    """Masked autoregressive flow: the density takes one pass of each network, and so do samples.

    Samples are found by :func:`genssl_fast.made_inverse`.

    Arguments:
        shape: of a sample, as 2 or (1, 8, 8).
        layers: number of autoregressive transforms.
        hidden: widths of hidden layers, see :class:`genssl_fast.nn.MaskedAutoregressive`.
        activation, residual: of the networks.
        clamp, limit: bound of the scale, see :func:`genssl_fast.affine_coupling`. A sigmoid, as in normflows
            and in early nflows, never stretches: far from all data the log-density falls like a square,
            where stretching layers multiply their errors. ActNorm layers between find the overall scale.
        order: of the entries, ``"reversed"`` in every second layer or ``"random"`` in each.
        actnorm: whether an :class:`genssl_fast.nn.ActNorm` comes before each transform.
        linear: whether an :class:`genssl_fast.nn.InvertibleLinear` comes before each transform.
        context_features: length of the context, 0 for none.

    References:
        Papamakarios et al., Masked Autoregressive Flow for Density Estimation,
        https://arxiv.org/abs/1705.07057

    Example:
        >>> flow = genssl_fast.flows.MAF(3, layers=2, hidden=(32, 32))
        >>> x, log_prob = flow.eval().sample_and_log_prob(5, seed=0)
        >>> torch.allclose(flow.log_prob(x), log_prob, atol=1e-5)
        True
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        layers: int = 5,
        hidden: Sequence[int] = (128, 128),
        *,
        activation: str = "relu",
        residual: bool = False,
        clamp: str = "sigmoid",
        limit: float | None = None,
        order: str = "reversed",
        actnorm: bool = True,
        linear: bool = False,
        context_features: int = 0,
    ):
        config = constructor_arguments(locals())
        transform = AffineTransform(clamp, limit, layout="interleaved")
        made = autoregressive_layers(
            shape, layers, hidden, transform, activation, residual, order, context_features
        )
        super().__init__(shape, mixed(made, actnorm, linear), context_features=context_features)
        self.config = config


class IAF(Flow):
    """Inverse autoregressive flow: samples and their densities take one pass of each network.

    The density of given data is found by :func:`genssl_fast.made_inverse`.

    Arguments:
        shape: of a sample, as 2 or (1, 8, 8).
        layers: number of autoregressive transforms.
        hidden: widths of hidden layers, see :class:`genssl_fast.nn.MaskedAutoregressive`.
        activation, residual: of the networks.
        clamp, limit: bound of the scale, see :func:`genssl_fast.affine_coupling`.
        order: of the entries, ``"reversed"`` in every second layer or ``"random"`` in each.
        context_features: length of the context, 0 for none.

    References:
        Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow,
        https://arxiv.org/abs/1606.04934

    Example:
        >>> flow = genssl_fast.flows.IAF(3, layers=2, hidden=(32, 32))
        >>> x, log_prob = flow.rsample_and_log_prob(5, seed=0)
        >>> x.requires_grad, log_prob.requires_grad
        (True, True)
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        layers: int = 5,
        hidden: Sequence[int] = (128, 128),
        *,
        activation: str = "relu",
        residual: bool = False,
        clamp: str = "tanh",
        limit: float | None = None,
        order: str = "reversed",
        context_features: int = 0,
    ):
        config = constructor_arguments(locals())
        transform = AffineTransform(clamp, limit, layout="interleaved")
        made = autoregressive_layers(
            shape, layers, hidden, transform, activation, residual, order, context_features
        )
        super().__init__(shape, map(Inverse, made), context_features=context_features)
        self.config = config


class MADE(Flow):
    """One masked network that gives every entry a normal density at the entries before it.

    Arguments:
        shape: of a sample, as 2 or (1, 8, 8).
        hidden: widths of hidden layers, see :class:`genssl_fast.nn.MaskedAutoregressive`.
        activation, residual: of the network.
        clamp, limit: bound of the scale, see :func:`genssl_fast.affine_coupling`.
        context_features: length of the context, 0 for none.

    References:
        Germain et al., MADE: Masked Autoencoder for Distribution Estimation,
        https://arxiv.org/abs/1502.03509

    Example:
        >>> flow = genssl_fast.flows.MADE(3, hidden=(32, 32))
        >>> flow.log_prob(torch.zeros(1, 3))  # the network starts at zero: a standard normal density
        tensor([-2.7568], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        hidden: Sequence[int] = (512,),
        *,
        activation: str = "relu",
        residual: bool = False,
        clamp: str = "zuko",
        limit: float | None = None,
        context_features: int = 0,
    ):
        config = constructor_arguments(locals())
        transform = AffineTransform(clamp, limit, layout="interleaved")
        made = autoregressive_layers(
            shape, 1, hidden, transform, activation, residual, "reversed", context_features
        )
        super().__init__(shape, made, context_features=context_features)
        self.config = config


def autoregressive_layers(
    shape: int | Sequence[int],
    layers: int,
    hidden: Sequence[int],
    transform: AffineTransform | SplineTransform,
    activation: str,
    residual: bool,
    order: str,
    context_features: int,
) -> Iterator[MaskedAutoregressive]:
    """Masked transforms in changing orders."""
    check_count("layers", layers, 1)
    check_choice("order", order, ORDERS)
    features = torch.Size(event_shape(shape)).numel()
    for layer in range(layers):
        yield MaskedAutoregressive(
            features,
            transform,
            hidden,
            order=_degrees(features, order, layer),
            activation=activation,
            residual=residual,
            context_features=context_features,
        )


def _degrees(features: int, order: str, layer: int) -> Tensor:
    """Degrees 1 to D of the entries; every second layer is reversed, or each is shuffled."""
    if order == "random":
        return 1 + torch.randperm(features)
    degrees = torch.arange(1, features + 1)
    return degrees.flip(0) if layer % 2 else degrees
