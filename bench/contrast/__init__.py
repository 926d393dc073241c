"""Contrastive and self-supervised losses."""

from bench.case import Family

MODULES = ()

cases = Family("contrast")
for module in MODULES:
    cases.extend(module.cases)
