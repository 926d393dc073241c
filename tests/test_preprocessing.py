"""What data become before a flow sees them: invertible, standardized, and with the right density."""

import math

import pytest
import torch

from genssl_fast.data import load_digits
from genssl_fast.preprocessing import Preprocessing

LEVELS = 5
LEVEL_VALUES = torch.linspace(-1, 1, LEVELS)


def discrete(count=400, seed=0):
    numbers = torch.randint(LEVELS, (count, 2, 3), generator=torch.Generator().manual_seed(seed))
    return LEVEL_VALUES[numbers]


def test_discrete_data_come_back_exactly():
    preprocessing, data = Preprocessing((2, 3), LEVELS), discrete()
    preprocessing.fit(data, seed=0)
    for step in range(3):
        values, _ = preprocessing(data, seed=4, step=step)
        torch.testing.assert_close(preprocessing.inverse(values), data, rtol=0, atol=1e-6)
    outside = torch.tensor([[[-1e3, 1e3, 0.0]] * 2])
    assert preprocessing.inverse(outside).abs().max() <= 1


def test_values_are_standardized():
    data = load_digits()[0].samples
    preprocessing = Preprocessing((1, 8, 8), 17)
    preprocessing.fit(data, seed=0)
    values, _ = preprocessing(data, seed=0)
    torch.testing.assert_close(values.mean(0), torch.zeros(1, 8, 8), rtol=0, atol=1e-4)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(1, 8, 8), rtol=1e-4, atol=0)


def test_log_determinant_is_that_of_the_derivative():
    preprocessing, data = Preprocessing((2, 3), LEVELS).double(), discrete(3).double()
    preprocessing.fit(discrete().double(), seed=1)
    values, log_abs_det = preprocessing(data, seed=2)
    mean, std = preprocessing.mean, preprocessing.std
    unbounded = values * std + mean
    # y = (logit(alpha + (1 - 2 alpha) s / L) - mean) / std, so ds/dy in terms of s:
    unit = unbounded.sigmoid()
    slope = (1 - 2 * preprocessing.alpha) / LEVELS / (unit * (1 - unit)) / std
    torch.testing.assert_close(log_abs_det, slope.log().flatten(1).sum(1))


def test_uniform_levels_have_the_bits_they_should():
    """A density that is uniform within [0, L) gives every level the probability 1 / L."""
    preprocessing, data = Preprocessing((2, 3), LEVELS).double(), discrete().double()
    values, log_abs_det = preprocessing(data, seed=0)
    unit = (values.sigmoid() - preprocessing.alpha) / (1 - 2 * preprocessing.alpha)
    assert ((unit > 0) & (unit < 1)).all()
    slope = values.sigmoid() * (1 - values.sigmoid()) / (1 - 2 * preprocessing.alpha)
    log_density = slope.log().flatten(1).sum(1)
    expected = torch.full_like(log_density, -6 * math.log(LEVELS))
    torch.testing.assert_close(log_density + log_abs_det, expected)


def test_noise_depends_on_seed_step_and_number_alone():
    preprocessing, data = Preprocessing((2, 3), LEVELS), discrete(10)
    values, log_abs_det = preprocessing(data, seed=3, step=1)
    rest, rest_log_abs_det = preprocessing(data[6:], seed=3, step=1, first_sample=6)
    assert torch.equal(values[6:], rest)
    torch.testing.assert_close(log_abs_det[6:], rest_log_abs_det)
    for other in (dict(seed=4, step=1), dict(seed=3, step=2)):
        assert not torch.equal(preprocessing(data, **other)[0], values)


def test_continuous_data_are_standardized_and_come_back():
    data = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 10])
    data[:, 1] = 0.5
    preprocessing = Preprocessing((3,))
    preprocessing.fit(data, seed=0)
    values, log_abs_det = preprocessing(data, seed=0)
    assert preprocessing.std[1] == 1
    torch.testing.assert_close(preprocessing.inverse(values), data)
    torch.testing.assert_close(log_abs_det, -preprocessing.std.log().sum().expand(100))


def test_what_varies_beyond_rounding_is_standardized():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(100, 4, generator=generator) * torch.tensor([1e-12, 1e12, 1e-3, 0.0])
    data += torch.tensor([0.0, 0.0, 1.0, 0.1])
    preprocessing = Preprocessing((4,))
    preprocessing.fit(data, seed=0)
    values, _ = preprocessing(data, seed=0)
    torch.testing.assert_close(values[:, :3].std(0, correction=0), torch.ones(3), rtol=1e-3, atol=0)
    assert preprocessing.std[3] == 1


def test_levels_do_not_depend_on_the_place_in_a_batch():
    preprocessing = Preprocessing((1,), 256)
    values = 3 * torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    # Right at the thresholds, where a sigmoid that rounds differently makes another level.
    unit = preprocessing.alpha + (1 - 2 * preprocessing.alpha) / 256 * torch.arange(1, 256).double()
    values = torch.cat([values, unit.logit().float()[:, None].repeat(20, 1)])
    alone = torch.cat([preprocessing.inverse(value[None]) for value in values[-600:]])
    assert torch.equal(preprocessing.inverse(values)[-600:], alone)
    assert preprocessing.inverse(torch.tensor([[math.nan]])).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_levels=1), "num_levels: expected at least 2 or None, got 1"),
        (dict(alpha=0.0), "alpha: expected a number between 0 and 0.5, got 0.0"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing((2,), **arguments)
