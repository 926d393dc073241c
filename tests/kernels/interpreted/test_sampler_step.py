"""The Triton sampler step against the reference in fp64, and what must be exactly so."""

import math

import pytest
import torch
from genssl_fast.kernels.integrate.sampler_step import sampler_step, sampler_step_out
from genssl_fast.kernels.random.random import random

from genssl_fast import reference
from tests.battery import assert_close_enough

COUNTER = (2**40 + 3, None, 2**24 + 5, None, 2**33)
SHAPES = [(1, 1), (5, 3, 7), (300, 2), (6, 64), (2, 3, 24, 16), (3, 1025)]


def table(num_states, num_predictions, rows=4):
    """Random coefficients; clips at 0.5, no noise in row 1."""
    generator = torch.Generator().manual_seed(num_states + 10 * num_predictions)
    width = num_states + num_predictions + 6
    coefficients = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    coefficients[:, -2] = 0.5
    coefficients[1, -5] = 0.0
    return coefficients


def arguments(
    shape, dtype, num_states=1, num_predictions=1, *, rows=None, index=0, noise=False, clip=math.nan
):
    generator = torch.Generator().manual_seed(0)

    def normal(count):
        return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]

    x, output, injected = normal(3)
    predictions, states = normal(max(num_predictions - 1, 0)), normal(num_states - 1)
    coefficients = table(num_states, num_predictions)
    return (
        x, output, predictions, states, injected if noise else None, coefficients, index, rows,
        num_states, clip, *COUNTER,
    )  # fmt: skip


def to_fp64(value):
    if isinstance(value, list):
        return [to_fp64(entry) for entry in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def check(args):
    found = sampler_step(*args)
    plain = reference.integrate.sampler_step(*args)
    exact = reference.integrate.sampler_step(*map(to_fp64, args))
    for name, ours, theirs, true in zip(("x_next", "prediction"), found, plain, exact):
        assert_close_enough(ours, theirs, true, 2, name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("index", [0, 1])
def test_shapes(shape, index):
    check(arguments(shape, torch.float32, index=index))
    rows = torch.arange(shape[0]) % 4
    check(arguments(shape, torch.float32, rows=rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("orders", [(1, 0), (1, 1), (2, 1), (3, 4)])
def test_history(dtype, orders):
    rows = torch.tensor([3, 0, 1, 1, 2])
    for chosen in (None, rows):
        check(arguments((5, 3, 7), dtype, *orders, rows=chosen, index=2, noise=True))
        # Noise drawn inside is fp32 whatever the dtype, which a bound for fp64 does not forgive.
        if dtype != torch.float64:
            check(arguments((5, 3, 7), dtype, *orders, rows=chosen, index=2))


def test_missing_history_counts_as_zero():
    full = list(arguments((5, 9), torch.float32, 3, 3))
    full[2], full[3] = full[2][:1], []
    check(full)


@pytest.mark.parametrize("clip", [0.1, math.inf])
def test_clip_overrides_the_table(clip):
    check(arguments((5, 9), torch.float32, clip=clip))


def test_noise_is_the_random_operation():
    args = list(arguments((3, 1030), torch.float32))
    inside = sampler_step(*args)
    args[4] = torch.empty(3, 1030)
    random(args[4], 1, *COUNTER)
    assert torch.equal(inside[0], sampler_step(*args)[0])


def test_tensors_override_integers():
    args = arguments((3, 10), torch.float32)
    seed, _, step, _, sample = COUNTER
    counter = (0, torch.tensor(seed), 0, torch.tensor(step), sample)
    assert torch.equal(sampler_step(*args)[0], sampler_step(*args[:-5], *counter)[0])


def test_rows_with_stride_and_outside_the_table():
    rows = torch.tensor([9, 2, -7, 2, 1, 2])[::2]
    inside = arguments((3, 10), torch.float32, rows=torch.tensor([3, 0, 1]))
    outside = arguments((3, 10), torch.float32, rows=rows)
    assert torch.equal(sampler_step(*inside)[0], sampler_step(*outside)[0])


def test_sample_does_not_depend_on_its_batch():
    args = list(arguments((9, 2, 5), torch.float32))
    whole = sampler_step(*args)
    args[:2] = [tensor[4:6] for tensor in args[:2]]
    args[-1] += 4
    for part, all_samples in zip(sampler_step(*args), whole):
        assert torch.equal(part, all_samples[4:6])


def test_out_may_be_x():
    args = arguments((3, 2, 5), torch.float32)
    expected = sampler_step(*args)
    prediction = sampler_step_out(*args, args[0])
    assert torch.equal(args[0], expected[0])
    assert torch.equal(prediction, expected[1])


def test_nan_reaches_both_outputs():
    args = arguments((2, 5), torch.float32)
    args[1][1, 2] = math.nan
    for result in sampler_step(*args):
        assert result.isnan().nonzero().tolist() == [[1, 2]]


def test_strides():
    args = list(arguments((3, 4, 5), torch.float32))
    expected = sampler_step(*args)
    args[0] = args[0].transpose(1, 2).contiguous().transpose(1, 2)
    args[1] = torch.cat([args[1], args[1]], 2)[..., :5]
    for found, wanted in zip(sampler_step(*args), expected):
        assert found.is_contiguous()
        assert torch.equal(found, wanted)


def test_empty():
    for shape in ((0, 3), (3, 0)):
        x_next, prediction = sampler_step(*arguments(shape, torch.float32))
        assert x_next.shape == prediction.shape == shape
