"""Contrastive losses in plain PyTorch, as their papers write them."""

import torch
from torch import Tensor
from torch.nn import functional

from genssl_fast.reference.contrast.similarity import PSI, logsumexp, widened

__all__ = ["clip_loss", "generalized_contrastive", "info_nce", "nt_xent", "siglip_loss", "sup_con"]


def unit(z: Tensor) -> Tensor:
    return z / z.norm(dim=-1, keepdim=True)


def same(ids: Tensor | None, count: int, device) -> Tensor:
    """Whether two samples have equal ids. [N, N]"""
    ids = torch.arange(count, device=device) if ids is None else ids
    return ids[:, None] == ids


def without(logits: Tensor, left_out: Tensor) -> Tensor:
    return logits.masked_fill(left_out, -torch.inf)


def squared_distances(z: Tensor) -> Tensor:
    """[N, N] from products, relative to the mean, as a matrix product finds them."""
    z = z - z.detach().mean(0)
    squares = z.square().sum(1)
    return squares[:, None] + squares - 2 * z @ z.mT


def nt_xent(z1, z2, temperature, *, normalize=True, epsilon=1.0, ids=None) -> Tensor:
    """The losses [2N] of both views; their positives count ε times in the denominator."""
    z1, z2, temperature = widened(z1, z2, torch.as_tensor(temperature, device=z1.device))
    z = torch.cat([z1, z2])
    z = unit(z) if normalize else z
    scale = 1 / (temperature.repeat(2)[:, None] if temperature.ndim else temperature)
    logits = z @ z.mT * scale
    count = len(z1)
    positive = torch.cat([logits.diagonal(count), logits.diagonal(-count)])
    negative = logsumexp(without(logits, same(ids, count, z.device).repeat(2, 2)), 1)
    if epsilon == 0:
        return negative - positive
    weight = torch.tensor(epsilon, dtype=z.dtype, device=z.device).log()
    return torch.logaddexp(weight + positive, negative) - positive


def info_nce(query, key, temperature, *, negatives=None, in_batch=True, normalize=True, ids=None) -> Tensor:
    """The losses [N] of queries among the keys of the batch, given negatives, or both."""
    query, key, negatives, temperature = widened(
        query, key, negatives, torch.as_tensor(temperature, device=query.device)
    )
    query, key = (unit(query), unit(key)) if normalize else (query, key)
    temperature = temperature[:, None] if temperature.ndim else temperature
    logits = [(query * key).sum(1, keepdim=True) / temperature]
    if in_batch:
        logits.append(without(query @ key.mT / temperature, same(ids, len(query), query.device)))
    if negatives is not None:
        negatives = unit(negatives) if normalize else negatives
        logits.append((query[:, None] * negatives).sum(-1) / temperature)
    logits = torch.cat(logits, 1)
    return logsumexp(logits, 1) - logits[:, 0]


def clip_loss(image, text, logit_scale, *, ids=None) -> Tensor:
    """The mean of both directions []."""
    both = (image, text), (text, image)
    losses = [info_nce(x, y, 1 / logit_scale, normalize=False, ids=ids) for x, y in both]
    return (losses[0].mean() + losses[1].mean()) / 2


def siglip_loss(image, text, logit_scale, bias, *, image_ids=None, text_ids=None) -> Tensor:
    """The sum over pairs divided by the number of images []."""
    image, text, logit_scale, bias = widened(image, text, logit_scale, bias)
    logits = logit_scale * image @ text.mT + bias
    together = same(None, len(image), image.device) if image_ids is None else image_ids[:, None] == text_ids
    return -functional.logsigmoid(torch.where(together, logits, -logits)).sum() / len(image)


def sup_con(z, labels, temperature) -> Tensor:
    """The losses [N], 0 where a row has no positive."""
    z, temperature = widened(z, temperature)
    logits = unit(z) @ unit(z).mT / temperature
    itself = same(None, len(z), z.device)
    positives = same(labels, len(z), z.device) & ~itself
    count = positives.sum(1)
    mean = torch.where(positives, logits, 0.0).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, logsumexp(without(logits, itself), 1) - mean, 0.0)


def generalized_contrastive(z, z_positive, phi, psi, temperature, margin, epsilon) -> Tensor:
    """Σ_i φ(Σ_{j≠i} ψ(d_i − d_ij)) [] for φ and ψ of the menu, or functions: ψ of (d_i − d_ij + margin)/τ."""
    z, z_positive, temperature, margin = widened(z, z_positive, temperature, margin)
    positive = (z - z_positive).square().sum(1)
    u = (positive[:, None] - squared_distances(z) + margin) / temperature
    itself = same(None, len(z), z.device)
    if psi == "exponential" and phi == "log":
        weight = torch.tensor(epsilon, dtype=z.dtype, device=z.device).log()
        return (temperature * torch.logaddexp(weight, logsumexp(without(u, itself), 1))).sum()
    menu = {"exponential": torch.exp, "linear": torch.clone} | {name: PSI[name][0] for name in PSI}
    values = psi if callable(psi) else menu[psi]
    sums = values(u).masked_fill(itself, 0.0).sum(1)
    if callable(phi):
        return phi(sums).sum()
    return (temperature * torch.log(epsilon + sums) if phi == "log" else sums).sum()
