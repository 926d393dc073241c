import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from genssl_fast import CoefficientTable, Stream, langevin_step, sampler_step, step_counter
from genssl_fast.diffusion import (
    SAMPLERS,
    VESDE,
    VPSDE,
    DDPMSchedule,
    LangevinCorrector,
    NonFiniteError,
    ddim,
    reverse_diffusion,
    sample,
    unit_variance,
)
from tests.diffusion.closed_forms import GaussianData


def model(x, t):
    """Element by element, so that a sample's numbers cannot depend on the batch."""
    return torch.sin(3 * x) * t[:, None]


def exact(data, parameterization="noise"):
    return lambda x, t: data.predict(x, t, parameterization)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_samples_do_not_depend_on_the_batch(name, batch):
    options = {"steps_per_level": 2} if name == "annealed_langevin" else {}
    options |= {"eta": 1.0} if name == "ddim" else {}
    options |= {"sampler": name, "steps": 5, "seed": 11, **options}
    whole = sample(model, VPSDE(), shape=(7, 3), **options)
    assert torch.equal(sample(model, VPSDE(), shape=(7, 3), batch=batch, **options), whole)
    share = sample(model, VPSDE(), shape=(4, 3), batch=batch, first_sample=2, **options)
    assert torch.equal(share, whole[2:6])
    assert not torch.equal(sample(model, VPSDE(), shape=(7, 3), **options | {"seed": 12}), whole)


def test_a_corrected_sample_does_not_depend_on_its_neighbours():
    options = {"sampler": "reverse_diffusion", "steps": 5, "seed": 0, "final": "mean"}
    options["corrector"] = LangevinCorrector(snr=0.2, steps=2)
    whole = sample(model, VPSDE(), shape=(6, 3), **options)
    for first in range(6):
        one = sample(model, VPSDE(), shape=(1, 3), first_sample=first, **options)
        assert torch.equal(one[0], whole[first])


def test_sampling_is_rows_of_the_table_on_the_prior():
    process, x = VPSDE(), VPSDE().prior_sampling((4, 2), seed=5, first_sample=10)
    table = ddim(process, 6, eta=0.7)
    got = sample(model, process, shape=(4, 2), steps=6, eta=0.7, seed=5, first_sample=10)
    for row, t in enumerate(table.time.float()):
        step = step_counter(Stream.STEP, row)
        output = model(x, t.expand(4))
        x, _ = sampler_step(x, output, table, row, seed=5, step=step, first_sample=10)
    assert torch.equal(got, x)
    options = {"shape": (4, 2), "seed": 5, "first_sample": 10}
    assert torch.equal(sample(model, process, sampler=table, **options), got)


def test_heun_in_closed_form():
    process = VPSDE()
    initial = torch.randn(3, 2, dtype=torch.float64)
    options = {"sampler": "probability_flow_heun", "steps": 4, "final": "end", "initial": initial}
    got = sample(model, process, shape=(3, 2), dtype=torch.float64, **options)

    def flow(x, t):
        drift, diffusion = process.sde(x, t)
        return drift + diffusion**2 * model(x, t.expand(3)) / (2 * process.sigma(t))

    x = initial
    for t, end in pairwise(process.times(4, endpoint=True)):
        predicted = x + (end - t) * flow(x, t)
        x = x + (end - t) / 2 * (flow(x, t) + flow(predicted, end))
    torch.testing.assert_close(got, x)


@pytest.mark.parametrize("process", [VPSDE(), VESDE(), DDPMSchedule()], ids=repr)
@pytest.mark.parametrize("name", ["ddim", "ddpm", "reverse_diffusion"])
def test_moments_of_gaussian_data(process, name):
    data = GaussianData(process)
    # The exploding process starts from N(0, σ_max² I) and forgets the mean only to 1 / 50.
    samples = sample(exact(data), process, shape=(2000, 1), sampler=name, steps=100, seed=0)
    spread = data.std / math.sqrt(2000)
    assert abs(float(samples.mean()) - data.mean) < 4 * spread + 0.02
    assert float(samples.std()) == pytest.approx(data.std, rel=0.08)


def test_corrector_leads_to_the_marginal_of_its_time():
    """Steps of this size inflate the variance of a Gaussian by 1 + snr², in many dimensions."""
    data, snr = GaussianData(VPSDE()), 0.2
    mean, std = data.marginal(torch.tensor(0.3))
    samples = sample(
        exact(data),
        VPSDE(),
        shape=(20, 1024),
        sampler=CoefficientTable.from_rows([{"state": [1.0], "time": 0.3}]),
        corrector=LangevinCorrector(snr=snr, steps=100),
        initial=torch.zeros(20, 1024),
        seed=0,
    )
    assert float(samples.mean()) == pytest.approx(float(mean), abs=0.02)
    assert float(samples.std()) == pytest.approx(float(std) * math.sqrt(1 + snr**2), rel=0.01)


