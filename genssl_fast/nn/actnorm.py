"""Activation normalization: one scale and shift per feature, set from the first batch."""

import torch
from torch import Tensor, nn

from genssl_fast._checks import check_count
from genssl_fast.ops.actnorm import actnorm
from genssl_fast.ops.flow_layers import ElementwiseLayer

__all__ = ["ActNorm"]


class ActNorm(nn.Module):
    """``y = x * exp(log_scale) + shift`` with one number of each per entry of dimension 1.

    The first batch seen by :meth:`forward` in training sets both, so that ``y`` has mean 0 and
    standard deviation 1 over the batch (and the pixels). Whether that has happened is a buffer and
    part of the state; the inverse never initializes.

    Arguments:
        features: D of x [B, D] or C of x [B, C, H, W].

    Raises:
        ValueError: ``features`` is not positive.

    References:
        Kingma and Dhariwal, Glow: Generative Flow with Invertible 1×1 Convolutions,
        https://arxiv.org/abs/1807.03039

    Example:
        >>> layer = genssl_fast.nn.ActNorm(3)
        >>> y, _ = layer(5 + 2 * torch.randn(1000, 3))
        >>> bool((y.mean(0).abs() < 1e-4).all()), y.std().round(decimals=2).item()
        (True, 1.0)
    """

    def __init__(self, features: int):
        super().__init__()
        check_count("features", features, 1)
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialized", torch.tensor(False))
        self._known_initialized = False  # spares a read from the device at every call

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])``"""
        self.initialize_once(x)
        return actnorm(x, self.shift, self.log_scale)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse."""
        return actnorm(y, self.shift, self.log_scale, inverse=True)

    def plan_layer(self) -> ElementwiseLayer:
        """This layer as :class:`genssl_fast.FlowPlan` takes it."""
        return ElementwiseLayer(self.shift, self.log_scale)

    def initialize_once(self, x: Tensor) -> None:
        """Calls :meth:`initialize` in training, unless that has happened before."""
        if self.training and len(x) > 0 and not self._is_initialized():
            self.initialize(x)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets scale and shift from data [B, D, ...]; a feature that does not vary keeps scale 1."""
        values = x.transpose(0, 1).flatten(1).to(torch.promote_types(x.dtype, torch.float32))
        std = values.std(1, correction=0)
        scale = torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 1.0)
        self.log_scale.copy_(scale.log())
        self.shift.copy_(-values.mean(1) * scale)
        self.initialized.fill_(True)
        self._known_initialized = True

    def _is_initialized(self) -> bool:
        if not self._known_initialized and not torch.compiler.is_compiling():  # which reads no values
            self._known_initialized = bool(self.initialized)
        return self._known_initialized

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_initialized = not self.initialized.is_meta and bool(self.initialized)

    def extra_repr(self) -> str:
        return f"features={len(self.shift)}"
