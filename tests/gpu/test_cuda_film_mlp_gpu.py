"""The CUDA C++ FiLM-MLP on a GPU: the error contract, bits, streams, CUDA graphs, no synchronisation."""

import contextlib

import pytest
import torch

import genssl_fast
from genssl_fast import FilmMLPWeights
from tests.battery import assert_close_enough
from tests.ops.film_mlp_inputs import draw_weights, sampler_table

pytestmark = pytest.mark.gpu

# dim, hidden, blocks, embed, time_dim; resident weights, streamed ones, activations in the workspace.
SHAPES = [
    (2, 128, 3, 128, 128),
    (1, 1, 1, 1, 1),
    (3, 37, 2, 19, 11),
    (64, 256, 4, 256, 128),
    (5, 512, 2, 64, 32),
    (784, 96, 2, 64, 32),
    (9, 4099, 1, 16, 8),
    (3, 20, 0, 8, 6),
]
BATCHES = [1, 7, 1024, 5000]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def draw(shape, batch, dtype, classes=None):
    """x [B, D], times [B], labels [B] and weights on the GPU."""
    generator = torch.Generator().manual_seed(sum(shape) + batch)
    weights = draw_weights(*shape, classes, dtype=dtype, generator=generator)
    weights = FilmMLPWeights(*(w if w is None else w.cuda() for w in weights))
    x = torch.randn(batch, shape[0], generator=generator).to(dtype).cuda()
    times = torch.rand(batch, generator=generator).cuda()
    labels = torch.randint(classes, (batch,), generator=generator).cuda() if classes else None
    return x, times, labels, weights


def to(values, dtype):
    return FilmMLPWeights(*(v if v is None else v.to(dtype) for v in values))


def plain_film_mlp(x, t, weights, labels, frequencies):
    """The reference in the dtype of x, without TF32."""
    assert not torch.backends.cuda.matmul.allow_tf32
    return genssl_fast.reference.score.film_mlp(x, t, frequencies, False, *weights, labels)


def frequencies_of(shape):
    half = shape[4] // 2
    exponent = torch.arange(half, dtype=torch.float64) / max(half, 1)
    return torch.exp(-9.2 * exponent).float().cuda()


@contextlib.contextmanager
def synchronisation_forbidden():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("per_sample", [False, True], ids=["one_time", "times"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_film_mlp_within_error_contract(shape, batch, dtype, per_sample):
    if shape[1] > 1000 and batch > 1024:
        pytest.skip("covered by the smaller widths")
    x, times, labels, weights = draw(shape, batch, dtype, 5)
    t, frequencies = times if per_sample else times[0], frequencies_of(shape)
    ours = genssl_fast.film_mlp(x, t, weights, labels=labels, frequencies=frequencies)
    plain = plain_film_mlp(x, t, weights, labels, frequencies)
    exact = plain_film_mlp(x.double(), t.double(), to(weights, torch.float64), labels, frequencies)
    assert_close_enough(ours, plain, exact, 2, "film_mlp")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_film_mlp_sample_equals_the_loop(shape, batch, dtype):
    x, _, labels, weights = draw(shape, batch, dtype, 5)
    table, options = sampler_table(4), {"labels": labels, "seed": 2**63 + 1, "first_sample": 9}
    ours = genssl_fast.film_mlp_sample(x, weights, table, **options)
    on_cpu = genssl_fast.film_mlp_sample(
        x.cpu(), FilmMLPWeights(*(w.cpu() for w in weights)), table,
        labels=labels.cpu(), seed=2**63 + 1, first_sample=9,
    )  # fmt: skip
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4}.get(dtype, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(ours.cpu(), on_cpu, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_bits_do_not_depend_on_the_place_in_the_batch(shape):
    x, times, labels, weights = draw(shape, 6000, torch.float32, 3)
    table = sampler_table(3)

    def results(begin, end):
        part = slice(begin, end)
        options = {"labels": labels[part]}
        return (
            genssl_fast.film_mlp(x[part], times[part], weights, **options),
            genssl_fast.film_mlp(x[part], times[0], weights, **options),
            genssl_fast.film_mlp_sample(x[part], weights, table, seed=1, first_sample=begin, **options),
        )

    whole = results(0, 6000)
    for begin, end in [(0, 1), (17, 18), (1000, 2024), (333, 4777)]:
        for part, expected in zip(results(begin, end), whole):
            assert torch.equal(part, expected[begin:end])


def test_injected_noise_and_seed_on_the_device():
    x, _, _, weights = draw(SHAPES[0], 100, torch.float32)
    table = sampler_table(3)
    step = genssl_fast.step_counter(genssl_fast.Stream.STEP, 0)
    noise = torch.stack(
        [genssl_fast.random_normal(x.shape, seed=5, step=step + i, device="cuda") for i in range(3)]
    )
    seed = torch.tensor(5, device="cuda")
    drawn = genssl_fast.film_mlp_sample(x, weights, table, seed=5)
    assert torch.equal(drawn, genssl_fast.film_mlp_sample(x, weights, table, seed=seed))
    injected = genssl_fast.film_mlp_sample(x, weights, table, noise=noise)
    torch.testing.assert_close(drawn, injected, rtol=1e-5, atol=1e-5)


def test_cuda_graph_draws_fresh_noise_for_a_new_seed():
    x, times, _, weights = draw(SHAPES[0], 1024, torch.float32)
    table, seed = sampler_table(5), torch.tensor(1, device="cuda")

    def both():
        with synchronisation_forbidden():
            return (
                genssl_fast.film_mlp(x, times, weights),
                genssl_fast.film_mlp_sample(x, weights, table, seed=seed),
            )

    both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    for value in (1, 2):
        seed.fill_(value)
        graph.replay()
        for got, expected in zip(captured, both()):
            assert torch.equal(got, expected)


def test_current_stream_is_used():
    x, times, _, weights = draw(SHAPES[3], 1024, torch.float32)
    expected = genssl_fast.film_mlp(x, times, weights)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = x.clone()
        got = genssl_fast.film_mlp(late, times, weights)
        assert not stream.query()
    stream.synchronize()
    assert torch.equal(got, expected)


def test_memory_of_per_sample_times_is_bounded():
    x, _, _, weights = draw((2, 64, 2, 32, 16), 200_000, torch.float32)
    times = torch.rand(200_000, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = genssl_fast.film_mlp(x, times, weights)
    assert torch.cuda.max_memory_allocated() - before < 40 * 2**20
    assert torch.equal(got[-1:], genssl_fast.film_mlp(x[-1:], times[-1:], weights))
