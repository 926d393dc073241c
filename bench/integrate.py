"""Benchmarks of integrator steps and whole sampling loops."""

import math

import torch
from torch import Tensor

import genssl_fast
from bench import ceilings
from bench.baselines import compiled, lazily
from bench.case import OURS, Bar, Family, Workload
from bench.sampling import (
    CAPTURED,
    COMPILED_CHUNK,
    COMPILED_GRAPHS,
    digits_workload,
    euler_maruyama_workload,
)
from genssl_fast import CoefficientTable, reference

cases = Family("integrate")

SHAPE = (64, 3, 64, 64)
LARGE = (64, 4, 512, 512)
SEED = 1234
TIMESTEP = 500
STRIDE = {"DDIMScheduler": 20, "DDPMScheduler": 1}  # timesteps from one step to the next
RANDN = ("compiled with randn inside", "compiled with randn outside")


def alpha_bar(timestep: int) -> float:
    """Cumulative signal variance of DDPM's linear schedule of 1000 steps."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)[timestep].item()


def pair(shape, device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, device=device) for _ in range(2))


def step_reference(x, output, table):
    """`sampler_step` on row 0 as the reference computes it, in a given precision."""

    def run(dtype):
        x_, output_ = x.to(dtype), output.to(dtype)
        return reference.integrate.sampler_step(
            x_, output_, [], [], None, table.on(x.device), 0, None, table.num_states,
            math.nan, SEED, None, 0, None, 0,
        )  # fmt: skip

    return run


def diffusers_step(scheduler_name, x, output):
    def prepare():
        import diffusers

        scheduler = getattr(diffusers, scheduler_name)(num_train_timesteps=1000)
        scheduler.set_timesteps(1000 // STRIDE[scheduler_name])
        return lambda: scheduler.step(output, TIMESTEP, x, return_dict=False)

    return lazily(prepare)


def ddim(device, shape):
    x, output = pair(shape, device)
    now, after = alpha_bar(TIMESTEP), alpha_bar(TIMESTEP - STRIDE["DDIMScheduler"])
    d0, d1 = now**-0.5, -math.sqrt((1 - now) / now)
    a, e = math.sqrt(after), math.sqrt(1 - after)
    table = CoefficientTable.from_rows(
        [{"state": [0.0], "prediction": [a], "output": e, "denoise": (d0, d1), "clip": 1.0}]
    )

    def formula(x, output):
        prediction = (d0 * x + d1 * output).clamp(-1, 1)
        return a * prediction + e * output, prediction

    formula_compiled = compiled(formula)
    return Workload(
        providers={
            OURS: lambda: genssl_fast.sampler_step(x, output, table, 0),
            "eager": lambda: formula(x, output),
            "compiled": lambda: formula_compiled(x, output),
            "diffusers": diffusers_step("DDIMScheduler", x, output),
        },
        reference=step_reference(x, output, table),
        bytes=4 * x.nbytes,
        ceilings=ceilings.stream([x, output], 2),
    )


def ddpm(device, shape):
    x, output = pair(shape, device)
    now, after = alpha_bar(TIMESTEP), alpha_bar(TIMESTEP - STRIDE["DDPMScheduler"])
    alpha = now / after
    d0, d1 = now**-0.5, -math.sqrt((1 - now) / now)
    b = math.sqrt(after) * (1 - alpha) / (1 - now)
    a = math.sqrt(alpha) * (1 - after) / (1 - now)
    c = math.sqrt((1 - after) / (1 - now) * (1 - alpha))
    table = CoefficientTable.from_rows(
        [{"state": [a], "prediction": [b], "noise": c, "denoise": (d0, d1), "clip": 1.0}]
    )

    def formula(x, output, noise):
        prediction = (d0 * x + d1 * output).clamp(-1, 1)
        return a * x + b * prediction + c * noise, prediction

    inside = compiled(lambda x, output: formula(x, output, torch.randn_like(x)))
    outside = compiled(formula)
    competitors = {
        "eager": lambda: formula(x, output, torch.randn_like(x)),
        RANDN[0]: lambda: inside(x, output),
        RANDN[1]: lambda: outside(x, output, torch.randn_like(x)),
        "diffusers": diffusers_step("DDPMScheduler", x, output),
    }
    return Workload(
        providers={
            OURS: lambda: genssl_fast.sampler_step(x, output, table, 0, seed=SEED),
            **competitors,
        },
        reference=step_reference(x, output, table),
        bytes=4 * x.nbytes,
        ceilings=ceilings.stream([x, output], 2),
        own_values=tuple(competitors),
    )


@cases.case(
    "sampler_step", "DDIM with clipping, 64×3×64×64",
    cpu_bars=(Bar(3, ("diffusers",)), Bar(1.15, ("compiled",)), Bar(0.6)),
)  # fmt: skip
def ddim_small(device):
    return ddim(device, SHAPE)


@cases.case("sampler_step", "DDIM with clipping, 2²⁶ elements", cuda_bars=(Bar(0.8),), devices=("cuda",))
def ddim_large(device):
    return ddim(device, LARGE)


@cases.case("sampler_step", "DDPM with noise, 64×3×64×64", cpu_bars=(Bar(6, ("diffusers",)), Bar(5, RANDN)))
def ddpm_small(device):
    return ddpm(device, SHAPE)


@cases.case("sampler_step", "DDPM with noise, 2²⁶ elements", devices=("cuda",))
def ddpm_large(device):
    return ddpm(device, LARGE)


@cases.case("langevin_step", "per-sample norms, 64×3×64×64")
def langevin(device):
    x, score = pair(SHAPE, device)
    snr = 0.16

    def formula(x, score, noise):
        square = [v.flatten(1).square().sum(1) for v in (noise, score)]
        epsilon = (2 * snr**2 * square[0] / square[1])[:, None, None, None]
        return x + epsilon * score + (2 * epsilon).sqrt() * noise

    def run_reference(dtype):
        return reference.integrate.langevin_step(
            x.to(dtype), score.to(dtype), None, snr, math.nan, 1.0, SEED, None, 0, None, 0
        )

    inside = compiled(lambda x, score: formula(x, score, torch.randn_like(x)))
    outside = compiled(formula)
    competitors = {
        "eager": lambda: formula(x, score, torch.randn_like(x)),
        RANDN[0]: lambda: inside(x, score),
        RANDN[1]: lambda: outside(x, score, torch.randn_like(x)),
    }
    return Workload(
        providers={
            OURS: lambda: genssl_fast.langevin_step(x, score, snr=snr, seed=SEED),
            **competitors,
        },
        reference=run_reference,
        bytes=3 * x.nbytes,
        ceilings=ceilings.stream([x, score], 1),
        own_values=tuple(competitors),
    )


LOOPS = ("eager", "compiled", COMPILED_CHUNK)
GRAPHS = (COMPILED_GRAPHS, CAPTURED)


@cases.case(
    "film_mlp_sample", "100 Euler–Maruyama steps, 1024 samples of a 2-128×3-2 network",
    cpu_bars=(Bar(2.2, LOOPS),), cuda_bars=(Bar(5, GRAPHS),),
)  # fmt: skip
def euler_maruyama_batch(device):
    return euler_maruyama_workload(device, 1024)


@cases.case(
    "film_mlp_sample", "100 Euler–Maruyama steps, 1 sample of a 2-128×3-2 network",
    cpu_bars=(Bar(10, LOOPS),),
)  # fmt: skip
def euler_maruyama_single(device):
    return euler_maruyama_workload(device, 1)


@cases.case(
    "sample", "the demo's digits, 4096 samples, 50 DDIM steps, end to end",
    cpu_bars=(Bar(1.8, LOOPS),),
)  # fmt: skip
def digits(device):
    return digits_workload(device, 4096, 50)
