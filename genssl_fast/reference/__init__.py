"""The operations in plain PyTorch: what every kernel is measured against."""

from genssl_fast.reference import integrate, random, score

__all__ = ["integrate", "random", "score"]
