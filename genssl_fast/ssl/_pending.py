"""Stand-ins in plain PyTorch for operations of the contrast family that main does not have yet."""

import torch
from torch import Tensor


def sinkhorn(logits, *, epsilon=0.05, iterations=3):
    log_q = logits / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


def soft_cross_entropy(
    student_logits, teacher_logits, *, student_temperature=0.1, teacher_temperature=0.04, center=None
):
    center = 0 if center is None else center
    targets = ((teacher_logits.detach() - center) / teacher_temperature).softmax(1)
    return -(targets * (student_logits / student_temperature).log_softmax(1)).sum(1).mean()


@torch.no_grad()
def ema_update(averages: list[Tensor], parameters: list[Tensor], decay: float) -> None:
    torch._foreach_lerp_(averages, parameters, 1 - decay)