def test_the_corrector_is_a_langevin_step_before_every_row():
    process = VPSDE()
    data = GaussianData(process)
    table = reverse_diffusion(process, 3, final="mean")
    x = process.prior_sampling((4, 2), seed=1, dtype=torch.float64)
    alphas = [*process.alpha(table.time), process.alpha(table.time[-1])]
    options = {"sampler": "reverse_diffusion", "steps": 3, "final": "mean", "dtype": x.dtype}
    corrector = LangevinCorrector(snr=0.1, steps=2)
    got = sample(exact(data), process, shape=(4, 2), seed=1, corrector=corrector, **options)
    for row, t in enumerate(table.time):
        for repeat in range(2):
            x = langevin_step(
                x,
                data.predict(x, t, "score"),
                snr=0.1,
                alpha=float(alphas[row] / alphas[row + 1]) ** 2,
                seed=1,
                step=step_counter(Stream.CORRECTOR, 2 * row + repeat),
            )
        step = step_counter(Stream.STEP, row)
        x, _ = sampler_step(x, data.predict(x, t), table, row, seed=1, step=step)
    torch.testing.assert_close(got, x)


def test_langevin_steps_alone():
    data = GaussianData(VESDE())
    x = VESDE().prior_sampling((4, 2), seed=1, dtype=torch.float64)
    options = {"sampler": "identity", "steps": 3, "dtype": x.dtype, "seed": 1}
    corrector = LangevinCorrector(snr=0.1, steps=2)
    got = sample(exact(data), VESDE(), shape=(4, 2), corrector=corrector, **options)
    for index, t in enumerate(VESDE().times(3).repeat_interleave(2)):
        step = step_counter(Stream.CORRECTOR, index)
        x = langevin_step(x, data.predict(x, t, "score"), snr=0.1, seed=1, step=step)
    torch.testing.assert_close(got, data.predict(x, VESDE().times(3)[-1], "denoised"))


@pytest.mark.parametrize("corrector", [None, LangevinCorrector(steps=2)])
def test_input_scale_changes_nothing_but_the_network_s_input(corrector):
    process = VESDE()
    data = GaussianData(process)

    def scaled(y, t):
        scale = unit_variance(process.alpha(t), process.sigma(t))[:, None]
        return data.predict(y / scale, t, "score")

    options = {"shape": (4, 2), "steps": 6, "seed": 0, "dtype": torch.float64}
    options |= {"sampler": "reverse_diffusion", "parameterization": "score", "corrector": corrector}
    plain = sample(exact(data, "score"), process, **options)
    got = sample(scaled, process, input_scale=unit_variance, **options)
    torch.testing.assert_close(got, plain, rtol=1e-9, atol=1e-9)


def test_initial_states_replace_the_prior():
    initial = torch.randn(5, 2)
    options = {"shape": (5, 2), "steps": 4}
    whole = sample(model, VPSDE(), initial=initial, **options)
    assert torch.equal(sample(model, VPSDE(), initial=initial, batch=2, **options), whole)
    drawn = VPSDE().prior_sampling((5, 2), seed=0)
    from_prior = sample(model, VPSDE(), seed=0, **options)
    assert torch.equal(sample(model, VPSDE(), initial=drawn, **options), from_prior)


def test_what_the_network_is_given():
    calls = []

    def network(x, t, labels):
        calls.append((x, t, labels))
        return x

    labels = torch.arange(5)
    options = {"shape": (5, 2), "steps": 2, "batch": 3, "seed": 0, "spacing": "trailing"}
    sample(network, DDPMSchedule(), labels=labels, dtype=torch.bfloat16, **options)
    assert [call[2].tolist() for call in calls] == [[0, 1, 2]] * 2 + [[3, 4]] * 2
    assert [call[1].tolist() for call in calls[:2]] == [[999.0] * 3, [499.0] * 3]
    assert {call[1].dtype for call in calls} == {torch.float32}
    assert {call[0].dtype for call in calls} == {torch.bfloat16}


def test_device_and_dtype_are_those_of_the_network():
    class Network(torch.nn.Linear):
        def forward(self, x, t):
            assert not torch.is_grad_enabled()
            return super().forward(x)

    samples = sample(Network(3, 3).double(), VPSDE(), shape=(2, 3), steps=2)
    assert samples.dtype == torch.float64
    assert not samples.requires_grad


def test_a_network_under_autocast():
    linear = torch.nn.Linear(2, 2)

    def network(x, t):
        with torch.autocast("cpu", torch.bfloat16):
            return linear(x)

    def widened(x, t):
        return network(x, t).float()

    options = {"shape": (3, 2), "steps": 4, "seed": 1}
    assert torch.equal(sample(network, VPSDE(), **options), sample(widened, VPSDE(), **options))


