"""Sampling with a FiLM-MLP in one operation against the same loop in Python."""

import math

import pytest
import torch

import genssl_fast
from genssl_fast import FilmMLPPlan, FilmMLPWeights, Stream, reference, step_counter
from genssl_fast._library import instruction_set
from genssl_fast.ops.film_mlp_sample import raw_film_mlp_sample
from genssl_fast.ops.score import sinusoidal_frequencies
from tests.battery import Battery, Case
from tests.ops.film_mlp_inputs import draw_weights, sampler_table

SEED = 11
TABLE = sampler_table()
needs_kernels = pytest.mark.skipif(instruction_set() is None, reason="compiled kernels are not built")


def network_inputs(dtype, size, generator):
    weights = draw_weights(3, 5, 2, 4, 6, 3, dtype=dtype, generator=generator)
    labels = torch.randint(0, 3, (size,), generator=generator)
    x, *noise = torch.randn(1 + len(TABLE), size, 3, generator=generator).to(dtype)
    return x, labels, torch.stack(noise), *weights


def without_noise(dtype, size, generator):
    x, labels, _, *weights = network_inputs(dtype, size, generator)
    return x, labels, None, *weights


def run(x, labels, noise, *weights, **options):
    weights = FilmMLPWeights(*weights)
    return genssl_fast.film_mlp_sample(x, weights, TABLE, labels=labels, seed=SEED, noise=noise, **options)


def raw_arguments(x, labels, noise, *weights):
    frequencies = sinusoidal_frequencies(weights[5].shape[1], "dit", 1e4, x.device)
    counter = (SEED, None, step_counter(Stream.STEP, 0), None, 0)
    coefficients, states = TABLE.on(x.device), TABLE.num_states
    return x, frequencies, False, *weights, labels, coefficients, states, math.nan, *counter, noise


def plain(*tensors):
    return reference.integrate.film_mlp_sample(*raw_arguments(*tensors))


def raw(*tensors):
    return raw_film_mlp_sample, raw_arguments(*tensors)


NETWORK = draw_weights(3, 5, 1, 4, 6)
X = torch.zeros(2, 3)


class TestFilmMLPSample(Battery):
    cases = {
        "given noise": Case(run, plain, network_inputs, (), raw),
        # Drawn noise is that of fp32 in every dtype: the fp64 reference differs from it.
        "drawn noise": Case(run, plain, without_noise, (), raw, dtypes=(torch.float32,)),
    }
    errors = {
        "table": (
            lambda: genssl_fast.film_mlp_sample(X, NETWORK, TABLE.coefficients),
            TypeError,
            "table: expected a CoefficientTable, got Tensor",
        ),
        "noise": (
            lambda: genssl_fast.film_mlp_sample(X, NETWORK, TABLE, noise=torch.zeros(2, 3)),
            ValueError,
            r"noise: expected shape \[N, B, D\] = \[5, 2, 3\], got \[2, 3\]",
        ),
        "clip": (
            lambda: genssl_fast.film_mlp_sample(X, NETWORK, TABLE, clip_denoised=-1.0),
            ValueError,
            "clip_denoised: expected a positive bound or None, got -1.0",
        ),
        "x": (
            lambda: genssl_fast.film_mlp_sample(torch.zeros(2, 4), NETWORK, TABLE),
            ValueError,
            "weights.w_in: expected shape",
        ),
        "step": (
            lambda: genssl_fast.film_mlp_sample(X, NETWORK, TABLE, step=-1),
            ValueError,
            "step: expected an integer in",
        ),
    }


def loop(x, weights, labels=None, clip_denoised=None, first_sample=0, noise=None):
    """The same by one operation for the network and one for the step."""
    states, predictions = (), ()
    for row in range(len(TABLE)):
        output = genssl_fast.film_mlp(x, TABLE.time[row].to(x.dtype), weights, labels=labels)
        x_next, prediction = genssl_fast.sampler_step(
            x, output, TABLE, row, history=(predictions, states), clip_denoised=clip_denoised,
            seed=SEED, step=step_counter(Stream.STEP, row), first_sample=first_sample,
            noise=None if noise is None else noise[row],
        )  # fmt: skip
        states, predictions, x = (x,), (prediction, *predictions)[:2], x_next
    return x


def large_batch(dtype=torch.float32, size=131):
    generator = torch.Generator().manual_seed(2)
    weights = draw_weights(7, 40, 2, 24, 10, 4, dtype=dtype, generator=generator)
    x = torch.randn(size, 7, generator=generator).to(dtype)
    return x, weights, torch.randint(0, 4, (size,), generator=generator)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", ["drawn noise", "given noise", "clip"])
def test_has_the_bits_of_the_loop(dtype, given):
    x, weights, labels = large_batch(dtype)
    options = {
        "drawn noise": {"first_sample": 1 << 33},
        "given noise": {"noise": torch.randn(len(TABLE), *x.shape, dtype=dtype)},
        "clip": {"clip_denoised": 0.3},
    }[given]
    for chosen in (labels, None):
        found = genssl_fast.film_mlp_sample(x, weights, TABLE, labels=chosen, seed=SEED, **options)
        assert torch.equal(found, loop(x, weights, chosen, **options))


@needs_kernels
def test_bits_do_not_depend_on_the_split():
    x, weights, labels = large_batch()
    whole = run(x, labels, None, *weights)
    for first, count in [(0, 1), (1, 2), (30, 3), (7, 50), (130, 1)]:
        part = slice(first, first + count)
        found = run(x[part], labels[part], None, *weights, first_sample=first)
        assert torch.equal(found, whole[part]), (first, count)


@needs_kernels
def test_plan_has_the_bits_of_the_operation():
    x, weights, labels = large_batch()
    plan = FilmMLPPlan(weights)
    for first in (0, 5):
        found = plan.sample(x, TABLE, labels=labels, seed=SEED, first_sample=first)
        assert torch.equal(found, run(x, labels, None, *weights, first_sample=first))


@needs_kernels
def test_more_classes_than_samples():
    generator = torch.Generator().manual_seed(3)
    weights = draw_weights(7, 40, 2, 24, 10, 1000, generator=generator)
    labels = torch.tensor([999, 3, 3, 500])
    x = torch.randn(4, 7, generator=generator)
    assert torch.equal(run(x, labels, None, *weights), loop(x, weights, labels))


def test_counters_may_be_tensors():
    x, weights, labels = large_batch(size=5)
    step = step_counter(Stream.STEP, 0)
    expected = run(x, labels, None, *weights)
    found = genssl_fast.film_mlp_sample(
        x, weights, TABLE, labels=labels, seed=torch.tensor(SEED), step=torch.tensor(step)
    )
    assert torch.equal(found, expected)


def test_input_is_kept_and_no_rows_return_it():
    x, weights, labels = large_batch(size=5)
    before = x.clone()
    empty = genssl_fast.CoefficientTable(TABLE.coefficients[:0], TABLE.num_states)
    result = genssl_fast.film_mlp_sample(x, weights, empty, labels=labels)
    assert torch.equal(result, x)
    assert result.data_ptr() != x.data_ptr()
    run(x, labels, None, *weights)
    assert torch.equal(x, before)


def test_raw_operation_refuses_to_lose_gradients():
    x, weights, labels = large_batch(size=2)
    with pytest.raises(RuntimeError, match="has no derivative"):
        raw_film_mlp_sample(*raw_arguments(x.requires_grad_(), labels, None, *weights))
