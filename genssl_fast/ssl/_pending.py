"""Stand-ins in plain PyTorch for operations of the contrast family that main does not have yet."""

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z1, z2, temperature, *, normalize=True, epsilon=1.0):
    z = torch.cat([z1, z2])
    z = F.normalize(z, dim=1) if normalize else z
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    targets = torch.arange(len(z)).roll(len(z1))
    return F.cross_entropy(logits, targets)


def info_nce(query, key, temperature, *, negatives=None, symmetric=False, normalize=True):
    if normalize:
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    logits = query @ key.T / temperature
    targets = torch.arange(len(query))
    loss = F.cross_entropy(logits, targets)
    return (loss + F.cross_entropy(logits.T, targets)) / 2 if symmetric else loss


def clip_loss(image, text, logit_scale, bias=None):
    logits = logit_scale * image @ text.T
    targets = torch.arange(len(image))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def siglip_loss(image, text, logit_scale, bias):
    logits = logit_scale * image @ text.T + bias
    signs = 2 * torch.eye(len(image)) - 1
    return -F.logsigmoid(signs * logits).sum() / len(image)


def moco_loss(query, key, queue, temperature):
    query, key = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1)
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue.clone().T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


def barlow_twins(z1, z2, *, weight=5e-3):
    first, second = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
    c = first.T @ second / len(z1)
    on = (1 - c.diagonal()).square().sum()
    return on + weight * (c.square().sum() - c.diagonal().square().sum())


def vicreg(z1, z2):
    loss = 25 * F.mse_loss(z1, z2)
    for z in (z1, z2):
        z = z - z.mean(0)
        loss = loss + 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2
        c = z.T @ z / (len(z) - 1)
        loss = loss + (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]
    return loss


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