def test_callback_counts_steps_over_all_batches():
    calls = []
    options = {"shape": (5, 2), "steps": 4, "batch": 2, "seed": 0}
    options["callback"] = lambda done, total, x: calls.append((done, total, len(x)))
    samples = sample(model, VPSDE(), **options)
    assert [call[0] for call in calls] == list(range(1, 13))
    assert {call[1] for call in calls} == {12}
    assert [call[2] for call in calls] == [2] * 8 + [1] * 4
    assert samples.shape == (5, 2)


def test_seed_none_follows_manual_seed():
    def draw():
        return sample(model, VPSDE(), shape=(2, 2), steps=3)

    torch.manual_seed(0)
    first, second = draw(), draw()
    torch.manual_seed(0)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)


def test_nan_is_reported_with_its_step():
    def broken(x, t):
        return torch.where(t[:, None] < 0.5, torch.nan, x)

    options = {"shape": (4, 2), "steps": 5, "batch": 2, "first_sample": 10, "seed": 0}
    message = r"network's output is not finite at step 4 of 5 \(row 3, time 0.25.*\) for samples 10 to 11"
    with pytest.raises(NonFiniteError, match=message) as caught:
        sample(broken, VPSDE(), check_finite=True, **options)
    assert (caught.value.row, caught.value.samples) == (3, range(10, 12))
    assert caught.value.time == pytest.approx(0.25, abs=1e-3)
    assert sample(broken, VPSDE(), **options).isnan().all()
    assert sample(broken, VPSDE(), clip_denoised=1.0, **options).isnan().all()


def test_an_overflowing_state_is_reported():
    table = CoefficientTable.from_rows([{"state": [1e300], "time": 0.5}])
    with pytest.raises(NonFiniteError, match="the state is not finite at step 1 of 1"):
        sample(model, VPSDE(), shape=(2, 2), sampler=table, check_finite=True)


def test_errors_name_the_argument():
    def draw(shape=(2, 2), **options):
        return sample(model, VPSDE(), shape=shape, **options)

    with pytest.raises(ValueError, match=r"sampler: expected one of .*'ddim'.*, got 'dimm'"):
        draw(sampler="dimm")
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        draw(steps=0)
    with pytest.raises(ValueError, match="shape: expected"):
        draw(shape=(2,))
    with pytest.raises(ValueError, match="shape: expected"):
        draw(shape=(-1, 2))
    for process in (None, VPSDE):
        with pytest.raises(ValueError, match=r"process: expected a process, such as VPSDE\(\), got"):
            sample(model, process, shape=(2, 2))
    for shape in ((), 4, (2.0, 2)):
        with pytest.raises(ValueError, match="shape: expected whole numbers"):
            draw(shape=shape)
    with pytest.raises(ValueError, match="steps: expected a whole number, got '5'"):
        draw(steps="5")
    assert draw(shape=(np.int64(2), 2), steps=np.int64(3)).shape == (2, 2)
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        draw(batch=0)
    with pytest.raises(ValueError, match="labels"):
        draw(labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="initial"):
        draw(initial=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="backend: expected one of 'auto', 'compiled', 'eager'"):
        draw(backend="fast")
    with pytest.raises(ValueError, match="backend: expected a FilmMLP"):
        draw(backend="compiled")
    with pytest.raises(ValueError, match="parameterization"):
        draw(parameterization="epsilon")
    with pytest.raises(ValueError, match="sampler: expected no options beside a table, got eta"):
        draw(sampler=ddim(VPSDE(), 3), eta=1.0)
    with pytest.raises(ValueError, match="corrector: expected a sampler with one state"):
        draw(sampler="probability_flow_heun", corrector=LangevinCorrector())
    with pytest.raises(TypeError, match="etaa"):
        draw(etaa=1.0)
    with pytest.raises(ValueError, match="snr"):
        LangevinCorrector(snr=0.0)
    with pytest.raises(ValueError, match="model_output"):
        sample(lambda x, t: x[:, :1], VPSDE(), shape=(2, 2), steps=2)


@pytest.mark.gpu
@pytest.mark.parametrize("process", [VPSDE(), VESDE(), DDPMSchedule()], ids=repr)
def test_samples_on_the_gpu_are_those_on_the_cpu(process):
    data = GaussianData(process)
    options = {"shape": (50, 3), "sampler": "ddpm", "steps": 20, "seed": 0, "batch": 20}
    options["corrector"] = LangevinCorrector()
    expected = sample(exact(data), process, **options)
    got = sample(exact(data), process, device="cuda", **options)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_no_samples():
    assert sample(model, VPSDE(), shape=(0, 2), steps=2).shape == (0, 2)
