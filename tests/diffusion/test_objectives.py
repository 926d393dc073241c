import pytest
import torch

from genssl_fast import Stream, random_normal, random_uniform, step_counter
from genssl_fast.diffusion import (
    PARAMETERIZATIONS,
    VESDE,
    VPSDE,
    DDPMSchedule,
    SubVPSDE,
    ddpm_loss,
    denoising_score_matching,
    log_snr_time,
    target,
    unit_variance,
)
from tests.diffusion.closed_forms import GaussianData

CONTINUOUS = [VPSDE(), SubVPSDE(), VESDE()]


def draws(shape, seed, step=0, dtype=torch.float64):
    """Noise and uniform numbers of a training step."""
    counter = step_counter(Stream.DATA, 2 * step)
    noise = random_normal(shape, seed=seed, step=counter, dtype=dtype)
    return noise, random_uniform((shape[0], 1), seed=seed, step=counter + 1, dtype=dtype)[:, 0]


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_score_matching_is_its_formula(process, parameterization):
    x0 = torch.randn(5, 3, dtype=torch.float64)
    noise, u = draws(x0.shape, seed=1, step=7)
    t = 1e-5 + (1 - 1e-5) * u
    mean, std = process.marginal_prob(x0, t)
    x = mean + std[:, None] * noise

    def score_model(x, t):
        return torch.sin(x) * t[:, None]

    def model(x, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        score = score_model(x, t)
        x0, noise = (x + sigma**2 * score) / alpha, -sigma * score
        return target(x0, noise, process.alpha(t), process.sigma(t), parameterization)

    error = (score_model(x, t) + noise / std[:, None]).square().mean(1)
    expected = {
        "simple": std**2 * error,
        "likelihood": process.diffusion(t) ** 2 * error,
    }
    for weighting, per_sample in expected.items():
        got = denoising_score_matching(
            model,
            process,
            x0,
            weighting=weighting,
            importance_sampling=False,
            parameterization=parameterization,
            reduction="none",
            seed=1,
            step=7,
        )
        torch.testing.assert_close(got, per_sample, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
def test_importance_sampled_times_have_the_density_of_the_weight(process):
    u = torch.linspace(0.01, 1, 50, dtype=torch.float64, requires_grad=True)
    t = log_snr_time(process, u, min_time=1e-3)
    (rate,) = torch.autograd.grad(t.sum(), u)
    t = t.detach()
    weight = (process.diffusion(t) / process.sigma(t)).square()
    total = (rate * weight).mean()
    torch.testing.assert_close(rate * weight, total.expand(50), rtol=1e-9, atol=0)
    grid = torch.logspace(-3, 0, 20001, dtype=torch.float64)
    integral = torch.trapezoid((process.diffusion(grid) / process.sigma(grid)).square(), grid)
    assert float(total) == pytest.approx(float(integral), rel=1e-4)
    assert float(t[-1]) == pytest.approx(1.0)


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
def test_importance_sampled_loss_is_its_formula(process):
    x0 = torch.randn(5, 3, dtype=torch.float64)
    noise, u = draws(x0.shape, seed=1)
    t = log_snr_time(process, u, min_time=0.4)
    mean, std = process.marginal_prob(x0, t)
    error = (torch.sin(mean + std[:, None] * noise) * t[:, None] - noise).square().mean(1)
    ends = process.log_snr(torch.tensor([0.4, 1.0], dtype=torch.float64))
    expected = (ends[0] - ends[1]) / (1 - 0.4) * error

    def model(x, t):
        return torch.sin(x) * t[:, None]

    options = {"weighting": "likelihood", "min_time": 0.4, "reduction": "none", "seed": 1}
    torch.testing.assert_close(denoising_score_matching(model, process, x0, **options), expected)


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
def test_importance_sampling_is_unbiased_and_less_noisy(process):
    data = GaussianData(process)

    def model(x, t):
        return 0.5 * t[:, None] * x / process.prior_std + 0.3

    losses = {}
    for importance_sampling in (True, False):
        x0 = data.mean + data.std * random_normal((40000, 2), seed=9, dtype=torch.float64)
        losses[importance_sampling] = denoising_score_matching(
            model,
            process,
            x0,
            weighting="likelihood",
            importance_sampling=importance_sampling,
            min_time=1e-3,
            reduction="none",
            seed=2 + importance_sampling,
        )
    means = {key: loss.mean() for key, loss in losses.items()}
    spread = {key: loss.std() / len(loss) ** 0.5 for key, loss in losses.items()}
    assert abs(means[True] - means[False]) < 4 * (spread[True] ** 2 + spread[False] ** 2).sqrt()
    if not isinstance(process, VESDE):  # its weight is constant to begin with
        assert spread[True] < 0.5 * spread[False]


@pytest.mark.parametrize("process", [*CONTINUOUS, DDPMSchedule()], ids=repr)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_ddpm_loss_is_its_formula(process, parameterization):
    x0 = torch.randn(6, 2, 2, dtype=torch.float64)
    noise, u = draws(x0.shape, seed=5)
    t = (u * 1000).floor() if isinstance(process, DDPMSchedule) else 1e-5 + (1 - 1e-5) * u
    mean, std = process.marginal_prob(x0, t)
    x = mean + std[:, None, None] * noise
    wanted = target(x0, noise, process.alpha(t), std, parameterization)
    expected = (torch.sin(x) * t[:, None, None] - wanted).square().mean((1, 2))

    def model(x, t):
        return torch.sin(x) * t[:, None, None]

    options = {"parameterization": parameterization, "seed": 5}
    got = ddpm_loss(model, process, x0, reduction="none", **options)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(ddpm_loss(model, process, x0, **options), expected.mean())


def test_step_indices_cover_the_schedule():
    seen = []

    def model(x, t):
        seen.append(t)
        return x

    ddpm_loss(model, DDPMSchedule(num_steps=4), torch.zeros(2000, 1), seed=0)
    indices, counts = seen[0].unique(return_counts=True)
    assert indices.tolist() == [0, 1, 2, 3]
    assert counts.min() > 430


def test_gradients_reach_the_network():
    network = torch.nn.Linear(3, 3).double()
    x0 = torch.randn(4, 3, dtype=torch.float64)

    def loss(weight):
        def model(x, t):
            return x @ weight.T + t[:, None]

        return denoising_score_matching(model, VPSDE(), x0, weighting="likelihood", seed=0)

    assert torch.autograd.gradcheck(loss, network.weight)
    assert torch.autograd.grad(loss(network.weight), network.weight)[0].abs().min() > 0


def test_the_exact_prediction_is_the_best_one():
    data = GaussianData(VPSDE())
    x0 = data.mean + data.std * torch.randn(4000, 2)

    def loss(shift):
        def model(x, t):
            return data.predict(x, t) + shift

        return float(denoising_score_matching(model, VPSDE(), x0, seed=0))

    assert loss(0.0) < min(loss(0.1), loss(-0.1))


@pytest.mark.parametrize("objective", [denoising_score_matching, ddpm_loss])
def test_a_sample_does_not_depend_on_its_batch(objective):
    x0 = torch.randn(7, 3)

    def model(x, t):
        return x * t[:, None]

    options = {"reduction": "none", "seed": 3, "step": 2}
    whole = objective(model, VPSDE(), x0, **options)
    part = objective(model, VPSDE(), x0[4:], first_sample=4, **options)
    assert torch.equal(whole[4:], part)
    assert not torch.equal(whole, objective(model, VPSDE(), x0, **options | {"step": 3}))


def test_manual_seed_makes_training_reproducible():
    def losses():
        torch.manual_seed(0)
        return [float(ddpm_loss(lambda x, t: x, VPSDE(), torch.ones(4, 2))) for _ in range(3)]

    assert losses() == losses()
    assert len(set(losses())) == 3


def test_what_the_network_is_given():
    process, x0, labels = VESDE(), torch.randn(4, 3), torch.arange(4)
    calls = []

    def model(x, t, labels):
        calls.append((x, t, labels))
        return x

    for options in ({}, {"input_scale": unit_variance, "time_scale": 10.0}):
        denoising_score_matching(model, process, x0, labels=labels, seed=0, **options)
    (x, t, _), (scaled_x, scaled_t, given_labels) = calls
    assert t.shape == (4,)
    torch.testing.assert_close(scaled_t, 10 * t)
    scale = unit_variance(torch.ones(4), process.sigma(t))
    torch.testing.assert_close(scaled_x, x * scale[:, None])
    assert torch.equal(given_labels, labels)


def test_half_precision_data_gives_a_single_precision_loss():
    loss = ddpm_loss(lambda x, t: x, VPSDE(), torch.ones(4, 2, dtype=torch.bfloat16), seed=0)
    assert loss.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("process", [*CONTINUOUS, DDPMSchedule()], ids=repr)
def test_losses_on_the_gpu_are_those_on_the_cpu(process):
    x0 = torch.randn(20, 3)
    losses = [
        ddpm_loss(lambda x, t: torch.sin(x), process, x0.to(device), seed=0).cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


def test_errors_name_the_argument():
    def model(x, t):
        return x[:, :1]

    x0 = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"model: expected an output \[4, 2\], got \[4, 1\]"):
        ddpm_loss(model, VPSDE(), x0)
    with pytest.raises(ValueError, match="weighting: expected one of 'simple', 'likelihood'"):
        denoising_score_matching(model, VPSDE(), x0, weighting="none")
    with pytest.raises(ValueError, match="reduction"):
        ddpm_loss(lambda x, t: x, VPSDE(), x0, reduction="sum")
    with pytest.raises(ValueError, match="x0"):
        ddpm_loss(model, VPSDE(), torch.zeros(3))
    with pytest.raises(TypeError, match="process: expected continuous time"):
        denoising_score_matching(model, DDPMSchedule(), x0)
