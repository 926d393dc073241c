"""Blocks of score networks in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["time_embedding"]


def time_embedding(t: Tensor, frequencies: Tensor, sin_first: bool, dim: int) -> Tensor:
    """[cos(f t), sin(f t)], or sine first; an odd ``dim`` is padded with a zero. [...] -> [..., dim]"""
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    angle = t.to(dtype)[..., None] * frequencies.to(dtype)
    halves = [torch.sin(angle), torch.cos(angle)] if sin_first else [torch.cos(angle), torch.sin(angle)]
    embedding = torch.cat(halves, -1)
    return torch.nn.functional.pad(embedding, (0, dim - embedding.shape[-1])).to(t.dtype)
