"""Sinkhorn's codes, cross-entropy between softmaxes and averages of parameters in plain PyTorch."""

import math

import torch
from torch import Tensor

from genssl_fast.reference.integrate import compute_dtype

__all__ = [
    "ema_update",
    "sinkhorn",
    "sinkhorn_codes",
    "sinkhorn_maxima",
    "sinkhorn_sums",
    "soft_cross_entropy",
    "soft_cross_entropy_backward",
]


def sinkhorn(logits: Tensor, epsilon: float, iterations: int) -> Tensor:
    """exp(l / ε + u_k + v_b) [B, K]: u makes columns sum to 1, then v rows, so many times."""
    x = logits.to(compute_dtype(logits.dtype)) / epsilon
    v = x.new_zeros(len(x), 1)
    for _ in range(iterations):
        u = -torch.logsumexp(x + v, 0)
        v = -torch.logsumexp(x + u, 1, keepdim=True)
    return torch.exp(x + u + v).to(logits.dtype)


def sinkhorn_maxima(logits: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Largest entry m of each column, and Σ_b exp((l − m) / ε). [K] each"""
    x = logits.to(compute_dtype(logits.dtype))
    lowest = x.new_full((1, x.shape[1]), torch.finfo(x.dtype).min)  # a shard may have no rows
    maximum = torch.cat([x, lowest]).amax(0)
    return maximum, torch.exp((x - maximum) / epsilon).sum(0)


def _sinkhorn_scores(logits: Tensor, maximum: Tensor, offset: Tensor, epsilon: float) -> Tensor:
    """(l − m) / ε + r, where the offsets r [K] are in units of log 2."""
    return (logits.to(maximum.dtype) - maximum) / epsilon + offset * math.log(2)


def sinkhorn_sums(logits: Tensor, maximum: Tensor, offset: Tensor, epsilon: float) -> Tensor:
    """Column sums [K] of the rows' softmax."""
    return torch.softmax(_sinkhorn_scores(logits, maximum, offset, epsilon), 1).sum(0)


def sinkhorn_codes(logits: Tensor, maximum: Tensor, offset: Tensor, epsilon: float) -> Tensor:
    """The rows' softmax [B, K]."""
    return torch.softmax(_sinkhorn_scores(logits, maximum, offset, epsilon), 1).to(logits.dtype)


def _anchored(logits: Tensor, center: Tensor | None, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (l − c − max) / T [..., K], the maximum of l − c, and Σ exp(scores). [...] each"""
    x = logits.to(temperature.dtype)
    x = x if center is None else x - center
    maximum = x.detach().amax(-1, keepdim=True)
    scores = (x - maximum) / temperature
    return scores, maximum.squeeze(-1), torch.exp(scores).sum(-1)


def soft_cross_entropy(student, teacher, center, student_temperature, teacher_temperature, *_):
    """−Σ_k softmax((t − c) / T_t)_k log_softmax(s / T_s)_k of every teacher with every student.

    From students [S, B, K] and teachers [T, B, K]: losses [T, S, B], and for each row of either the maximum
    and the sum of exponentials that its softmax has, [S, B, 2] and [T, B, 2].
    """
    w, student_maximum, student_sum = _anchored(student, None, student_temperature)
    z, teacher_maximum, teacher_sum = _anchored(teacher, center, teacher_temperature)
    q = torch.exp(z) / teacher_sum[..., None]
    losses = torch.log(student_sum) - torch.einsum("tbk,sbk->tsb", q, w)
    student_rows = torch.stack([student_maximum, student_sum], -1)
    return losses, student_rows, torch.stack([teacher_maximum, teacher_sum], -1)


def soft_cross_entropy_backward(
    grad, student, teacher, center, student_temperature, teacher_temperature, teacher_moves, *_
):
    """Gradients of students and teachers (these not rounded to 16 bits), each followed by Σ_k of its product
    with the score, which temperatures need."""
    w, _, student_sum = _anchored(student, None, student_temperature)
    z, _, teacher_sum = _anchored(teacher, center, teacher_temperature)
    p = torch.exp(w) / student_sum[..., None]
    q = torch.exp(z) / teacher_sum[..., None]
    to_w = grad.sum(0)[..., None] * p - torch.einsum("tsb,tbk->sbk", grad, q)
    to_student = (to_w / student_temperature).to(student.dtype), (to_w * w).sum(-1)
    if not teacher_moves:
        return *to_student, grad.new_zeros(0), grad.new_zeros(0)
    expected = (grad * torch.einsum("tbk,sbk->tsb", q, w)).sum(1)
    to_z = q * (expected[..., None] - torch.einsum("tsb,sbk->tbk", grad, w))
    return *to_student, to_z / teacher_temperature, (to_z * z).sum(-1)


def ema_update(averages: list[Tensor], parameters: list[Tensor], weight: float) -> None:
    """a += weight (p − a) in place, in the dtype of a."""
    for average, parameter in zip(averages, parameters):
        average.lerp_(parameter.to(average.dtype), weight)
