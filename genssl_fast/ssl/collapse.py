"""Whether embeddings have collapsed: to a point, or to few directions."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genssl_fast._checks import check, check_tensor

__all__ = ["CollapseReport", "CollapseWarning", "check_collapse", "collapse_report"]

# Below this share of an even spread, embeddings are one point; below this rank, they lie on a line.
LEAST_SPREAD, LEAST_RANK = 0.1, 2.0


class CollapseWarning(UserWarning):
    """Embeddings that say nothing, or next to nothing, of their inputs."""


class CollapseReport(NamedTuple):
    """How much of their space embeddings fill.

    ``spread`` is the standard deviation of normalized embeddings over samples, the mean over D entries, in
    units of 1/√D: 1 where they are spread evenly over the sphere, 0 where all are the same.
    ``effective_rank`` is the exponential of the entropy of the normalized singular values of the centred
    normalized embeddings: how many directions they vary in, from 1 to ``dimensions``.

    References:
        | Exploring Simple Siamese Representation Learning (Chen and He, 2021), https://arxiv.org/abs/2011.10566
        | The effective rank (Roy and Vetterli, 2007)
    """

    spread: float
    effective_rank: float
    dimensions: int

    @property
    def message(self) -> str | None:
        """What has collapsed, in words; None if nothing has."""
        if not self.spread >= LEAST_SPREAD:  # NaN, too
            return (
                f"collapsed to a point: their standard deviation is {self.spread:.2g} of "
                f"1/sqrt({self.dimensions}), expected at least {LEAST_SPREAD}"
            )
        if self.dimensions >= 2 * LEAST_RANK and not self.effective_rank >= LEAST_RANK:
            return (
                f"collapsed to a line: their effective rank is {self.effective_rank:.3g} of "
                f"{self.dimensions}, expected at least {LEAST_RANK:g}"
            )
        return None


@torch.no_grad()
def collapse_report(embeddings: Tensor) -> CollapseReport:
    """Measures embeddings [N, D].

    Raises:
        ValueError: If there are fewer than two, or they are no matrix.

    Example:
        >>> report = collapse_report(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)))
        >>> round(report.spread, 1), round(report.effective_rank)
        (1.0, 8)
        >>> collapse_report(torch.ones(10, 8)).message
        'collapsed to a point: their standard deviation is 0 of 1/sqrt(8), expected at least 0.1'
    """
    check_tensor("embeddings", embeddings)
    check(
        embeddings.ndim == 2 and len(embeddings) > 1,
        "embeddings",
        "[N, D] with N > 1",
        list(embeddings.shape),
    )
    unit = F.normalize(embeddings.float(), dim=1)
    centred = unit - unit.mean(0)
    spread = float(centred.square().sum(0).div(len(unit) - 1).sqrt().mean()) * math.sqrt(unit.shape[1])
    if not math.isfinite(spread):
        return CollapseReport(spread, spread, unit.shape[1])
    singular = torch.linalg.svdvals(centred)
    shares = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    return CollapseReport(spread, float(torch.special.entr(shares).sum().exp()), unit.shape[1])


def check_collapse(what: str, embeddings: Tensor) -> CollapseReport:
    """Measures embeddings [N, D], and warns if they have collapsed.

    Arguments:
        what: Which embeddings these are, for the warning.
        embeddings: [N, D].
    """
    report = collapse_report(embeddings)
    if report.message is not None:
        warnings.warn(f"{what} have {report.message}", CollapseWarning, stacklevel=2)
    return report
