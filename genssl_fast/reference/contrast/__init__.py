"""Contrastive similarity matrices and the other self-supervised losses in plain PyTorch."""

from genssl_fast.reference.contrast import similarity

__all__ = ["similarity"]
