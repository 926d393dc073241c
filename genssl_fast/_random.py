"""Seeds, steps and streams of the counter-based random numbers.

Noise depends on (seed, sample number, step, element) alone. A step is ``stream << 24 | index``: the
stream names what the noise is for, so that two uses never share numbers.
"""

from enum import IntEnum

import torch
from torch import Tensor

from genssl_fast._checks import check, is_traced

__all__ = ["Stream", "check_first_sample", "fold_seed", "fold_step", "step_counter"]


class Stream(IntEnum):
    """What the noise is for."""

    PRIOR = 0
    STEP = 1
    CHURN = 2
    CORRECTOR = 3
    PROBE = 4
    DEQUANTISATION = 5
    HEAD = 6
    DATA = 7
    CLUSTER = 8


def step_counter(stream: Stream, index: int) -> int:
    """The 32-bit step of one use of a stream, ``stream << 24 | index``.

    Example:
        >>> step_counter(Stream.STEP, 5)
        16777221
    """
    check(0 <= index < 1 << 24, "index", "an integer in [0, 2**24)", index)
    return int(stream) << 24 | index


def fold_seed(seed: int | Tensor | None, device: torch.device) -> tuple[int, Tensor | None]:
    """Seed as (signed 64-bit integer, tensor or None): operations take both and prefer the tensor.

    None draws a seed from PyTorch's default generator; integers count modulo 2**64.
    """
    if seed is None:
        seed = torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64, device=device)
        if device.type == "cpu" and not is_traced():
            return int(seed), None
    if isinstance(seed, Tensor):
        return 0, _counter_tensor("seed", seed, device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int, an int64 tensor or None, got {type(seed).__name__}")
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63), None


def fold_step(step: int | Tensor, device: torch.device) -> tuple[int, Tensor | None]:
    """Step as (integer, tensor or None), like :func:`fold_seed`."""
    if isinstance(step, Tensor):
        return 0, _counter_tensor("step", step, device)
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"step: expected an int or an int64 tensor, got {type(step).__name__}")
    check(0 <= step < 1 << 32, "step", "an integer in [0, 2**32)", step)
    return step, None


def check_first_sample(first_sample: int) -> None:
    """The number of the first sample in the batch."""
    if isinstance(first_sample, bool) or not isinstance(first_sample, int | torch.SymInt):
        raise TypeError(f"first_sample: expected an int, got {type(first_sample).__name__}")
    if isinstance(first_sample, int):
        fits = 0 <= first_sample < 1 << 62
        check(fits, "first_sample", "an integer of at least 0, below 2^62", first_sample)


def _counter_tensor(name: str, value: Tensor, device: torch.device) -> Tensor:
    if value.dtype != torch.int64 or value.numel() != 1:
        got = f"{list(value.shape)} of {value.dtype}"
        raise TypeError(f"{name}: expected an int64 tensor with one element, got {got}")
    if value.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {value.device}")
    return value
