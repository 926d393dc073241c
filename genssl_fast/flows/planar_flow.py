"""Planar flows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genssl_fast._checks import check_choice, check_count
from genssl_fast.flows.flow import Flow, constructor_arguments, event_shape
from genssl_fast.nn import Inverse, Planar

__all__ = ["PlanarFlow"]


class PlanarFlow(Flow):
    """Planar maps one after the other, in closed form in one direction and by bisection in the other.

    Arguments:
        shape: of a sample, as 2 or (1, 8, 8).
        layers: number of planar maps.
        closed_form: the direction that is in closed form: ``"log_prob"`` to fit data, ``"sample"``
            for variational inference.
        context_features: length of the context, 0 for none.

    References:
        Rezende and Mohamed, Variational Inference with Normalizing Flows, https://arxiv.org/abs/1505.05770

    Example:
        >>> flow = genssl_fast.flows.PlanarFlow(2, layers=4)
        >>> flow.log_prob(flow.sample(5, seed=0)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        layers: int = 16,
        *,
        closed_form: str = "log_prob",
        context_features: int = 0,
    ):
        config = constructor_arguments(locals())
        check_count("layers", layers, 1)
        check_choice("closed_form", closed_form, ("log_prob", "sample"))
        features = torch.Size(event_shape(shape)).numel()
        maps = [Planar(features, context_features=context_features) for _ in range(layers)]
        maps = map(Inverse, maps) if closed_form == "sample" else maps
        super().__init__(shape, maps, context_features=context_features)
        self.config = config
