"""Contrastive similarity matrices and the other self-supervised losses in plain PyTorch."""

from genssl_fast.reference.contrast import losses, similarity
from genssl_fast.reference.contrast.assignment import code_distances, code_sums, nearest_code
from genssl_fast.reference.contrast.decorrelation import barlow_twins, vicreg
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
    "barlow_twins",
    "code_distances",
    "code_sums",
    "ema_update",
    "losses",
    "nearest_code",
    "similarity",
    "sinkhorn",
    "sinkhorn_codes",
    "sinkhorn_maxima",
    "sinkhorn_sums",
    "soft_cross_entropy",
    "soft_cross_entropy_backward",
    "vicreg",
]
