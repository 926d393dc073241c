"""Blocks of score networks in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["film_mlp", "time_embedding"]


def time_embedding(t: Tensor, frequencies: Tensor, sin_first: bool, dim: int) -> Tensor:
    """[cos(f t), sin(f t)], or sine first; an odd ``dim`` is padded with a zero. [...] -> [..., dim]"""
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    angle = t.to(dtype)[..., None] * frequencies.to(dtype)
    halves = [torch.sin(angle), torch.cos(angle)] if sin_first else [torch.cos(angle), torch.sin(angle)]
    embedding = torch.cat(halves, -1)
    return torch.nn.functional.pad(embedding, (0, dim - embedding.shape[-1])).to(t.dtype)


def film_mlp(
    x, t, frequencies, sin_first, w_in, b_in, w, c, w_film, w_embed1, w_embed2, w_out, b_out,
    class_embedding, labels,
) -> Tensor:  # fmt: skip
    """Residual blocks h + silu((1 + γ) (W h + c) + β), γ and β linear in an embedding of the time."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    matrices = (w_in, b_in, w, c, w_film, w_embed1, w_embed2, w_out, b_out)
    w_in, b_in, w, c, w_film, w_embed1, w_embed2, w_out, b_out = (m.to(dtype) for m in matrices)
    embedding = time_embedding(t.to(dtype), frequencies, sin_first, w_embed1.shape[1])
    e = silu(silu(embedding @ w_embed1.mT) @ w_embed2.mT)
    if labels is not None:
        e = e + class_embedding.to(dtype)[labels]
    h = x.to(dtype) @ w_in.mT + b_in
    for w_block, c_block, film_block in zip(w, c, w_film):
        gamma, beta = (e @ film_block.mT).chunk(2, -1)
        h = h + silu((1 + gamma) * (h @ w_block.mT + c_block) + beta)
    return (h @ w_out.mT + b_out).to(x.dtype)
