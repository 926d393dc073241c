"""One row of a coefficient table: the battery, rows per sample, noise addresses, bad input."""

import math

import pytest
import torch

import genssl_fast
from genssl_fast import CoefficientTable, Stream, reference, step_counter
from genssl_fast.ops.integrate import raw_sampler_step
from tests.battery import Battery, Case

TABLE = CoefficientTable.from_rows(
    [
        dict(state=[0.9, -0.2], prediction=[0.3, 0.2, 0.1], denoise=[1.1, -0.5], clip=1.0, noise=0.5),
        dict(state=[0.5], prediction=[0.7], output=-0.25, denoise=[1.2, -0.8], time=0.5),
        dict(state=[1.1], output=0.3, noise=0.1),
    ]
)
NO_NOISE = CoefficientTable.from_rows(
    [dict(state=[0.8], prediction=[0.4], output=0.1, denoise=[1.5, -1.0], clip=1.0)]
)


def tensors_like_x(count):
    """inputs: ``count`` tensors [B, 3, 5] of unit normals."""

    def inputs(dtype, size, generator):
        drawn = [torch.randn(size, 3, 5, generator=generator) for _ in range(count)]
        return tuple(t.to(dtype) for t in drawn)

    return inputs


def with_rows(dtype, size, generator):
    rows = torch.randint(0, len(TABLE), (size,), generator=generator)
    return (*tensors_like_x(6)(dtype, size, generator), rows)


def drawn(x):
    """The step's own noise: test_random.py compares it with the reference's, which is 4 ulp away."""
    return genssl_fast.random_normal(x.shape, seed=3, step=7, first_sample=11, device=x.device)


def plain(x, output, history, noise, table, index, *, clip=math.nan):
    index, rows = (0, index) if isinstance(index, torch.Tensor) else (index, None)
    return reference.integrate.sampler_step(
        x, output, *history, noise, table.on(x.device), index, rows, table.num_states,
        clip, 0, None, 0, None, 0,
    )  # fmt: skip


def raw_arguments(x, output):
    return raw_sampler_step, (
        x, output, [x.clone()], [output.clone()], None, TABLE.coefficients, 0, None,
        TABLE.num_states, math.nan, 3, None, 4, None, 5,
    )  # fmt: skip


class TestSamplerStep(Battery):
    cases = {
        "noise_inside": Case(
            lambda x, o: genssl_fast.sampler_step(x, o, TABLE, 0, seed=3, step=7, first_sample=11),
            lambda x, o: plain(x, o, ([], []), drawn(x), TABLE, 0),
            tensors_like_x(2),
            differentiable=(0, 1),
            raw=raw_arguments,
        ),
        "rows_and_history": Case(
            lambda x, o, p1, p2, s1, z, rows: genssl_fast.sampler_step(
                x, o, TABLE, rows, history=((p1, p2), (s1,)), noise=z
            ),
            lambda x, o, p1, p2, s1, z, rows: plain(x, o, ([p1, p2], [s1]), z, TABLE, rows),
            with_rows,
            differentiable=(0, 1, 2, 3, 4, 5),
        ),
        "clip_given": Case(
            lambda x, o: genssl_fast.sampler_step(x, o, NO_NOISE, 0, clip_denoised=0.3),
            lambda x, o: plain(x, o, ([], []), None, NO_NOISE, 0, clip=0.3),
            tensors_like_x(2),
            differentiable=(0, 1),
        ),
    }
    errors = {
        "dtype": (
            lambda: genssl_fast.sampler_step(torch.zeros(2, 3).int(), None, TABLE, 0),
            TypeError,
            "x: expected dtype float32.*got torch.int32",
        ),
        "shape": (
            lambda: genssl_fast.sampler_step(torch.zeros(2, 3), torch.zeros(2, 4), TABLE, 0),
            ValueError,
            r"model_output: expected the shape of x, \[2, 3\], got \[2, 4\]",
        ),
        "mixed dtype": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2).double(), TABLE, 0),
            TypeError,
            "model_output: expected the dtype of x",
        ),
        "mixed device": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2, device="meta"), TABLE, 0),
            ValueError,
            "model_output: expected the device of x, cpu, got meta",
        ),
        "row": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), TABLE, 3),
            ValueError,
            "index: expected a row of the table, 0 to 2, got 3",
        ),
        "fractional row": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), TABLE, 0.5),
            ValueError,
            "index: expected a row of the table, 0 to 2, got 0.5",
        ),
        "negative row": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), TABLE, -1),
            ValueError,
            "index: expected a row",
        ),
        "rows": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), TABLE, torch.tensor([0, 5])),
            ValueError,
            "index: expected rows of the table, 0 to 2, got 0 to 5",
        ),
        "row count": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), TABLE, torch.tensor([0])),
            ValueError,
            r"index: expected shape \[B\] = \[2\], got \[1\]",
        ),
        "table": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), [[1.0]], 0),
            TypeError,
            "table: expected a CoefficientTable, got list",
        ),
        "clip": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), TABLE, 0, clip_denoised=-1.0),
            ValueError,
            "clip_denoised: expected a positive bound",
        ),
        "seed": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), TABLE, 0, seed=1.5),
            TypeError,
            "seed: expected an int",
        ),
        "step": (
            lambda: genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), TABLE, 0, step=-1),
            ValueError,
            "step: expected an integer in",
        ),
        "history": (
            lambda: genssl_fast.sampler_step(
                torch.zeros(2), torch.zeros(2), TABLE, 0, history=((torch.zeros(3),), ())
            ),
            ValueError,
            r"history predictions\[0\]: expected the shape of x",
        ),
        "out": (
            lambda: genssl_fast.sampler_step(
                torch.zeros(2, 2), torch.zeros(2, 2), TABLE, 0, out=torch.zeros(2, 2).t()
            ),
            ValueError,
            "out: expected a contiguous tensor",
        ),
    }


