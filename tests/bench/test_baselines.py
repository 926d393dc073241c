"""Competitors compute what the references compute: a faster wrong baseline would be no baseline."""

import math

import pytest
import torch

from bench import baselines, sampling
from bench.score import cast, network_flops, random_weights
from genssl_fast import CoefficientTable
from genssl_fast.ops.score import sinusoidal_frequencies
from genssl_fast.reference import integrate, score

TIME_DIM = 128


@pytest.fixture
def weights():
    return cast(random_weights(3, 20, 2, 12, "cpu"), torch.float64)


def embed(t, weights):
    frequencies = sinusoidal_frequencies(TIME_DIM, "dit", 1e4, t.device)
    return frequencies, score.time_embedding(t, frequencies, False, TIME_DIM)


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.linspace(0, 1, 5)])
def test_network_equals_the_reference(weights, t):
    x, t = torch.randn(5, 3, dtype=torch.float64), t.double()
    frequencies, embedding = embed(t, weights)
    plain = baselines.residual_network(x, *baselines.film(embedding, weights), weights)
    exact = score.film_mlp(x, t, frequencies, False, *weights, None)
    torch.testing.assert_close(plain, exact, rtol=1e-12, atol=1e-12)


def test_onednn_linear_equals_linear():
    x, weight, bias = torch.randn(7, 5), torch.randn(4, 5), torch.randn(4)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(baselines.onednn_linear(x, weight, bias), expected)


def euler_maruyama():
    return sampling.PlainEulerMaruyama, sampling.euler_maruyama_table(6)


def ddim():
    row = {"state": [0.4], "prediction": [0.5], "output": 0.3, "denoise": (1.1, -0.7), "clip": 1.0}
    return sampling.PlainDdim, CoefficientTable.from_rows([row | {"time": 0.1 * i} for i in range(6)])


@pytest.mark.parametrize("make", [euler_maruyama, ddim])
@pytest.mark.parametrize("chunk", [1, 4])
def test_loop_equals_the_reference_row_by_row(weights, make, chunk):
    kind, table = make()
    x, noise = torch.randn(5, 3).double(), torch.randn(6, 5, 3).double()
    result = kind(weights, table).run(x, noise, chunk=chunk)
    for i in range(len(table)):
        frequencies, _ = embed(table.time[i], weights)
        output = score.film_mlp(x, table.time[i], frequencies, False, *weights, None)
        x, _ = integrate.sampler_step(
            x,
            output,
            [],
            [],
            noise[i],
            table.coefficients,
            i,
            None,
            1,
            math.nan,
            0,
            None,
            0,
            None,
            0,
        )
    torch.testing.assert_close(result, x, rtol=1e-12, atol=1e-12)


def test_flops_count_two_per_weight_and_row(weights):
    body = 20 * 3 + 2 * 20 * 20 + 3 * 20
    head = 12 * TIME_DIM + 12 * 12 + 2 * 40 * 12
    assert network_flops(weights, 7, 2) == 2 * (7 * body + 2 * head)


def test_a_provider_is_prepared_once_and_only_when_called():
    prepared = []

    def prepare():
        prepared.append(1)
        return lambda: "result"

    provider = baselines.lazily(prepare)
    assert not prepared
    assert [provider(), provider()] == ["result", "result"]
    assert len(prepared) == 1
