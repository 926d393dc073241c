"""Contrastive similarity matrices and the other self-supervised losses in plain PyTorch."""

from genssl_fast.reference.contrast import losses, similarity
from genssl_fast.reference.contrast.assignment import code_distances, code_sums, nearest_code
from genssl_fast.reference.contrast.decorrelation import barlow_twins, vicreg

__all__ = ["barlow_twins", "code_distances", "code_sums", "losses", "nearest_code", "similarity", "vicreg"]
