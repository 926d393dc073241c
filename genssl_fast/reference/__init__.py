"""The operations in plain PyTorch: what every kernel is measured against."""

from genssl_fast.reference import causal, contrast, coupling, integrate, random, score

__all__ = ["causal", "contrast", "coupling", "integrate", "random", "score"]
