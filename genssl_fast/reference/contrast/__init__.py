"""Contrastive similarity matrices and the other self-supervised losses in plain PyTorch."""

from genssl_fast.reference.contrast import losses, similarity

__all__ = ["losses", "similarity"]
