"""A teacher whose weights are an exponential moving average of a student's."""

import copy
import math

import torch
from torch import Tensor, nn

from genssl_fast._checks import check
from genssl_fast.ops.ema import ema_update

__all__ = ["Teacher", "cosine_schedule"]


def cosine_schedule(begin: float, end: float, progress: float) -> float:
    """From `begin` to `end` along half a cosine, as `progress` goes from 0 to 1.

    Example:
        >>> [round(cosine_schedule(0.996, 1.0, progress), 4) for progress in (0.0, 0.5, 1.0)]
        [0.996, 0.998, 1.0]
    """
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


class Teacher(nn.Module):
    """The same networks one after the other, with averaged weights and no gradients.

    Batch normalization in it keeps statistics of its own, which its forward passes update.

    Arguments:
        students: The networks to follow.
        decay: Of the average at the beginning.
        final_decay: Of the average at the end; between them it follows half a cosine.

    Example:
        >>> student = torch.nn.Linear(2, 2)
        >>> teacher = Teacher(student, decay=0.99)
        >>> teacher.update(student, progress=0.5)
        >>> teacher(torch.randn(3, 2)).requires_grad
        False
    """

    def __init__(self, *students: nn.Module, decay: float = 0.996, final_decay: float = 1.0):
        super().__init__()
        check(0 <= decay <= 1, "decay", "a number in [0, 1]", decay)
        check(0 <= final_decay <= 1, "final_decay", "a number in [0, 1]", final_decay)
        self.networks = nn.Sequential(*map(copy.deepcopy, students)).requires_grad_(False)
        self.decay, self.final_decay = decay, final_decay

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.networks(x)

    def update(self, *students: nn.Module, progress: float = 0.0) -> None:
        """ξ ← m ξ + (1 − m) θ, with m of this moment of training, in [0, 1]."""
        current = [parameter for student in students for parameter in student.parameters()]
        decay = cosine_schedule(self.decay, self.final_decay, progress)
        ema_update(self.networks, current, decay)
