"""Contrastive similarity matrices and the other self-supervised losses in plain PyTorch."""

from genssl_fast.reference.contrast.decorrelation import barlow_twins, vicreg

__all__ = ["barlow_twins", "vicreg"]
