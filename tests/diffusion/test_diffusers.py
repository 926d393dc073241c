"""Step-by-step parity with diffusers' DDPMScheduler and DDIMScheduler."""

import pytest
import torch

from genssl_fast import sampler_step
from genssl_fast.diffusion import DDPMSchedule, ddim, ddpm

diffusers = pytest.importorskip("diffusers")

PREDICTION_TYPES = {"noise": "epsilon", "denoised": "sample", "velocity": "v_prediction"}


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=generator)


def peer_scheduler(kind, schedule, steps, **config):
    """Their scheduler on our signal levels: theirs are accumulated in fp32."""
    peer = kind(**config)
    torch.testing.assert_close(peer.alphas_cumprod.double(), schedule.alphas_cumprod, rtol=2e-5, atol=1e-9)
    peer.alphas_cumprod = schedule.alphas_cumprod
    if not config.get("set_alpha_to_one", True):
        peer.final_alpha_cumprod = schedule.alphas_cumprod[0]
    peer.set_timesteps(steps)
    return peer


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 10, 30, 1000])
def test_times(spacing, steps):
    peer = diffusers.DDPMScheduler(timestep_spacing=spacing)
    peer.set_timesteps(steps)
    assert DDPMSchedule().times(steps, spacing).tolist() == peer.timesteps.tolist()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_betas(schedule):
    name = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    betas = diffusers.DDPMScheduler(beta_schedule=name).betas
    torch.testing.assert_close(DDPMSchedule(schedule).betas.float(), betas, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("parameterization", PREDICTION_TYPES)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(states, spacing, parameterization, clip, variance):
    schedule = DDPMSchedule()
    peer = peer_scheduler(
        diffusers.DDPMScheduler,
        schedule,
        10,
        timestep_spacing=spacing,
        prediction_type=PREDICTION_TYPES[parameterization],
        clip_sample=clip is not None,
        variance_type=variance,
    )
    table = ddpm(
        schedule,
        10,
        spacing=spacing,
        parameterization=parameterization,
        clip_denoised=clip,
        variance=variance,
    )
    x, output, _ = states
    for row, t in enumerate(peer.timesteps):
        # They draw the noise themselves, and with "trailing" spacing also after the last step.
        noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(row))
        theirs = peer.step(output, t, x, generator=torch.Generator().manual_seed(row))
        ours, denoised = sampler_step(x, output, table, row, noise=noise)
        torch.testing.assert_close(denoised, theirs.pred_original_sample, rtol=1e-9, atol=1e-9)
        if row < 9 or spacing != "trailing":
            torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("parameterization", PREDICTION_TYPES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("use_clipped_noise", [False, True])
def test_ddim(states, spacing, parameterization, eta, set_alpha_to_one, clip, use_clipped_noise):
    schedule = DDPMSchedule()
    peer = peer_scheduler(
        diffusers.DDIMScheduler,
        schedule,
        30,
        timestep_spacing=spacing,
        prediction_type=PREDICTION_TYPES[parameterization],
        clip_sample=clip is not None,
        set_alpha_to_one=set_alpha_to_one,
    )
    times = schedule.times(30, spacing)
    table = ddim(
        schedule,
        times=times,
        targets=times - 1000 // 30,
        final="denoised" if set_alpha_to_one else "end",
        parameterization=parameterization,
        clip_denoised=clip,
        eta=eta,
        use_clipped_noise=use_clipped_noise,
    )
    assert len(table) == 30
    x, output, noise = states
    for row in (0, 1, 14, 28, 29):
        t = peer.timesteps[row]
        theirs = peer.step(
            output, t, x, eta, use_clipped_model_output=use_clipped_noise, variance_noise=noise
        )
        ours, denoised = sampler_step(x, output, table, row, noise=noise)
        torch.testing.assert_close(denoised, theirs.pred_original_sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("final", ["denoised", "end"])
def test_targets_are_needed_only_where_times_are_uneven(spacing, final):
    schedule, times = DDPMSchedule(), DDPMSchedule().times(10, spacing)
    one = ddim(schedule, times=times, targets=times - 100, final=final, eta=0.5)
    other = ddim(schedule, 10, spacing=spacing, final=final, eta=0.5)
    x, output, noise = torch.randn(3, 4, 2, dtype=torch.float64)
    for row in range(10):
        theirs, _ = sampler_step(x, output, one, row, noise=noise)
        ours, _ = sampler_step(x, output, other, row, noise=noise)
        torch.testing.assert_close(ours, theirs)


def peer_test_problem():
    """The initial state and the network of diffusers' own tests, in tests/schedulers."""
    x = (torch.arange(4 * 3 * 8 * 8).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)
    return x, lambda x, t: x * (t / (t + 1))


@pytest.mark.parametrize(
    ("expected", "beta_start", "options"),
    [
        (172.0067, 1e-4, {}),
        (52.5302, 1e-4, {"parameterization": "velocity"}),
        (149.8295, 0.01, {}),
        (149.0784, 0.01, {"final": "end"}),
    ],
)
def test_sums_published_for_ddim(expected, beta_start, options):
    """Theirs allow 1e-2."""
    x, network = peer_test_problem()
    table = ddim(DDPMSchedule(beta_start=beta_start), 10, clip_denoised=1.0, **options)
    for row, t in enumerate(table.time.tolist()):
        x, _ = sampler_step(x, network(x, t), table, row)
    assert float(x.abs().sum()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("expected", "parameterization"), [(258.9606, "noise"), (202.0296, "velocity")])
def test_sums_published_for_ddpm(expected, parameterization):
    """Theirs allow 1e-2, and draw the noise from PyTorch's generator."""
    x, network = peer_test_problem()
    generator = torch.manual_seed(0)
    table = ddpm(DDPMSchedule(), 1000, clip_denoised=1.0, parameterization=parameterization)
    for row, t in enumerate(table.time.tolist()):
        noise = torch.randn(x.shape, generator=generator) if t > 0 else torch.zeros_like(x)
        x, _ = sampler_step(x, network(x, t), table, row, noise=noise)
    assert float(x.abs().sum()) == pytest.approx(expected, abs=1e-2)
