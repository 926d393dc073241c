"""Contrastive similarity matrices and the other self-supervised losses in plain PyTorch."""

__all__ = []
