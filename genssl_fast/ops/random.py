"""Random numbers that depend on (seed, sample, step, element) alone."""

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._checks import FLOATING, check, check_choice
from genssl_fast._library import define, implement_triton
from genssl_fast._random import check_first_sample, fold_seed, fold_step

__all__ = ["random_normal", "random_rademacher", "random_uniform"]

UNIFORM, NORMAL, RADEMACHER = 0, 1, 2

fill_random = define(
    "_random(Tensor(a!) out, int distribution, int seed, Tensor? seed_tensor, int step, "
    "Tensor? step_tensor, int first_sample) -> ()",
    reference=reference.random.random,
    fake=lambda *args: None,
)
implement_triton("_random", "random.random", "random")


def random_normal(
    shape,
    *,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_sample: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal numbers of a shape ``[B, ...]``: Philox4x32-10 and Box–Muller.

    Row *b* is sample ``first_sample + b``: its numbers are the same in every batch, on every device
    (within 4 ulp) and under any number of threads.

    Arguments:
        shape: ``[B, ...]``, the samples first.
        seed: an integer modulo 2**64, an int64 tensor on the device, or None to draw one.
        step: what the noise is for, in [0, 2**32): see :func:`genssl_fast.step_counter`.
        first_sample: number of the first row.
        dtype: fp32, bf16 or fp16 rounded from it, or fp64 widened from it.
        device: as for ``torch.randn``.

    Raises:
        ValueError, TypeError: an argument out of range; the message names it.

    References:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011,
        https://doi.org/10.1145/2063384.2063405

    Example:
        >>> whole = genssl_fast.random_normal((4, 3), seed=0)
        >>> half = genssl_fast.random_normal((2, 3), seed=0, first_sample=2)
        >>> torch.equal(whole[2:], half)
        True
    """
    return _filled(NORMAL, shape, seed, step, first_sample, dtype, device)


def random_uniform(
    shape,
    *,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_sample: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers (word + 1/2)·2⁻³² on (0, 1]; arguments as for :func:`random_normal`.

    Example:
        >>> genssl_fast.random_uniform((2, 2), seed=0).shape
        torch.Size([2, 2])
    """
    return _filled(UNIFORM, shape, seed, step, first_sample, dtype, device)


def random_rademacher(
    shape,
    *,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_sample: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Numbers +1 and −1 with equal probability; arguments as for :func:`random_normal`.

    Example:
        >>> genssl_fast.random_rademacher((2, 3), seed=0).abs().unique()
        tensor([1.])
    """
    return _filled(RADEMACHER, shape, seed, step, first_sample, dtype, device)


def _filled(distribution, shape, seed, step, first_sample, dtype, device) -> Tensor:
    check_choice("dtype", dtype, FLOATING)
    shape = (shape,) if isinstance(shape, int) else shape
    check(len(shape) > 0, "shape", "at least one dimension, the samples", tuple(shape))
    check(all(size >= 0 for size in shape), "shape", "sizes of at least 0", tuple(shape))
    check_first_sample(first_sample)
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    fill_random(out, distribution, *fold_seed(seed, out.device), *fold_step(step, out.device), first_sample)
    return out
