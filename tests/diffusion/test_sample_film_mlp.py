"""Sampling from FilmMLP, whose whole loop is one operation."""

import pytest
import torch

from genssl_fast.diffusion import (
    SAMPLERS,
    VESDE,
    VPSDE,
    DDPMSchedule,
    LangevinCorrector,
    NonFiniteError,
    sample,
    unit_variance,
)
from genssl_fast.diffusion.loops import CompiledLoop
from genssl_fast.nn import FilmMLP


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = FilmMLP(shape=(1, 3, 2), hidden=24, blocks=2, time_scale=1000.0, num_classes=3)
    with torch.no_grad():
        for parameter in (network.w_out, network.b_out, network.b_in, network.c):
            parameter.normal_(std=0.2)
    return network


def options_of(name):
    return {
        "annealed_langevin": {"steps_per_level": 2},
        "ddim": {"eta": 0.5},
    }.get(name, {})


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 2, 0, 1])])
def test_compiled_and_eager_loops_agree_bit_for_bit(network, name, labels):
    options = {"shape": (5, 1, 3, 2), "sampler": name, "steps": 6, "seed": 0, "labels": labels}
    options |= {"clip_denoised": 1.5, "first_sample": 3, **options_of(name)}
    compiled = sample(network, VPSDE(), backend="compiled", **options)
    assert torch.equal(compiled, sample(network, VPSDE(), backend="eager", **options))
    assert torch.equal(compiled, sample(network, VPSDE(), **options))
    assert compiled.std() > 0


@pytest.mark.parametrize("process", [VPSDE(), VESDE(), DDPMSchedule()], ids=repr)
def test_samples_do_not_depend_on_the_batch(network, process):
    labels = torch.arange(40) % 3
    options = {"sampler": "ddpm", "steps": 5, "seed": 0}
    options |= {"parameterization": "flow", "input_scale": unit_variance}
    whole = sample(network, process, shape=(40, 1, 3, 2), labels=labels, **options)
    for batch in (1, 7, 16):
        split = sample(network, process, shape=(40, 1, 3, 2), labels=labels, batch=batch, **options)
        assert torch.equal(split, whole)
    options |= {"labels": labels[30:], "first_sample": 30}
    assert torch.equal(sample(network, process, shape=(10, 1, 3, 2), **options), whole[30:])


def test_the_compiled_loop_is_chosen_by_itself(network, monkeypatch):
    calls = []
    loop = CompiledLoop.__call__
    monkeypatch.setattr(CompiledLoop, "__call__", lambda *args: calls.append(1) or loop(*args))
    options = {"shape": (2, 1, 3, 2), "steps": 2}
    sample(network, VPSDE(), **options)
    assert len(calls) == 1
    sample(network, VPSDE(), backend="eager", **options)
    sample(network, VPSDE(), corrector=LangevinCorrector(), **options)
    assert len(calls) == 1


def test_callback_of_the_compiled_loop(network):
    calls = []
    options = {"shape": (5, 1, 3, 2), "steps": 4, "batch": 2}
    options["callback"] = lambda done, total, x: calls.append((done, total, tuple(x.shape)))
    sample(network, VPSDE(), **options)
    assert calls == [(4, 12, (2, 1, 3, 2)), (8, 12, (2, 1, 3, 2)), (12, 12, (1, 1, 3, 2))]


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_nan_is_reported_with_its_step(network, backend, clip):
    with torch.no_grad():
        network.b_out[2] = torch.nan
    options = {"shape": (4, 1, 3, 2), "steps": 3, "batch": 2, "clip_denoised": clip}
    message = r"output is not finite at step 1 of 3 \(row 0, time 1\) for samples 0 to 1"
    with pytest.raises(NonFiniteError, match=message):
        sample(network, VPSDE(), backend=backend, check_finite=True, **options)
    assert sample(network, VPSDE(), backend=backend, **options).isnan().any()


def test_dtype_is_that_of_the_network(network):
    options = {"shape": (3, 1, 3, 2), "steps": 3, "seed": 0, "clip_denoised": 2.0}
    double = sample(network.double(), VPSDE(), **options)
    assert double.dtype == torch.float64
    single = sample(network.float(), VPSDE(), **options)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_samples_on_the_gpu_are_those_on_the_cpu(network, backend):
    options = {"shape": (50, 1, 3, 2), "sampler": "ddpm", "steps": 20, "seed": 0}
    options |= {"clip_denoised": 1.0, "labels": torch.arange(50) % 3}
    expected = sample(network, VPSDE(), **options)
    got = sample(network.cuda(), VPSDE(), backend=backend, **options)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_errors_name_the_argument(network):
    with pytest.raises(ValueError, match=r"shape: expected \[count, \*\[1, 3, 2\]\] .* got \[4, 6\]"):
        sample(network, VPSDE(), shape=(4, 6))
    options = {"shape": (4, 1, 3, 2), "corrector": LangevinCorrector()}
    with pytest.raises(ValueError, match="backend: expected a FilmMLP without a corrector"):
        sample(network, VPSDE(), backend="compiled", **options)
