"""Counter-based random numbers in plain PyTorch.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math

import torch
from torch import Tensor

__all__ = ["philox4x32", "random", "random_values"]

MASK = 0xFFFFFFFF
MULTIPLY = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a·b; 16-bit halves keep every product inside int64."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def philox4x32(counter: tuple, key: tuple, rounds: int = 10) -> tuple[Tensor, ...]:
    """Four words (int64 tensors holding 32 bits) for a counter of four and a key of two such words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = _multiply(MULTIPLY[0], c0)
        high1, low1 = _multiply(MULTIPLY[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def random_values(distribution: int, shape, seed, step, first_sample: int, device=None) -> Tensor:
    """fp32 numbers of ``shape``, its first dimension the samples; distribution as in :func:`random`."""
    samples, elements = shape[0], math.prod(shape[1:])
    seed, step = (torch.as_tensor(value, dtype=torch.int64, device=device) for value in (seed, step))
    block = torch.arange((elements + 3) // 4, device=device).expand(samples, -1)
    sample = first_sample + torch.arange(samples, device=device)[:, None].expand_as(block)
    counter = (block, step & MASK, sample & MASK, sample >> 32 & MASK)
    words = philox4x32(counter, (seed & MASK, seed >> 32 & MASK))
    values = _map_words(distribution, words)
    return torch.stack(values, -1).flatten(1)[:, :elements].reshape(shape)


def _map_words(distribution: int, words) -> list[Tensor]:
    if distribution == 2:
        return [1.0 - 2.0 * (word >> 31).to(torch.float32) for word in words]
    uniforms = [(word.to(torch.float32) + 0.5) * 2.0**-32 for word in words]
    return uniforms if distribution == 0 else _normals(*uniforms[:2]) + _normals(*uniforms[2:])


def _normals(first: Tensor, second: Tensor) -> list[Tensor]:
    radius = torch.sqrt(-2.0 * torch.log(first.double()))
    angle = 2.0 * math.pi * second.double()
    return [(radius * torch.cos(angle)).float(), (radius * torch.sin(angle)).float()]


def random(out, distribution, seed, seed_tensor, step, step_tensor, first_sample) -> None:
    """Fills ``out`` [B, ...]: 0 uniform on (0, 1], 1 normal, 2 Rademacher."""
    seed = seed if seed_tensor is None else seed_tensor.reshape(())
    step = step if step_tensor is None else step_tensor.reshape(())
    shape = out.shape or (1,)
    values = random_values(distribution, shape, seed, step, first_sample, out.device)
    out.copy_(values.reshape(out.shape))
