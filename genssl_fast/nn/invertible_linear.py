"""An invertible matrix in its triangular factors; on images a 1×1 convolution."""

from functools import partial

import torch
from torch import Tensor, nn

from genssl_fast._checks import check_count
from genssl_fast.nn.kept import Kept, records_nothing
from genssl_fast.ops.flow_layers import LinearLayer
from genssl_fast.ops.invertible_linear import invertible_linear, invertible_linear_weight

__all__ = ["InvertibleLinear"]


class InvertibleLinear(nn.Module):
    """``y = W x + b`` with ``W = P L (U + diag(sign * exp(log_diagonal)))``; a random rotation at first.

    Arguments:
        features: D of x [B, D], or C of x [B, C, H, W] for a 1×1 convolution.
        bias: whether there is a bias.
        identity: whether it starts as the identity instead of a random rotation.

    Raises:
        ValueError: ``features`` is not positive.

    References:
        Kingma and Dhariwal, Glow, https://arxiv.org/abs/1807.03039

    Example:
        >>> layer = genssl_fast.nn.InvertibleLinear(4)
        >>> y, log_abs_det = layer(torch.randn(5, 4))
        >>> log_abs_det.abs().max() < 1e-5  # a rotation keeps volumes
        tensor(True)
    """

    def __init__(self, features: int, *, bias: bool = False, identity: bool = False):
        super().__init__()
        check_count("features", features, 1)
        eye = torch.eye(features, dtype=torch.float64)
        weight = eye if identity else torch.linalg.qr(torch.randn_like(eye)).Q
        permutation, lower, upper = torch.linalg.lu(weight)
        diagonal = upper.diagonal()
        dtype = torch.get_default_dtype()
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_diagonal = nn.Parameter(diagonal.abs().log().to(dtype))
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None
        self.register_buffer("sign", diagonal.sign().to(dtype))
        self.register_buffer("permutation", permutation.argmax(1))  # row i of W is row permutation[i] of LU
        self._kept = Kept()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])``"""
        return invertible_linear(x, *self.factors(), self.bias)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse; without gradients W⁻¹ is kept between calls."""
        factors = self.factors()
        weight_inverse = None
        if records_nothing() and y.dtype == self.lower.dtype:
            weight_inverse = self._kept(factors, partial(invertible_linear_weight, *factors, inverse=True))
        return invertible_linear(y, *factors, self.bias, inverse=True, weight_inverse=weight_inverse)

    def refresh(self) -> None:
        """Forgets W⁻¹: on CUDA, after changes of ``.data``, which have no version."""
        self._kept.forget()

    def weight(self) -> Tensor:
        """W [D, D] in the dtype of its factors."""
        return invertible_linear_weight(*self.factors()).to(self.lower.dtype)

    def plan_layer(self) -> LinearLayer:
        """This layer as :class:`genssl_fast.FlowPlan` takes it."""
        return LinearLayer(self.weight(), self.bias, self.log_diagonal.sum())

    def factors(self) -> tuple[Tensor, ...]:
        """Lower, upper, log-diagonal, sign and permutation, see :func:`genssl_fast.invertible_linear`."""
        return self.lower, self.upper, self.log_diagonal, self.sign, self.permutation

    def extra_repr(self) -> str:
        return f"features={len(self.sign)}, bias={self.bias is not None}"
