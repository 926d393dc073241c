"""Contrastive and self-supervised losses."""

from bench.case import Family
from bench.contrast import assignment, decorrelation

MODULES = (assignment, decorrelation)

cases = Family("contrast")
for module in MODULES:
    cases.extend(module.cases)
