"""Contrastive similarity matrices and the other self-supervised losses in plain PyTorch."""

from genssl_fast.reference.contrast.transport import (
    ema_update,
    sinkhorn,
    sinkhorn_codes,
    sinkhorn_maxima,
    sinkhorn_sums,
    soft_cross_entropy,
    soft_cross_entropy_backward,
)

__all__ = [
    "ema_update",
    "sinkhorn",
    "sinkhorn_codes",
    "sinkhorn_maxima",
    "sinkhorn_sums",
    "soft_cross_entropy",
    "soft_cross_entropy_backward",
]
