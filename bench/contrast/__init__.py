"""Contrastive and self-supervised losses."""

from bench.case import Family
from bench.contrast import assignment, decorrelation, similarity, transport

MODULES = (similarity, decorrelation, assignment, transport)

cases = Family("contrast")
for module in MODULES:
    cases.extend(module.cases)
