"""The random-number contract in numpy and fp64, written apart from the kernels."""

import numpy as np


def philox4x32_10(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """counter [..., 4] of 32-bit numbers in uint64 -> words [..., 4]."""
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c2 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & low, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1)


def normals(seed: int, step: int, first_sample: int, shape: tuple[int, int]) -> np.ndarray:
    """Normal numbers [B, D]: element e of a sample from word e mod 4 of block e div 4."""
    batch, dim = shape
    seed, blocks = seed % 2**64, -(-dim // 4)
    counter = np.zeros((batch, blocks, 4), np.uint64)
    samples = (np.arange(batch, dtype=np.uint64) + np.uint64(first_sample % 2**64))[:, None]
    counter[..., 0] = np.arange(blocks, dtype=np.uint64)
    counter[..., 1] = step % 2**32
    counter[..., 2], counter[..., 3] = samples & np.uint64(0xFFFFFFFF), samples >> np.uint64(32)
    words = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32)).astype(np.float32)
    u = ((words + np.float32(0.5)) * np.float32(2.0**-32)).astype(np.float64)
    radius, angle = np.sqrt(-2 * np.log(u[..., 0::2])), 2 * np.pi * u[..., 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    return pairs.reshape(batch, -1)[:, :dim]
