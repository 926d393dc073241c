"""Collapse is measured, and said in words."""

import math

import pytest
import torch
from torch.nn import functional as F

from genssl_fast.ssl import CollapseWarning, check_collapse, collapse_report


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_an_even_spread_over_the_sphere_is_one():
    report = collapse_report(normal(4000, 16))
    assert report.spread == pytest.approx(1.0, abs=0.02)
    assert report.effective_rank == pytest.approx(16, abs=0.1)
    assert report.message is None


def test_figures_are_those_of_their_definitions():
    embeddings = normal(50, 6) @ normal(6, 6) + 2
    unit = F.normalize(embeddings.double(), dim=1)
    singular = torch.linalg.svdvals(unit - unit.mean(0))
    shares = singular / singular.sum()
    report = collapse_report(embeddings)
    assert report.spread == pytest.approx(float(unit.std(0).mean()) * math.sqrt(6), rel=1e-4)
    assert report.effective_rank == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-4)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.ones(20, 8), r"a point: their standard deviation is 0 of 1/sqrt\(8\)"),
        (1 + 1e-3 * normal(20, 8), "a point"),
        (normal(20, 1) * torch.ones(8), "a line: their effective rank is 1 of 8, expected at least 2"),
        (torch.full((20, 8), math.nan), "a point: their standard deviation is nan"),
        (torch.zeros(20, 8), "a point"),
    ],
)
def test_collapse_is_told(embeddings, message):
    with pytest.warns(CollapseWarning, match=f"^keys have collapsed to {message}"):
        check_collapse("keys", embeddings)


def test_one_embedding_is_refused():
    with pytest.raises(ValueError, match=r"^embeddings: expected \[N, D\] with N > 1, got \[1, 8\]"):
        collapse_report(torch.ones(1, 8))
