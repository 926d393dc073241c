"""Contrastive similarity matrices and the other self-supervised losses in plain PyTorch."""

from genssl_fast.reference.contrast import losses, similarity
from genssl_fast.reference.contrast.assignment import code_distances, code_sums, nearest_code

__all__ = ["code_distances", "code_sums", "losses", "nearest_code", "similarity"]
