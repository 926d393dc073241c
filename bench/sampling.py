"""Whole sampling loops: ours in one call against loops of PyTorch steps, eager and compiled."""

import math
from pathlib import Path

import torch
from torch import Tensor

import genssl_fast
from bench import ceilings
from bench.baselines import compiled, film, lazily, residual_network
from bench.case import OURS, Workload
from bench.score import cast, network_flops, random_weights
from genssl_fast import CoefficientTable, Stream, step_counter
from genssl_fast.diffusion.samplers import ddim
from genssl_fast.ops.random import NORMAL
from genssl_fast.ops.score import sinusoidal_frequencies
from genssl_fast.reference.random import random_values
from genssl_fast.reference.score import time_embedding
from genssl_fast.score_model import ScoreModel

CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "digits_vp.safetensors"
SEED = 1234
STEPS = 100
COMPILED_CHUNK = "compiled 5 steps a call"
COMPILED_GRAPHS = "compiled with a CUDA graph per step"
CAPTURED = "compiled in one CUDA graph"
COMPILE_MODE = {"cpu": "default", "cuda": "reduce-overhead"}
CHUNK = 5  # steps in one compiled graph: fewer calls to it; 10 gain 2 % more and compile for a minute


def euler_maruyama_table(steps: int) -> CoefficientTable:
    """Reverse VP-SDE (beta from 0.1 to 20) of a network that predicts the noise."""
    dt = (1 - 1e-3) / steps
    rows = []
    for i in range(steps):
        t = 1 - i * dt
        beta = 0.1 + 19.9 * t
        sigma = math.sqrt(-math.expm1(-(0.1 * t + 9.95 * t * t)))
        rows.append(
            {
                "state": [1 + beta * dt / 2],
                "output": -beta * dt / sigma,
                "noise": math.sqrt(beta * dt),
                "time": t,
            }
        )
    return CoefficientTable.from_rows(rows)


class PlainSampler:
    """The loop that a PyTorch user would write at best.

    γ and β of all times are computed once, in one batch, and so is the noise; a step is the network
    and the update of one kind of sampler, nothing more general.
    """

    noisy = False

    def __init__(self, weights, table: CoefficientTable, time_scale: float = 1.0):
        self.weights = weights
        self.times = (table.time * time_scale).to(weights.w_in)
        time_dim = weights.w_embed1.shape[1]
        self.frequencies = sinusoidal_frequencies(time_dim, "dit", 1e4, self.times.device)
        self.coefficients = self.select(table).to(weights.w_in)

    def select(self, table: CoefficientTable) -> Tensor:
        """The coefficients that `update` takes. [N, number of them]"""
        raise NotImplementedError

    def update(self, x: Tensor, output: Tensor, coefficients: Tensor, *noise: Tensor) -> Tensor:
        raise NotImplementedError

    def steps(self, x, gamma, beta, coefficients, *noise):
        """Some steps: all arguments but x hold one row for each."""
        for i in range(len(coefficients)):
            output = residual_network(x, gamma[i], beta[i], self.weights)
            x = self.update(x, output, coefficients[i], *(z[i] for z in noise))
        return x

    def run(self, x: Tensor, *noise: Tensor, steps=None, chunk: int = 1) -> Tensor:
        """The whole loop, `chunk` steps a call of `steps`, which may be compiled."""
        steps = steps or self.steps
        embedding = time_embedding(self.times, self.frequencies, False, self.weights.w_embed1.shape[1])
        rows = [*film(embedding, self.weights), self.coefficients]
        if self.noisy:
            rows += noise or [torch.randn(len(self.times), *x.shape, device=x.device)]
        for arguments in zip(*(row.split(chunk) for row in rows), strict=True):
            x = steps(x, *arguments)
        return x


class PlainEulerMaruyama(PlainSampler):
    noisy = True

    def select(self, table):
        return torch.stack([table.state[:, 0], table.output, table.noise], 1)

    def update(self, x, output, coefficients, noise):
        a, e, c = coefficients.unbind()
        return a * x + e * output + c * noise