def test_rows_per_sample_equal_single_rows():
    x, output = torch.randn(6, 10), torch.randn(6, 10)
    rows = torch.tensor([2, 0, 1, 0, 2, 1])
    together, predictions = genssl_fast.sampler_step(x, output, TABLE, rows, seed=5, step=9)
    for b, row in enumerate(rows.tolist()):
        alone, prediction = genssl_fast.sampler_step(
            x[b : b + 1], output[b : b + 1], TABLE, row, seed=5, step=9, first_sample=b
        )
        assert torch.equal(alone[0], together[b])
        assert torch.equal(prediction[0], predictions[b])


@pytest.mark.parametrize("elements", [1, 3, 16, 64, 1000])
def test_noise_does_not_depend_on_the_batch(elements):
    x, output = torch.randn(9, elements), torch.randn(9, elements)
    whole, _ = genssl_fast.sampler_step(x, output, TABLE, 0, seed=1, first_sample=2**33)
    parts = [
        genssl_fast.sampler_step(x[a:b], output[a:b], TABLE, 0, seed=1, first_sample=2**33 + a)[0]
        for a, b in ((0, 1), (1, 4), (4, 9))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_noise_is_the_library_s():
    x = torch.zeros(4, 7)
    step = step_counter(Stream.STEP, 3)
    drawn = genssl_fast.random_normal((4, 7), seed=2, step=step, first_sample=1)
    stepped, _ = genssl_fast.sampler_step(x, x, TABLE, 2, seed=2, step=step, first_sample=1)
    torch.testing.assert_close(stepped, 0.1 * drawn, rtol=0, atol=1e-7)


def test_in_place_and_missing_history():
    x, output = torch.randn(5, 33), torch.randn(5, 33)
    expected, prediction = genssl_fast.sampler_step(x, output, TABLE, 1)
    found, found_prediction = genssl_fast.sampler_step(x, output, TABLE, 1, out=x)
    assert found is x
    assert torch.equal(found, expected)
    assert torch.equal(found_prediction, prediction)


def test_seed_tensor_equals_integer():
    x, output = torch.randn(3, 4), torch.randn(3, 4)
    seed = -(2**63) + 12345
    expected = genssl_fast.sampler_step(x, output, TABLE, 0, seed=seed % 2**64, step=77)
    found = genssl_fast.sampler_step(x, output, TABLE, 0, seed=torch.tensor(seed), step=torch.tensor([77]))
    assert torch.equal(expected[0], found[0])


def test_zero_noise_row_needs_no_seed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    genssl_fast.sampler_step(torch.zeros(2), torch.zeros(2), NO_NOISE, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_out_has_no_derivative():
    x = torch.zeros(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"call genssl_fast\.sampler_step without out"):
        genssl_fast.sampler_step(x, torch.zeros(2), TABLE, 0, out=torch.empty(2))


def test_table_from_rows_pads_and_names():
    assert repr(TABLE) == "CoefficientTable(rows=3, states=2, predictions=3)"
    assert TABLE.state.tolist() == [[0.9, -0.2], [0.5, 0.0], [1.1, 0.0]]
    assert TABLE.prediction[1].tolist() == [0.7, 0.0, 0.0]
    assert TABLE.clip.tolist() == [1.0, math.inf, math.inf]
    with pytest.raises(ValueError, match=r"rows\[0\]: expected keys"):
        CoefficientTable.from_rows([dict(states=[1.0])])
    with pytest.raises(ValueError, match="num_states: expected from 1 to 1"):
        CoefficientTable(torch.zeros(2, 7), 2)
