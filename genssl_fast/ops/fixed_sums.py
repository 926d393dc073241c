"""Sums in PyTorch of the same bits for any number of threads.

Where all of a tensor becomes one number, PyTorch gives each thread a part, so that their number shows in the
rounding. Sums along rows it leaves whole.
"""

from torch import Tensor
from torch.nn import functional

__all__ = ["mean", "times", "total"]

SPLIT = 1 << 15  # numbers from which PyTorch's CPU threads share a sum
ROW = 1 << 12


def total(x: Tensor) -> Tensor:
    """Σ x []."""
    return _in_rows(x.reshape(-1)).sum(1).sum() if _is_split(x) else x.sum()


def mean(x: Tensor) -> Tensor:
    """The mean [] of x."""
    return total(x) / x.numel() if _is_split(x) else x.mean()


def times(number: Tensor, x: Tensor) -> Tensor:
    """number · x, for x [N, ...] and a number [] or one for each row [N]; its gradient is a sum over x.

    Example:
        >>> from genssl_fast.ops.fixed_sums import times
        >>> times(torch.tensor(2.0), torch.ones(2, 3))
        tensor([[2., 2., 2.],
                [2., 2., 2.]])
    """
    if number.ndim:
        return number.reshape(-1, *[1] * (x.ndim - 1)) * x
    if not _is_split(x):
        return number * x
    if x.ndim == 1:
        return times(number, _in_rows(x)).reshape(-1)[: len(x)]
    return times(times(number, x.new_ones(len(x))), x)


def _is_split(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() >= SPLIT


def _in_rows(x: Tensor) -> Tensor:
    """x [N] in rows, with zeros at the end [R, ROW]."""
    return functional.pad(x, (0, -len(x) % ROW)).view(-1, ROW)
