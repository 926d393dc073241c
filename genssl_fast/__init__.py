"""Compiled kernels for generative and self-supervised learning in PyTorch."""

from genssl_fast import nn, reference
from genssl_fast._random import Stream, step_counter
from genssl_fast._version import __version__
from genssl_fast.ops.coefficient_table import CoefficientTable
from genssl_fast.ops.film_mlp_plan import FilmMLPPlan
from genssl_fast.ops.film_mlp_sample import film_mlp_sample
from genssl_fast.ops.integrate import langevin_step, sampler_step
from genssl_fast.ops.random import random_normal, random_rademacher, random_uniform
from genssl_fast.ops.score import FilmMLPWeights, film_mlp, time_embedding

__all__ = [
    "CoefficientTable",
    "FilmMLPPlan",
    "FilmMLPWeights",
    "Stream",
    "__version__",
    "film_mlp",
    "film_mlp_sample",
    "langevin_step",
    "nn",
    "random_normal",
    "random_rademacher",
    "random_uniform",
    "reference",
    "sampler_step",
    "step_counter",
    "time_embedding",
]
