"""Benchmarks of blocks of score networks."""

import torch

import genssl_fast
from bench import ceilings
from bench.baselines import compiled, film, lazily, onednn_linear, residual_network
from bench.case import OURS, Bar, Family, Workload
from genssl_fast.ops.score import FilmMLPWeights

cases = Family("score")

TIME_DIM = 128
PLAIN = ("eager", "compiled", "compiled max-autotune")


def random_weights(dim, hidden, blocks, embed, device) -> FilmMLPWeights:
    """Weights of the scale that `torch.nn.Linear` starts with."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape):
        values = torch.rand(shape, generator=generator) * 2 - 1
        return (values / shape[-1] ** 0.5).to(device)

    return FilmMLPWeights(
        w_in=uniform(hidden, dim), b_in=uniform(hidden),
        w=uniform(blocks, hidden, hidden), c=uniform(blocks, hidden),
        w_film=uniform(blocks, 2 * hidden, embed),
        w_embed1=uniform(embed, TIME_DIM), w_embed2=uniform(embed, embed),
        w_out=uniform(dim, hidden), b_out=uniform(dim), class_embedding=None,
    )  # fmt: skip


def cast(weights: FilmMLPWeights, dtype) -> FilmMLPWeights:
    return FilmMLPWeights(*(None if tensor is None else tensor.to(dtype) for tensor in weights))


def network_flops(weights: FilmMLPWeights, batch: int, times: int) -> int:
    """Matrix multiplications of `batch` samples, and of the embeddings of `times` times."""
    body = weights.w_in.numel() + weights.w.numel() + weights.w_out.numel()
    head = weights.w_embed1.numel() + weights.w_embed2.numel() + weights.w_film.numel()
    return 2 * (batch * body + times * head)


def film_mlp_workload(device, batch, times, *, dim, hidden, blocks) -> Workload:
    weights = random_weights(dim, hidden, blocks, hidden, device)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, dim, generator=generator).to(device)
    t = (torch.rand(times, generator=generator) if times > 1 else torch.tensor(0.3)).to(device)

    def network(x, t, linear=torch.nn.functional.linear):
        embedding = genssl_fast.reference.score.time_embedding(t, frequencies, False, TIME_DIM)
        return residual_network(x, *film(embedding, weights), weights, linear)

    def reference(dtype):
        wide = cast(weights, dtype)
        return genssl_fast.reference.score.film_mlp(x.to(dtype), t.to(dtype), frequencies, False, *wide, None)

    frequencies = genssl_fast.ops.score.sinusoidal_frequencies(TIME_DIM, "dit", 1e4, x.device)
    network_compiled = compiled(network)
    network_tuned = compiled(network, "max-autotune-no-cudagraphs")
    competitors = {
        "eager": lambda: network(x, t),
        "compiled": lambda: network_compiled(x, t),
        "compiled max-autotune": lambda: network_tuned(x, t),
    }
    if device == "cpu":
        onednn = compiled(lambda x, t: network(x, t, onednn_linear))
        competitors["compiled over oneDNN"] = lambda: onednn(x, t)
    flops = network_flops(weights, batch, times)
    return Workload(
        providers={OURS: lambda: genssl_fast.film_mlp(x, t, weights), **competitors},
        reference=reference,
        flops=flops,
        ceilings=ceilings.micro_kernel(flops, hidden, device),
    )


FILM_MLP_BARS = (Bar(1.8, PLAIN), Bar(0.65))


@cases.case("film_mlp", "1024×64, width 256, 4 blocks", cpu_bars=FILM_MLP_BARS)
def film_mlp_shared_time(device):
    return film_mlp_workload(device, 1024, 1, dim=64, hidden=256, blocks=4)


@cases.case("film_mlp", "1024×64, width 256, 4 blocks, a time per sample")
def film_mlp_time_per_sample(device):
    return film_mlp_workload(device, 1024, 1024, dim=64, hidden=256, blocks=4)


@cases.case("time_embedding", "4096 times, 256 wide, diffusers' convention")
def time_embedding(device):
    dim = 256
    t = torch.rand(4096, generator=torch.Generator().manual_seed(0)).to(device) * 1000
    frequencies = genssl_fast.ops.score.sinusoidal_frequencies(dim, "diffusers", 1e4, t.device)

    def formula(t):
        angle = t[:, None] * frequencies
        return torch.cat([angle.sin(), angle.cos()], -1)

    def diffusers():
        from diffusers.models.embeddings import get_timestep_embedding

        return lambda: get_timestep_embedding(t, dim, downscale_freq_shift=1)

    formula_compiled = compiled(formula)
    return Workload(
        providers={
            OURS: lambda: genssl_fast.time_embedding(t, dim, convention="diffusers"),
            "eager": lambda: formula(t),
            "compiled": lambda: formula_compiled(t),
            "diffusers": lazily(diffusers),
        },
        reference=lambda dtype: genssl_fast.reference.score.time_embedding(
            t.to(dtype), frequencies, True, dim
        ),
        bytes=4 * t.numel() * (1 + dim),
        ceilings=ceilings.stream([], 1, (t.numel(), dim))
        if device == "cpu"
        else ceilings.copy(4 * t.numel() * dim),
    )
