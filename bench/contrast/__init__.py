"""Contrastive and self-supervised losses."""

from bench.case import Family
from bench.contrast import assignment, decorrelation, similarity

MODULES = (similarity, decorrelation, assignment)

cases = Family("contrast")
for module in MODULES:
    cases.extend(module.cases)
