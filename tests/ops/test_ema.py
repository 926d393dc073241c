"""Averages of parameters: every pair of dtypes, and a decay that 16 bits would not notice."""

import copy

import pytest
import torch
from torch import nn

import genssl_fast
from genssl_fast.ops.ema import raw_ema_update

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((), (3,), (17, 5), (0, 4), (70000,))


def draw(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("of_parameters", DTYPES)
@pytest.mark.parametrize("of_averages", DTYPES[:2])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9999, 1.0])
def test_value(of_averages, of_parameters, decay):
    averages, parameters = draw(of_averages, 0), draw(of_parameters, 1)
    exact = [decay * a.double() + (1 - decay) * p.double() for a, p in zip(averages, parameters)]
    genssl_fast.ema_update(averages, parameters, decay)
    precision = torch.finfo(of_averages).eps
    for found, expected in zip(averages, exact):
        assert found.dtype == of_averages
        torch.testing.assert_close(found.double(), expected, rtol=4 * precision, atol=4 * precision)


def test_sixteen_bit_parameters_move_their_average():
    """At 0.9999 a step is a thousandth of a bf16 number's spacing; the average must move all the same."""
    parameters = [torch.full((40,), 1.5, dtype=torch.bfloat16), torch.full((7,), 2.0, dtype=torch.float16)]
    averages = [torch.full((40,), 1.0), torch.full((7,), 1.0)]
    for _ in range(500):
        genssl_fast.ema_update(averages, parameters, 0.9999)
    for average, parameter in zip(averages, parameters):
        exact = parameter.double() + (1.0 - parameter.double()) * 0.9999**500
        torch.testing.assert_close(average.double(), exact, rtol=0, atol=2e-6)
        stuck = torch.ones_like(parameter).lerp_(parameter, 1e-4)
        assert torch.equal(stuck, torch.ones_like(stuck))


def test_modules_and_views():
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(3, 2, 3)).to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    model.bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    before = [p.detach().clone() for p in average.parameters()]
    genssl_fast.ema_update(average, model, 0.75)
    for found, old, new in zip(average.parameters(), before, model.parameters()):
        torch.testing.assert_close(found, 0.75 * old + 0.25 * new.float())
        assert found.requires_grad
    column, parameter = torch.zeros(6, 2)[:, 0], torch.ones(6, dtype=torch.bfloat16)
    genssl_fast.ema_update([column], [parameter], 0.5)
    assert torch.equal(column, torch.full((6,), 0.5))
    genssl_fast.ema_update([torch.zeros(6)], [torch.ones(6, 2, dtype=torch.float16)[:, 1]], 0.5)


def test_threads_change_nothing():
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            averages = draw(torch.float32, 0)
            genssl_fast.ema_update(averages, draw(torch.bfloat16, 1), 0.99)
            results.append(averages)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for again in results for a, b in zip(again, results[0]))


def test_raw_operation():
    arguments = ([torch.zeros(3)], [torch.ones(3).bfloat16()], 0.5)
    torch.library.opcheck(raw_ema_update, arguments)
    with pytest.raises(RuntimeError, match=r"call it under torch\.no_grad"):
        raw_ema_update([torch.zeros(3)], [torch.ones(3).bfloat16().requires_grad_()], 0.5)


ERRORS = {
    "number": (([torch.zeros(2)], [], 0.9), ValueError, "parameters: expected 1, like averages, got 0"),
    "decay": (([torch.zeros(2)], [torch.zeros(2)], 2.0), ValueError, "decay: expected a number in .* 2.0"),
    "half average": (
        ([torch.zeros(2).half()], [torch.zeros(2).half()], 0.9),
        TypeError,
        r"averages\[0\]: expected dtype float32, float64, got torch.float16",
    ),
    "integers": (
        ([torch.zeros(2)], [torch.zeros(2, dtype=torch.int64)], 0.9),
        TypeError,
        r"parameters\[0\]: expected dtype",
    ),
    "shape": (
        ([torch.zeros(2)], [torch.zeros(3)], 0.9),
        ValueError,
        r"parameters\[0\]: expected shape that of averages\[0\] = \[2\], got \[3\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    arguments, exception, message = ERRORS[name]
    with pytest.raises(exception, match=message):
        genssl_fast.ema_update(*arguments)
