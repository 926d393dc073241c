import math

import pytest
import torch

from genssl_fast import CoefficientTable, langevin_step
from genssl_fast.diffusion import (
    PARAMETERIZATIONS,
    SAMPLERS,
    VESDE,
    VPSDE,
    DDPMSchedule,
    SubVPSDE,
    TimeGrid,
    annealed_langevin,
    ddim,
    ddpm,
    euler_maruyama,
    probability_flow_euler,
    probability_flow_heun,
    reverse_diffusion,
    unit_variance,
)
from tests.diffusion.closed_forms import (
    GaussianData,
    MixtureData,
    convergence_order,
    mean_discrepancy,
    run,
)

CONTINUOUS = [VPSDE(), SubVPSDE(), VESDE()]
ONE_STATE = sorted(set(SAMPLERS) - {"probability_flow_heun"})


def column(x, count=1):
    return torch.full((count, 1), x, dtype=torch.float64)


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(ddim, 1), (probability_flow_euler, 1), (probability_flow_heun, 2)],
)
def test_order_of_convergence_to_the_exact_probability_flow(process, sampler, order):
    data = GaussianData(process)
    ends = process.time_at_log_snr(2 * torch.tensor([-3.0, 2.0], dtype=torch.float64))
    x, steps, errors = column(1.3), [80, 160, 320], []
    for count in steps:
        log_snr = torch.linspace(-6, 4, count + 1, dtype=torch.float64)
        table = sampler(process, times=process.time_at_log_snr(log_snr), final="end")
        errors.append(float((run(table, data.predict, x) - data.flow(x, *ends)).abs()))
    assert errors[-1] > 1e-12
    assert convergence_order(errors, steps) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("process", [*CONTINUOUS, DDPMSchedule()], ids=repr)
def test_ddim_with_eta_one_is_ancestral_sampling(process):
    one, other = ddim(process, 20, eta=1.0, use_clipped_noise=True), ddpm(process, 20)
    torch.testing.assert_close(one.state, other.state, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.prediction, other.prediction, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.noise, other.noise, rtol=1e-9, atol=1e-12)
    raw = ddim(process, 20, eta=1.0)
    noise = torch.randn(20, 4, 2, dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64)
    predict = GaussianData(process).predict
    torch.testing.assert_close(run(raw, predict, x, noise), run(other, predict, x, noise))


