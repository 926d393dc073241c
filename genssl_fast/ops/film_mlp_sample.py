"""A FiLM-MLP and a sampler in one loop."""

import math

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import forbid_derivatives
from genssl_fast._checks import check, check_dtype
from genssl_fast._library import define
from genssl_fast._random import Stream, check_first_sample, fold_seed, fold_step, step_counter
from genssl_fast.ops.coefficient_table import CoefficientTable
from genssl_fast.ops.integrate import COUNTER
from genssl_fast.ops.score import (
    NETWORK_ARGUMENTS,
    FilmMLPWeights,
    check_film_mlp,
    embedding_frequencies,
)

__all__ = ["film_mlp_sample"]

FIRST_STEP = step_counter(Stream.STEP, 0)

raw_film_mlp_sample = define(
    f"_film_mlp_sample(Tensor x, {NETWORK_ARGUMENTS}, Tensor coefficients, int num_states, "
    f"float clip, {COUNTER}, Tensor? noise) -> Tensor",
    reference=reference.integrate.film_mlp_sample,
    fake=lambda x, *args: x.new_empty(x.shape),
)
forbid_derivatives(raw_film_mlp_sample, "call genssl_fast.film_mlp and genssl_fast.sampler_step")


def check_sampling(x: Tensor, table: CoefficientTable, clip_denoised, first_sample, noise) -> None:
    """What describes the sampler, of :func:`film_mlp_sample` and of plans."""
    if not isinstance(table, CoefficientTable):
        raise TypeError(f"table: expected a CoefficientTable, got {type(table).__name__}")
    if clip_denoised is not None:
        check(clip_denoised > 0, "clip_denoised", "a positive bound or None", clip_denoised)
    check_first_sample(first_sample)
    if noise is not None:
        check_dtype("noise", noise, (x.dtype,))
        shape = [len(table), *x.shape]
        check(list(noise.shape) == shape, "noise", f"shape [N, B, D] = {shape}", list(noise.shape))
        check(noise.device == x.device, "noise", f"a tensor on {x.device}", f"one on {noise.device}")


def film_mlp_sample(
    x: Tensor,
    weights: FilmMLPWeights,
    table: CoefficientTable,
    *,
    labels: Tensor | None = None,
    kind: str = "sinusoidal",
    convention: str = "dit",
    max_period: float = 10_000.0,
    frequencies: Tensor | None = None,
    clip_denoised: float | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = FIRST_STEP,
    first_sample: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """Every step of a sampler whose model is a FiLM-MLP, as one operation.

    For each row *i* of the table: the network at the row's time, :func:`genssl_fast.film_mlp`, then
    the row's step, :func:`genssl_fast.sampler_step` with its history kept inside and the noise
    counter ``step + i``. In fp32 and fp64 on one CPU the result has the bits of that loop in Python,
    whatever the split of the batch; 16-bit floating point is kept in fp32 between the steps. No
    derivatives.

    Arguments:
        x: initial state [B, D], fp32, fp64, bf16 or fp16.
        weights, labels, kind, convention, max_period, frequencies: as for
            :func:`genssl_fast.film_mlp`.
        table: coefficients of the sampler and the times that the network is given.
        clip_denoised, seed, first_sample: as for :func:`genssl_fast.sampler_step`.
        step: counter of the first row's noise.
        noise: noise to use instead [N, B, D], in the dtype of ``x``.

    Returns:
        Final state [B, D] in the dtype of ``x``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message
            names it.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        https://arxiv.org/abs/2011.13456

    Example:
        >>> network = genssl_fast.nn.FilmMLP(2, hidden=32, blocks=2)
        >>> rows = [dict(state=[0.9], output=0.1, noise=0.2, time=time) for time in (1.0, 0.5)]
        >>> table = genssl_fast.CoefficientTable.from_rows(rows)
        >>> genssl_fast.film_mlp_sample(torch.randn(5, 2), network.weights(), table, seed=0).shape
        torch.Size([5, 2])
    """
    check_film_mlp(x, weights, labels)
    check_sampling(x, table, clip_denoised, first_sample, noise)
    seed = 0 if seed is None and (noise is not None or not any(table.draws_noise)) else seed
    time_dim = weights.w_embed1.shape[1]
    embedding = embedding_frequencies(time_dim, kind, convention, max_period, frequencies, x.device)
    with torch.no_grad():
        return raw_film_mlp_sample(
            x, *embedding, *weights, labels, table.on(x.device), table.num_states,
            math.nan if clip_denoised is None else float(clip_denoised),
            *fold_seed(seed, x.device), *fold_step(step, x.device), first_sample, noise,
        )  # fmt: skip
