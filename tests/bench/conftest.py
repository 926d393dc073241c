"""A case small enough to run the whole runner on."""

import pytest
import torch

from bench.case import OURS, Case, Workload


@pytest.fixture
def make_case():
    """Builds the case y = 2x with the given providers; `calls` records who ran."""

    def make(calls=None, bars=(), ceilings=None, own_values=(), **providers):
        x = torch.linspace(-1, 1, 64)
        named = {OURS: lambda x: x + x, "eager": lambda x: 2 * x} | providers

        def recorded(name):
            def run():
                if calls is not None:
                    calls.append(name)
                return named[name](x)

            return run

        def build(device):
            return Workload(
                providers={name: recorded(name) for name in named},
                reference=lambda dtype: 2 * x.to(dtype),
                bytes=2 * x.nbytes,
                ceilings=ceilings or {},
                own_values=own_values,
            )

        return Case("fake", "double", "64 numbers", build, cpu_bars=bars)

    return make
