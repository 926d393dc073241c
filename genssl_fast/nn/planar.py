"""Planar and radial maps: one direction, or one point, of a vector at a time."""

import math

import torch
from torch import Tensor, nn

from genssl_fast._checks import check, check_count
from genssl_fast.nn.mlp import check_context
from genssl_fast.ops.planar import planar, radial

__all__ = ["Planar", "Radial"]


class _Parametric(nn.Module):
    """A map of x [B, D] whose parameters are constants plus, with a context, a linear function of it."""

    def __init__(self, sizes: list[int], context_features: int):
        super().__init__()
        check(min(sizes) >= 1, "features", "at least 1", min(sizes))
        check_count("context_features", context_features)
        self.sizes, self.context_features = sizes, context_features
        self.parameter = nn.Parameter(torch.empty(sum(sizes)))
        self.context = nn.Linear(context_features, sum(sizes), bias=False) if context_features else None

    def _values(self, context: Tensor | None) -> tuple[Tensor, ...]:
        """The parameters, each with its size last; a size of 1 is dropped."""
        check_context(context, self.context_features)
        values = self.parameter if context is None else self.parameter + self.context(context)
        parts = values.split(self.sizes, -1)
        return tuple(part if i in self.vectors else part.squeeze(-1) for i, part in enumerate(parts))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])``"""
        return self.function(x, *self._values(context))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse."""
        return self.function(y, *self._values(context), inverse=True)

    def extra_repr(self) -> str:
        return f"features={self.sizes[0]}, context_features={self.context_features}"


class Planar(_Parametric):
    """``y = x + û tanh(w · x + b)``, see :func:`genssl_fast.planar`; at first the identity for every context.

    Arguments:
        features: D of x [B, D].
        context_features: length of the context, a linear function of which moves u, w and b.

    References:
        Rezende and Mohamed, Variational Inference with Normalizing Flows, https://arxiv.org/abs/1505.05770

    Example:
        >>> genssl_fast.nn.Planar(2)(torch.randn(5, 2))[1].shape
        torch.Size([5])
    """

    function, vectors = staticmethod(planar), (0, 1)

    def __init__(self, features: int, *, context_features: int = 0):
        super().__init__([features, features, 1], context_features)
        nn.init.normal_(self.parameter, std=features**-0.5)
        with torch.no_grad():
            u, w, _ = self.parameter.split(self.sizes)
            u.copy_(w * (math.log(math.expm1(1.0)) / w.square().sum()))  # softplus(w · u) = 1, so û = 0
            if self.context is not None:
                self.context.weight.zero_()


class Radial(_Parametric):
    """``y = x + β (x - c) / (α + |x - c|)``, see :func:`genssl_fast.radial`.

    Arguments:
        features: D of x [B, D].
        context_features: length of the context, a linear function of which moves c, log α and β.

    References:
        Rezende and Mohamed, Variational Inference with Normalizing Flows, https://arxiv.org/abs/1505.05770

    Example:
        >>> genssl_fast.nn.Radial(2)(torch.randn(5, 2))[1].shape
        torch.Size([5])
    """

    function, vectors = staticmethod(radial), (0,)

    def __init__(self, features: int, *, context_features: int = 0):
        super().__init__([features, 1, 1], context_features)
        nn.init.normal_(self.parameter)
