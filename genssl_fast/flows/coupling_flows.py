"""Flows of couplings with perceptrons: NICE, RealNVP, neural spline flows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from genssl_fast._checks import check, check_choice, check_count
from genssl_fast.flows.autoregressive_flows import ORDERS, autoregressive_layers
from genssl_fast.flows.flow import Flow, constructor_arguments, event_shape, mixed
from genssl_fast.nn import MLP, ActNorm, AffineCoupling, SplineCoupling
from genssl_fast.ops.transforms import SplineTransform, check_transform

__all__ = ["MASKS", "NICE", "NeuralSplineFlow", "RealNVP", "coupling_masks"]

MASKS = ("checkerboard", "random", "half")


class NICE(Flow):
    """Additive couplings, and one scale per entry at the end.

    Arguments:
        shape: of a sample, as 2 or (1, 8, 8).
        layers: number of couplings.
        hidden: widths of the perceptrons' hidden layers, see :class:`genssl_fast.nn.MLP`.
        activation, residual, dropout: of the perceptrons.
        masks: which entries a coupling transforms, see :func:`coupling_masks`.
        context_features: length of the context, 0 for none.

    References:
        Dinh et al., NICE: Non-linear Independent Components Estimation, https://arxiv.org/abs/1410.8516

    Example:
        >>> flow = genssl_fast.flows.NICE(2, layers=4, hidden=(32,))
        >>> flow.log_prob(torch.randn(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        layers: int = 4,
        hidden: Sequence[int] = (128, 128),
        *,
        activation: str = "relu",
        residual: bool = False,
        dropout: float = 0.0,
        masks: str = "checkerboard",
        context_features: int = 0,
    ):
        config = constructor_arguments(locals())
        shape = event_shape(shape)
        network = _perceptron(hidden, activation, residual, dropout, context_features)
        couplings = [
            AffineCoupling(mask, network, additive=True) for mask in coupling_masks(shape, layers, masks)
        ]
        scale = ActNorm(couplings[0].features)
        super().__init__(shape, [*couplings, scale], context_features=context_features)
        self.config = config


class RealNVP(Flow):
    """Affine couplings, with normalization and, if asked for, a learned rotation before each.

    Arguments:
        shape: of a sample, as 2 or (1, 8, 8).
        layers: number of couplings.
        hidden: widths of the perceptrons' hidden layers, see :class:`genssl_fast.nn.MLP`.
        activation, residual, dropout: of the perceptrons.
        clamp, limit: bound of the scale, see :func:`genssl_fast.affine_coupling`.
        masks: which entries a coupling transforms, see :func:`coupling_masks`.
        actnorm: whether an :class:`genssl_fast.nn.ActNorm` comes before each coupling.
        linear: whether an :class:`genssl_fast.nn.InvertibleLinear` comes before each coupling.
        context_features: length of the context, 0 for none.

    References:
        Dinh et al., Density Estimation Using Real NVP, https://arxiv.org/abs/1605.08803

    Example:
        >>> flow = genssl_fast.flows.RealNVP((1, 4, 4), layers=4, hidden=(32, 32))
        >>> flow.sample(5, seed=0).shape
        torch.Size([5, 1, 4, 4])
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        layers: int = 8,
        hidden: Sequence[int] = (128, 128),
        *,
        activation: str = "relu",
        residual: bool = False,
        dropout: float = 0.0,
        clamp: str = "tanh",
        limit: float | None = None,
        masks: str = "checkerboard",
        actnorm: bool = True,
        linear: bool = False,
        context_features: int = 0,
    ):
        config = constructor_arguments(locals())
        shape = event_shape(shape)
        network = _perceptron(hidden, activation, residual, dropout, context_features)
        couplings = [
            AffineCoupling(mask, network, clamp=clamp, limit=limit)
            for mask in coupling_masks(shape, layers, masks)
        ]
        super().__init__(shape, mixed(couplings, actnorm, linear), context_features=context_features)
        self.config = config


class NeuralSplineFlow(Flow):
    """Flow of rational-quadratic splines: couplings, or autoregressive transforms.

    Arguments:
        shape: of a sample, as 2 or (1, 8, 8).
        layers: number of couplings or autoregressive transforms.
        hidden: widths of hidden layers, see :class:`genssl_fast.nn.MLP`.
        bins: bins of a spline.
        bound: the splines act on [-bound, bound], and outside is the identity.
        autoregressive: whether every entry's spline depends on all entries before it.
        activation, residual: of the networks.
        dropout: of the couplings' perceptrons.
        masks: which entries a coupling transforms, see :func:`coupling_masks`.
        order: of the entries in an autoregressive flow, ``"reversed"`` in every second layer or
            ``"random"`` in each.
        actnorm: whether an :class:`genssl_fast.nn.ActNorm` comes before each layer.
        linear: whether an :class:`genssl_fast.nn.InvertibleLinear` comes before each layer.
        context_features: length of the context, 0 for none.

    References:
        Durkan et al., Neural Spline Flows, https://arxiv.org/abs/1906.04032

    Example:
        >>> flow = genssl_fast.flows.NeuralSplineFlow(2, layers=2, hidden=(32, 32), context_features=3)
        >>> flow.log_prob(torch.randn(5, 2), torch.randn(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        layers: int = 8,
        hidden: Sequence[int] = (128, 128),
        *,
        bins: int = 8,
        bound: float = 3.0,
        autoregressive: bool = False,
        activation: str = "relu",
        residual: bool = False,
        dropout: float = 0.0,
        masks: str = "checkerboard",
        order: str = "reversed",
        actnorm: bool = False,
        linear: bool = True,
        context_features: int = 0,
    ):
        config = constructor_arguments(locals())
        shape = event_shape(shape)
        check_choice("masks", masks, MASKS)
        check_choice("order", order, ORDERS)
        check_transform(SplineTransform(bins, bound=bound))
        if autoregressive:
            check(dropout == 0, "dropout", "0 where autoregressive", dropout)
            transform = SplineTransform(bins, bound=bound)
            splines = autoregressive_layers(
                shape, layers, hidden, transform, activation, residual, order, context_features
            )
        else:
            network = _perceptron(hidden, activation, residual, dropout, context_features)
            splines = [
                SplineCoupling(mask, network, bins=bins, bound=bound)
                for mask in coupling_masks(shape, layers, masks)
            ]
        super().__init__(shape, mixed(splines, actnorm, linear), context_features=context_features)
        self.config = config


def coupling_masks(shape: tuple[int, ...], layers: int, kind: str) -> Iterator[Tensor]:
    """One bool mask [D] per coupling, every second the complement of the one before.

    Kinds: ``"checkerboard"``, which is every second entry of a vector; ``"half"``, first and second half
    of the entries; ``"random"``, a half drawn anew for every pair from PyTorch's default generator.

    Example:
        >>> from genssl_fast.flows.coupling_flows import coupling_masks
        >>> [mask.int().tolist() for mask in coupling_masks((4,), 2, "checkerboard")]
        [[0, 1, 0, 1], [1, 0, 1, 0]]
    """
    check_count("layers", layers, 1)
    check_choice("masks", kind, MASKS)
    size = torch.Size(shape).numel()
    check(size >= 2, "shape", "at least two entries to couple", shape)
    coordinates = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    entries = torch.arange(size)
    for layer in range(layers):
        if layer % 2 == 0:
            order = torch.randperm(size) if kind == "random" else entries
            odd = coordinates.sum(0).flatten() % 2 == 1
            mask = odd if kind == "checkerboard" else order >= (size + 1) // 2
        yield mask if layer % 2 == 0 else ~mask


def _perceptron(hidden, activation, residual, dropout, context_features) -> partial:
    return partial(
        MLP,
        hidden=hidden,
        activation=activation,
        residual=residual,
        dropout=dropout,
        context_features=context_features,
    )
