import math

import pytest
import torch

from genssl_fast import CoefficientTable, langevin_step
from genssl_fast.diffusion import (
    PARAMETERIZATIONS,
    SAMPLERS,
    DDPMSchedule,
    SubVPSDE,
    TimeGrid,
    VESDE,
    VPSDE,
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
    x, steps, errors = column(1.3), [160, 320, 640], []
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


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ddpm, {}),
        (ddim, {"eta": 0.5}),
        (euler_maruyama, {}),
        (reverse_diffusion, {}),
        (probability_flow_heun, {}),
    ],
)
def test_variance_of_the_samples_is_that_of_the_data(process, sampler, options):
    """Rows are linear for Gaussian data, so mean and variance propagate exactly, without sampling."""
    data = GaussianData(process)
    steps = 200 if sampler is probability_flow_heun else 1000
    table = sampler(process, steps, spacing="log_snr", final="end", **options)
    zero, unit = column(0.0), column(1.0)
    none = torch.zeros(len(table), 1, 1, dtype=torch.float64)
    offset = run(table, data.predict, zero, none)
    variance = ((run(table, data.predict, unit, none) - offset) * process.prior_std).square()
    for row in table.noise.nonzero().flatten().tolist()[::-1]:
        break
    gain, later = 1.0, 0.0
    rows = list(zip(table.time, range(len(table))))
    if table.num_states == 1:
        for t, row in reversed(rows):
            later += (gain * float(table.noise[row])) ** 2
            gain *= _row_gain(table, data, t, row)
        variance = variance * 0 + (gain * process.prior_std) ** 2 + later
    assert float(variance.sqrt()) == pytest.approx(data.std, rel=0.02)
    if not isinstance(process, VESDE):
        assert float(offset) == pytest.approx(data.mean, abs=0.02)


def _row_gain(table, data, t, row):
    one_row = CoefficientTable(table.coefficients[row : row + 1], table.num_states)
    none = torch.zeros(1, 1, 1, dtype=torch.float64)
    ends = [run(one_row, data.predict, column(x), none) for x in (0.0, 1.0)]
    return float(ends[1] - ends[0])