class PlainDdim(PlainSampler):
    """Without noise, with the denoised prediction clipped to [-1, 1]."""

    def select(self, table):
        columns = [
            table.state[:, 0],
            table.prediction[:, 0],
            table.output,
            *table.denoise.unbind(1),
        ]
        return torch.stack(columns, 1)

    def update(self, x, output, coefficients):
        a, b, e, d0, d1 = coefficients.unbind()
        return a * x + b * (d0 * x + d1 * output).clamp(-1, 1) + e * output


def captured(run):
    """The whole loop recorded as one CUDA graph: no launch is left to Python."""

    def prepare():
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()

        def replay():
            graph.replay()
            return result

        return replay

    return lazily(prepare)


def plain_providers(plain: PlainSampler, draw_start, device: str) -> dict:
    """The loop in its forms: eager, a compiled step, and fewer launches than a step has."""
    one, fewer = compiled(plain.steps), compiled(plain.steps, COMPILE_MODE[device])
    providers = {
        "eager": lambda: plain.run(draw_start()),
        "compiled": lambda: plain.run(draw_start(), steps=one),
    }
    if device == "cuda":
        providers[COMPILED_GRAPHS] = lambda: plain.run(draw_start(), steps=fewer)
        providers[CAPTURED] = captured(lambda: plain.run(draw_start(), steps=one))
    else:
        providers[COMPILED_CHUNK] = lambda: plain.run(draw_start(), steps=fewer, chunk=CHUNK)
    return providers


def euler_maruyama_workload(device: str, batch: int) -> Workload:
    """100 Euler–Maruyama steps of a 2-128×3-2 network."""
    weights = random_weights(2, 128, 3, 128, device)
    table = euler_maruyama_table(STEPS)
    x = torch.randn(batch, 2, generator=torch.Generator().manual_seed(1)).to(device)

    def reference(dtype):
        noise = [
            random_values(NORMAL, x.shape, SEED, step_counter(Stream.STEP, i), 0, device)
            for i in range(STEPS)
        ]
        plain = PlainEulerMaruyama(cast(weights, dtype), table)
        return plain.run(x.to(dtype), torch.stack(noise).to(dtype))

    competitors = plain_providers(PlainEulerMaruyama(weights, table), lambda: x, device)
    flops = STEPS * network_flops(weights, batch, 1)
    return Workload(
        providers={
            OURS: lambda: genssl_fast.film_mlp_sample(x, weights, table, seed=SEED),
            **competitors,
        },
        reference=reference,
        flops=flops,
        ceilings=ceilings.micro_kernel(flops, 128, device) if batch > 1 else {},
        own_values=tuple(competitors),
        whole_loop=True,
    )


def digits_workload(device: str, count: int, steps: int) -> Workload:
    """The demo from end to end: noise from the prior, the loop, pixels in the range of the data."""
    model = ScoreModel.load(CHECKPOINT, device=device)
    weights, scale = model.network.weights(), model.config.scale
    shape = (count, weights.w_in.shape[1])
    parameterization = model.config.parameterization
    table = ddim(model.process, steps, parameterization=parameterization, clip_denoised=1.0)

    def reference(dtype):
        start = model.process.prior_sampling(shape, seed=SEED, device=device).to(dtype)
        plain = PlainDdim(cast(weights, dtype), table, model.network.time_scale)
        return scale.restore(plain.run(start)).view(count, *model.config.shape)

    plain = PlainDdim(weights, table, model.network.time_scale)
    loops = plain_providers(plain, lambda: torch.randn(shape, device=device), device)
    competitors = {name: lambda run=run: scale.restore(run()) for name, run in loops.items()}
    flops = steps * network_flops(weights, count, 1)
    return Workload(
        providers={OURS: lambda: model.sample(count, steps=steps, seed=SEED), **competitors},
        reference=reference,
        flops=flops,
        ceilings=ceilings.micro_kernel(flops, weights.w.shape[-1], device),
        own_values=tuple(competitors),
        whole_loop=True,
    )
