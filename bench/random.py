"""Benchmarks of the counter-based random numbers."""

import math

import torch

from bench import ceilings
from bench.baselines import lazily
from bench.case import OURS, Bar, Family, Workload
from genssl_fast import random_normal, random_rademacher, random_uniform
from genssl_fast.reference.random import random_values

cases = Family("random")

SHAPE = (1024, 4096)
LARGE = (1 << 14, 1 << 13)
SEED = 1234


def workload(device, shape, distribution, ours, **competitors) -> Workload:
    """Numbers of a shape; competitors draw others of the same distribution."""
    return Workload(
        providers={OURS: lambda: ours(shape, seed=SEED, device=device), **competitors},
        reference=lambda dtype: random_values(distribution, shape, SEED, 0, 0, device).to(dtype),
        bytes=4 * math.prod(shape),
        ceilings=ceilings.stream([], 1, shape) if device == "cpu" else ceilings.copy(4 * math.prod(shape)),
        own_values=tuple(competitors),
    )


def numpy_normal(shape):
    """NumPy's fastest bit generator, single precision, into a tensor's memory."""

    def prepare():
        import numpy

        generator = numpy.random.Generator(numpy.random.SFC64(SEED))

        def draw():
            out = torch.empty(shape)
            generator.standard_normal(out=out.numpy(), dtype=numpy.float32)
            return out

        return draw

    return lazily(prepare)


def compiled_draw(draw, shape, device):
    return torch.compile(lambda: draw(shape, device=device), fullgraph=True)


def random_signs(shape, device):
    return torch.randint(0, 2, shape, dtype=torch.float32, device=device).mul_(2).sub_(1)


def normal(device, shape):
    competitors = {
        "torch.randn": lambda: torch.randn(shape, device=device),
        "compiled torch.randn": compiled_draw(torch.randn, shape, device),
    }
    if device == "cpu":
        competitors["NumPy SFC64"] = numpy_normal(shape)
    return workload(device, shape, 1, random_normal, **competitors)


@cases.case("random_normal", "2²² numbers", cpu_bars=(Bar(5, ("torch.randn",)),))
def normal_4m(device):
    return normal(device, SHAPE)


@cases.case("random_normal", "2²⁷ numbers", devices=("cuda",))
def normal_128m(device):
    return normal(device, LARGE)


@cases.case("random_uniform", "2²² numbers")
def uniform_4m(device):
    return workload(
        device, SHAPE, 0, random_uniform,
        **{
            "torch.rand": lambda: torch.rand(SHAPE, device=device),
            "compiled torch.rand": compiled_draw(torch.rand, SHAPE, device),
        },
    )  # fmt: skip


@cases.case("random_rademacher", "2²² numbers")
def rademacher_4m(device):
    return workload(
        device, SHAPE, 2, random_rademacher,
        **{
            "torch.randint": lambda: random_signs(SHAPE, device),
            "compiled torch.randint": compiled_draw(random_signs, SHAPE, device),
        },
    )  # fmt: skip
