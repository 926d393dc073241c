"""Compiled kernels for generative and self-supervised learning in PyTorch."""

from genssl_fast import reference
from genssl_fast._random import Stream, step_counter
from genssl_fast._version import __version__
from genssl_fast.ops.coefficient_table import CoefficientTable
from genssl_fast.ops.integrate import langevin_step, sampler_step
from genssl_fast.ops.random import random_normal, random_rademacher, random_uniform
from genssl_fast.ops.score import time_embedding

__all__ = [
    "CoefficientTable",
    "Stream",
    "__version__",
    "langevin_step",
    "random_normal",
    "random_rademacher",
    "random_uniform",
    "reference",
    "sampler_step",
    "step_counter",
    "time_embedding",
]
