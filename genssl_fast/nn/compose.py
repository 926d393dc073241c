"""Transforms made of transforms."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from genssl_fast.ops.flow_layers import AutoregressiveLayer, CouplingLayer

__all__ = ["Compose", "Inverse"]


class Compose(nn.ModuleList):
    """Layers one after the other; their log-determinants add.

    Example:
        >>> from genssl_fast.nn import ActNorm, Compose, Permutation
        >>> layers = Compose([ActNorm(3), Permutation([2, 0, 1])])
        >>> y, log_abs_det = layers(torch.randn(5, 3))
        >>> y.shape, log_abs_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])``"""
        return _chain(self, x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse."""
        return _chain((layer.inverse for layer in reversed(self)), y, context)


class Inverse(nn.Module):
    """A layer the other way round, as IAF is to MAF.

    Arguments:
        layer: a transform with ``forward`` and ``inverse``.

    Example:
        >>> from genssl_fast.nn import ActNorm, Inverse
        >>> layer = ActNorm(3).eval()
        >>> x = torch.randn(5, 3)
        >>> torch.equal(Inverse(layer)(x)[0], layer.inverse(x)[0])
        True
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])``"""
        return self.layer.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse."""
        return self.layer(y, context)

    def plan_layer(self) -> CouplingLayer | AutoregressiveLayer:
        """This layer as :class:`genssl_fast.FlowPlan` takes it; the inverse of one with a network."""
        layer = self.layer.plan_layer() if hasattr(self.layer, "plan_layer") else self.layer
        if not isinstance(layer, CouplingLayer | AutoregressiveLayer):
            kind = type(self.layer).__name__
            raise TypeError(f"layer: expected a coupling or an autoregressive layer for a plan, got {kind}")
        return layer._replace(inverse=not layer.inverse)


def _chain(functions: Iterable, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    first, *others = functions
    x, total = first(x, context)
    for function in others:
        x, log_abs_det = function(x, context)
        total = total + log_abs_det
    return x, total
