"""Feature decorrelation by D×D matrices: Barlow Twins and VICReg as their formulas are published."""

import torch
from torch import Tensor

from genssl_fast.reference.integrate import compute_dtype

__all__ = ["barlow_twins", "vicreg"]


def barlow_twins(z1: Tensor, z2: Tensor, weight: float, scale: float, eps: float) -> Tensor:
    """scale (Σ (1 − C_ii)² + weight Σ_{i≠j} C_ij²), C the correlations of two views [N, D]."""
    views = [z.to(compute_dtype(z.dtype)) for z in (z1, z2)]
    a, b = (centred(z) / torch.sqrt(z.var(0, correction=0) + eps) for z in views)
    correlation = a.T @ b / len(a)
    on_diagonal = (1 - correlation.diagonal()).square().sum()
    return scale * (on_diagonal + weight * off_diagonal(correlation).square().sum())


def vicreg(
    z1: Tensor, z2: Tensor, invariance: float, variance: float, covariance: float, gamma: float, eps: float
) -> Tensor:  # fmt: skip
    """invariance mean (z1 − z2)² + Σ_z (variance mean max(0, γ − σ) + covariance Σ_{i≠j} Cov_ij² / D)."""
    z1, z2 = (z.to(compute_dtype(z.dtype)) for z in (z1, z2))
    loss = invariance * (z1 - z2).square().mean()
    for z in (z1, z2):
        x = centred(z)
        hinge = torch.relu(gamma - torch.sqrt(z.var(0) + eps))
        squares = off_diagonal(x.T @ x / (len(x) - 1)).square().sum()
        loss = loss + variance * hinge.mean() + covariance * squares / z.shape[1]
    return loss


def centred(z: Tensor) -> Tensor:
    return z - z.mean(0)


def off_diagonal(matrix: Tensor) -> Tensor:
    """The matrix with zeros on its diagonal."""
    return matrix - torch.diag(matrix.diagonal())
