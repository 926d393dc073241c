import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal

from genssl_fast.diffusion import VESDE, VPSDE, DDPMSchedule, SubVPSDE

CONTINUOUS = [VPSDE(), SubVPSDE(), VESDE(), VPSDE(beta_min=0.5, beta_max=0.5)]
PROCESSES = [*CONTINUOUS, DDPMSchedule(), DDPMSchedule("cosine")]
TIMES = torch.linspace(0.01, 1, 23, dtype=torch.float64)


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
def test_drift_and_diffusion_are_the_rates_of_the_marginals(process):
    t = TIMES.clone().requires_grad_()
    (log_alpha_rate,) = torch.autograd.grad((process.log_alpha(t) + 0 * t).sum(), t)
    variance = process.sigma(t).square()
    (variance_rate,) = torch.autograd.grad(variance.sum(), t)
    torch.testing.assert_close(process.drift(TIMES), log_alpha_rate)
    square = variance_rate - 2 * log_alpha_rate * variance
    torch.testing.assert_close(process.diffusion(TIMES).square(), square.detach())


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
def test_log_snr_and_its_inverse(process):
    t = torch.logspace(-5, 0, 31, dtype=torch.float64)
    expected = (process.alpha(t) / process.sigma(t)).square().log()
    torch.testing.assert_close(process.log_snr(t), expected)
    torch.testing.assert_close(process.time_at_log_snr(process.log_snr(t)), t, rtol=1e-11, atol=0)


def test_log_snr_of_the_schedule():
    schedule = DDPMSchedule()
    index = torch.tensor([0.0, 1.0, 500.0, 999.0], dtype=torch.float64)
    assert torch.equal(schedule.time_at_log_snr(schedule.log_snr(index)), index)


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
@pytest.mark.parametrize("time", [1e-7, 1e-5, 1e-3, 0.5, 1.0])
def test_fp32_marginals_are_as_exact_as_fp32_allows(process, time):
    single = torch.tensor(time)
    double = single.double()
    for function in (process.alpha, process.sigma, process.diffusion):
        torch.testing.assert_close(function(single).double(), function(double), rtol=1e-6, atol=0)


def test_marginals_and_sde_scale_every_sample_by_its_own_time():
    process, x = VPSDE(), torch.randn(3, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    mean, std = process.marginal_prob(x, t)
    drift, diffusion = process.sde(x, t)
    for b in range(3):
        one_mean, one_std = process.marginal_prob(x[b : b + 1], t[b])
        one_drift, one_diffusion = process.sde(x[b : b + 1], t[b])
        torch.testing.assert_close(mean[b], one_mean[0])
        torch.testing.assert_close(drift[b], one_drift[0])
        assert std[b] == one_std
        assert diffusion[b] == one_diffusion


def test_the_marginal_is_what_the_sde_makes_of_data():
    process, generator = SubVPSDE(), torch.Generator().manual_seed(0)
    x = torch.full((20000, 1), 1.5, dtype=torch.float64)
    times = torch.linspace(0, 0.5, 501, dtype=torch.float64)
    for t, end in pairwise(times):
        drift, diffusion = process.sde(x, t)
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = x + drift * (end - t) + diffusion * (end - t).sqrt() * noise
    mean, std = process.marginal_prob(torch.full((1, 1), 1.5), times[-1])
    assert abs(x.mean() - mean) < 5 * std / math.sqrt(len(x))
    assert abs(x.std() / std - 1) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("process", [VPSDE(), VESDE()], ids=repr)
def test_prior_log_prob(process, dtype):
    z = (process.prior_std * torch.randn(5, 3, 4)).to(dtype)
    expected = Normal(0.0, process.prior_std).log_prob(z.double()).sum((1, 2))
    got = process.prior_log_prob(z)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", [VPSDE(), VESDE()], ids=repr)
def test_prior_sampling_depends_on_the_sample_number_alone(process):
    whole = process.prior_sampling((2000, 5), seed=3)
    part = process.prior_sampling((10, 5), seed=3, first_sample=7)
    assert torch.equal(whole[7:17], part)
    assert not torch.equal(whole, process.prior_sampling((2000, 5), seed=4))
    assert abs(whole.std() / process.prior_std - 1) < 0.03


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_against_their_definitions(schedule):
    process = DDPMSchedule(schedule)
    if schedule == "linear":
        betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    else:

        def signal(u):
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - signal((i + 1) / 1000) / signal(i / 1000), 0.999) for i in range(1000)]
    product, expected = 1.0, []
    for beta in betas:
        product *= 1 - beta
        expected.append(product)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(process.alphas_cumprod, expected, rtol=1e-12, atol=0)
    index = torch.arange(1000)
    torch.testing.assert_close(process.alpha(index).square(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(process.sigma(index).square(), 1 - expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(process.diffusion(index).square(), torch.tensor(betas).double())


def test_time_minus_one_of_a_schedule_is_clean_data():
    clean = torch.tensor([-1])
    assert DDPMSchedule().alpha(clean) == 1
    assert DDPMSchedule().sigma(clean) == 0


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "log_snr", "karras"])
def test_spacings_are_uniform_in_what_they_say(process, spacing):
    warp = {
        "uniform": lambda t: t,
        "quadratic": torch.sqrt,
        "log_snr": process.log_snr,
        "karras": lambda t: (process.sigma(t) / process.alpha(t)) ** (1 / 7),
    }[spacing]
    times = process.times(9, spacing)
    gaps = warp(times).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(8), rtol=1e-6, atol=0)
    ends = torch.tensor([process.max_time, process.min_time], dtype=torch.float64)
    torch.testing.assert_close(times[[0, -1]], ends, rtol=1e-9, atol=0)
    assert len(process.times(9, spacing, endpoint=True)) == 10


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_uniform_time_covers_its_range(process):
    u = torch.tensor([2.0**-33, 0.25, 1.0])
    t = process.uniform_time(u)
    assert t[-1] == process.max_time
    assert t[0] >= 0
    assert t[0] < 1e-2 * process.max_time


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        VPSDE().times(0)
    with pytest.raises(ValueError, match="steps: expected at most num_steps = 1000"):
        DDPMSchedule().times(1001)
    with pytest.raises(ValueError, match="spacing: expected one of 'uniform'"):
        VPSDE().times(5, "leading")
    with pytest.raises(ValueError, match="schedule"):
        DDPMSchedule("quadratic")
    with pytest.raises(ValueError, match="sigma_min, sigma_max"):
        VESDE(sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match="beta_min, beta_max"):
        VPSDE(beta_min=0.0)
    with pytest.raises(ValueError, match="t: expected a scalar or one value per sample"):
        VPSDE().marginal_prob(torch.zeros(3, 2), torch.zeros(2))