def propagate(table, data, mean, variance):
    """Mean and variance after all rows, exactly: for Gaussian data every row is affine in x."""
    for row, t in enumerate(table.time):
        one_row = CoefficientTable(table.coefficients[row : row + 1], table.num_states)
        ends = run(one_row, data.predict, torch.stack([t * 0, t * 0 + 1])[:, None], t.new_zeros(1, 2, 1))
        gain, offset = float(ends[1] - ends[0]), float(ends[0])
        mean = gain * mean + offset
        variance = gain**2 * variance + float(table.noise[row]) ** 2
    return mean, variance


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
@pytest.mark.parametrize(
    ("sampler", "options"),
    [(ddpm, {}), (ddim, {"eta": 0.5}), (euler_maruyama, {}), (reverse_diffusion, {})],
)
def test_stochastic_samplers_end_at_the_marginal(process, sampler, options):
    data = GaussianData(process)
    start = data.marginal(torch.tensor(1.0, dtype=torch.float64))
    errors = []
    for steps in (200, 400):
        table = sampler(process, steps, spacing="log_snr", final="end", **options)
        mean, variance = propagate(table, data, float(start[0]), float(start[1]) ** 2)
        end_mean, end_std = data.marginal(torch.tensor(process.min_time, dtype=torch.float64))
        errors.append(max(abs(mean - float(end_mean)), abs(math.sqrt(variance) - float(end_std))))
    assert errors[1] < 0.02
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("process", [*CONTINUOUS, DDPMSchedule()], ids=repr)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_parameterization_gives_the_same_samples(process, name, parameterization):
    data = GaussianData(process)
    options = {"steps_per_level": 2} if name == "annealed_langevin" else {}
    x = process.prior_std * torch.randn(3, 2, dtype=torch.float64)

    def samples(parameterization):
        table = SAMPLERS[name](process, 8, parameterization=parameterization, **options)
        noise = torch.randn(len(table), 3, 2, dtype=torch.float64, generator=torch.manual_seed(0))
        return run(table, lambda x, t: data.predict(x, t, parameterization), x, noise)

    torch.testing.assert_close(samples(parameterization), samples("noise"), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("name", SAMPLERS)
def test_input_scale_is_a_change_of_variable(name, clip):
    process = VESDE()
    data = GaussianData(process)
    options = {"clip_denoised": clip, "final": "denoised"}
    plain = SAMPLERS[name](process, 8, **options)
    scaled = SAMPLERS[name](process, 8, input_scale=unit_variance, **options)
    x = process.prior_std * torch.randn(3, 2, dtype=torch.float64)
    noise = torch.randn(len(plain), 3, 2, dtype=torch.float64)

    def scale(t):
        return unit_variance(process.alpha(t), process.sigma(t))

    got = run(scaled, lambda y, t: data.predict(y / scale(t), t), x * scale(plain.time[0]), noise)
    torch.testing.assert_close(got, run(plain, data.predict, x, noise), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
def test_annealed_langevin_is_langevin_steps_of_known_size(process):
    data = GaussianData(process)
    table = annealed_langevin(process, 3, steps_per_level=2, snr=0.1)
    x = process.prior_std * torch.randn(4, 2, dtype=torch.float64)
    noise = torch.randn(7, 4, 2, dtype=torch.float64)
    expected = x
    for row, t in enumerate(process.times(3).repeat_interleave(2)):
        step_size = 2 * (0.1 * float(process.sigma(t))) ** 2
        score = data.predict(expected, t, "score")
        expected = langevin_step(expected, score, step_size=step_size, noise=noise[row])
    expected = data.predict(expected, process.times(3)[-1], "denoised")
    torch.testing.assert_close(run(table, data.predict, x, noise), expected)


def test_reverse_diffusion_of_the_exploding_process_in_closed_form():
    """x' = x + (σ² - σ'²) s + √(σ² - σ'²) z, algorithm 2 of Song et al. (2021)."""
    process = VESDE()
    data = GaussianData(process)
    table = reverse_diffusion(process, 5, final="mean")
    times = process.times(5, endpoint=True)
    noise = torch.randn(5, 3, 2, dtype=torch.float64)
    x = expected = 50 * torch.randn(3, 2, dtype=torch.float64)
    for row in range(5):
        variance = process.sigma(times[row]) ** 2 - process.sigma(times[row + 1]) ** 2
        score = data.predict(expected, times[row], "score")
        expected = expected + variance * score + (row < 4) * variance.sqrt() * noise[row]
    torch.testing.assert_close(run(table, data.predict, x, noise), expected)


def test_euler_maruyama_in_closed_form():
    process = VPSDE()
    data = GaussianData(process)
    table = euler_maruyama(process, 5, final="end", time_scale=999.0)
    times = process.times(5, endpoint=True)
    torch.testing.assert_close(table.time, times[:-1] * 999)
    noise = torch.randn(5, 3, 2, dtype=torch.float64)
    x = expected = torch.randn(3, 2, dtype=torch.float64)
    for row in range(5):
        t, step = times[row], times[row] - times[row + 1]
        drift, diffusion = process.sde(expected, t)
        reverse = drift - diffusion**2 * data.predict(expected, t, "score")
        expected = expected - reverse * step + diffusion * step.sqrt() * noise[row]
    got = run(table, lambda x, t: data.predict(x, t / 999), x, noise)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ONE_STATE)
@pytest.mark.parametrize(("final", "rows"), [("denoised", 6), ("mean", 6), ("end", 6)])
def test_number_of_rows_and_the_last_one(name, final, rows):
    options = {"eta": 1.0} if name == "ddim" else {}
    options |= {"steps_per_level": 1} if name == "annealed_langevin" else {}
    table = SAMPLERS[name](VPSDE(), 6, final=final, **options)
    assert len(table) == rows + (name == "annealed_langevin")
    noisy = final == "end" and name not in ("identity", "probability_flow_euler")
    assert bool(table.noise[-1] != 0) == noisy
    if final == "denoised":
        assert table.state[-1].item() == 0
        assert table.prediction[-1].item() == 1
        assert table.time[-1].item() == pytest.approx(VPSDE().min_time)


@pytest.mark.parametrize(("final", "rows"), [("denoised", 11), ("end", 12)])
def test_heun_evaluates_twice_a_step(final, rows):
    table = probability_flow_heun(VPSDE(), 6, final=final)
    assert (len(table), table.num_states, table.num_predictions) == (rows, 2, 2)


def test_clipping_acts_in_every_row():
    assert torch.equal(ddpm(VPSDE(), 5, clip_denoised=0.5).clip, torch.full((5,), 0.5).double())
    assert torch.isinf(ddpm(VPSDE(), 5).clip).all()
    wild = run(ddim(VPSDE(), 5, clip_denoised=0.5), lambda x, t: 100 * x, column(1.0))
    assert float(wild.abs()) <= 0.5


def test_one_step_is_the_denoised_prediction_of_noise():
    data, x = GaussianData(VPSDE()), torch.randn(3, 2, dtype=torch.float64)
    expected = data.predict(x, torch.tensor(1.0).double(), "denoised")
    torch.testing.assert_close(run(ddim(VPSDE(), 1), data.predict, x), expected)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler_maruyama", "probability_flow_heun"])
def test_mixture_samples_pass_a_two_sample_test(name):
    """Squared MMD against fresh data, beside its spread between two sets of fresh data."""
    process, generator = VPSDE(), torch.Generator().manual_seed(1)
    means = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], dtype=torch.float64)
    data = MixtureData(process, means, 0.15)
    table = SAMPLERS[name](process, 100, spacing="karras")
    x = torch.randn(1000, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(len(table), *x.shape, dtype=torch.float64, generator=generator)
    samples = run(table, lambda x, t: data.noise(x, t.expand(len(x))), x, noise)
    fresh = [data.draw(1000, generator).double() for _ in range(3)]
    between_fresh = max(abs(mean_discrepancy(fresh[0], other)) for other in fresh[1:])
    assert mean_discrepancy(samples, fresh[0]) < max(3 * between_fresh, 5e-3)
    shifted = samples + 0.1
    assert mean_discrepancy(shifted, fresh[0]) > max(3 * between_fresh, 5e-3)


def test_errors_name_the_argument():
    process = VPSDE()
    with pytest.raises(ValueError, match="eta"):
        ddim(process, 5, eta=1.5)
    with pytest.raises(ValueError, match="variance"):
        ddpm(process, 5, variance="learned")
    with pytest.raises(ValueError, match="final: expected one of 'denoised', 'mean', 'end'"):
        ddpm(process, 5, final="x0")
    with pytest.raises(ValueError, match="clip_denoised"):
        ddpm(process, 5, clip_denoised=0.0)
    with pytest.raises(ValueError, match="times: expected a decreasing sequence"):
        ddpm(process, times=[0.1, 0.5])
    with pytest.raises(ValueError, match=r"times: expected numbers in \[0, 1.0\]"):
        ddpm(process, times=[2.0, 0.5])
    with pytest.raises(ValueError, match="times: expected at least 2"):
        ddpm(process, times=[0.5], final="end")
    with pytest.raises(ValueError, match="targets"):
        ddpm(process, targets=[0.5])
    with pytest.raises(ValueError, match=r"targets: expected one per time \(2\)"):
        ddpm(process, times=[0.5, 0.2], targets=[0.1])
    with pytest.raises(TypeError, match="etaa"):
        ddim(process, 5, etaa=1.0)
    assert TimeGrid(process, 5).removed.min() > 0
