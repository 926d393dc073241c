"""A flow with its preprocessing: units, checkpoints, likelihoods."""

import math

import pytest
import torch

from genssl_fast.checkpoint import CheckpointError, save_checkpoint
from genssl_fast.data import Scale
from genssl_fast.flow_model import FlowModel, FlowModelConfig

SMALL = {"layers": 2, "hidden": [8]}
DISCRETE = FlowModelConfig((1, 2, 3), "realnvp", SMALL, num_levels=17, scale=Scale(0, 16))
CONTINUOUS = FlowModelConfig((2,), "realnvp", SMALL, scale=Scale(-4, 6))
PER_ENTRY = FlowModelConfig((2,), "realnvp", SMALL, scale=Scale((-1e6, 1e-6), (3e6, 2e-6)))


def model(config, seed=0):
    """A model whose samples depend on its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FlowModel(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_probabilities_of_all_levels_add_to_one():
    # The density outside the range of the logit is lost; a small alpha makes it little.
    config = FlowModelConfig((2,), "realnvp", SMALL, num_levels=4, alpha=1e-4, scale=Scale(0, 3))
    flow = model(config)
    levels = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    draws = torch.stack([flow.log_prob(levels, seed=seed) for seed in range(400)])
    # exp(log p(v + u)) is an unbiased estimate of P(v).
    total = draws.double().exp().mean(0).sum()
    assert float(total) == pytest.approx(1, abs=0.02)


def test_density_integrates_to_one_in_units_of_the_data():
    flow = model(CONTINUOUS)
    axis = torch.linspace(-40, 42, 800)
    density = flow.log_prob(torch.cartesian_prod(axis, axis)).double().exp()
    cell = float(axis[1] - axis[0]) ** 2
    assert float(density.sum()) * cell == pytest.approx(1, abs=5e-3)


def test_samples_are_levels_of_the_data():
    samples = model(DISCRETE).sample(20, seed=0)
    assert samples.shape == (20, 1, 2, 3)
    torch.testing.assert_close(samples, samples.round().clamp(0, 16), rtol=0, atol=1e-5)
    assert samples.unique().numel() > 5


def test_samples_do_not_depend_on_the_share():
    flow = model(CONTINUOUS)
    whole = flow.sample(7, seed=3)
    torch.testing.assert_close(whole[4:], flow.sample(3, seed=3, first_sample=4))
    assert not torch.equal(whole, flow.sample(7, seed=4))


@pytest.mark.parametrize("config", [DISCRETE, CONTINUOUS, PER_ENTRY])
def test_likelihoods_agree_with_the_loss(config):
    flow = model(config)
    data, entries = flow.sample(30, seed=1), math.prod(config.shape)
    loss = flow.loss(config.scale.normalize(data).float(), seed=5, step=0)
    torch.testing.assert_close(flow.bits_per_dim(data, seed=5).mean(), loss)
    log_prob = flow.log_prob(data, seed=5)
    torch.testing.assert_close(log_prob, -flow.bits_per_dim(data, seed=5) * entries * math.log(2))
    reported = -log_prob.mean() if flow.unit == "nats" else flow.bits_per_dim(data, seed=5).mean()
    assert flow.in_unit(float(loss.detach())) == pytest.approx(float(reported), rel=1e-5)
    assert loss.requires_grad


def test_every_entry_has_its_scale():
    flow, plain = model(PER_ENTRY), model(FlowModelConfig((2,), "realnvp", SMALL))
    low, high = (torch.tensor(bound, dtype=torch.float64) for bound in PER_ENTRY.scale)
    unit, samples = plain.sample(50, seed=0), flow.sample(50, seed=0)
    assert samples.dtype == torch.float64
    torch.testing.assert_close(samples, low + (unit.double() + 1) / 2 * (high - low), rtol=1e-12, atol=0)
    expected = plain.log_prob(unit) - float(((high - low) / 2).log().sum())
    torch.testing.assert_close(flow.log_prob(samples), expected)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.37, "0.37"), (16.9, "16.9"), (255.0, "255"), (-1.0, "-1"), (math.nan, "nan")]
)
def test_data_that_are_no_levels_are_refused(value, shown):
    data = torch.full((2, 1, 2, 3), 4.0)
    model(DISCRETE).log_prob(data + 1e-4)
    data[1, 0, 1, 2] = value
    message = f"x: expected one of 17 levels from 0 to 16 in every entry, got {shown}$"
    with pytest.raises(ValueError, match=message):
        model(DISCRETE).log_prob(data)


@pytest.mark.parametrize(
    ("settings", "shape"), [(dict(shape=(3,)), r"\[2\]"), (dict(shape=(2,), num_levels=4), r"\[2\]")]
)
def test_scales_that_fit_no_sample_are_named(settings, shape):
    with pytest.raises(ValueError, match=rf"scale: expected one range, .*, got shape {shape}"):
        FlowModelConfig(scale=PER_ENTRY.scale, **settings)


@pytest.mark.parametrize("config", [DISCRETE, CONTINUOUS, PER_ENTRY])
def test_model_comes_back_as_it_was(tmp_path, config):
    saved = model(config)
    data = saved.sample(5, seed=0)
    saved.fit(config.scale.normalize(data).float(), seed=0)
    saved.eval().save(tmp_path / "flow.safetensors", data="somewhere")
    loaded = FlowModel.load(tmp_path / "flow.safetensors")
    assert loaded.config == config
    assert not loaded.training
    assert torch.equal(loaded.log_prob(data), saved.log_prob(data))


def test_other_checkpoints_are_refused(tmp_path):
    save_checkpoint(tmp_path / "score", {}, {"kind": "score_model"})
    with pytest.raises(CheckpointError, match="expected a flow_model, got 'score_model'"):
        FlowModel.load(tmp_path / "score")
    for content in ({"shape": [2]}, {"shape": [2], "flow": "none"}, {}):
        save_checkpoint(tmp_path / "odd", {}, {"kind": "flow_model", "model": content})
        with pytest.raises(CheckpointError, match="weights that fit"):
            FlowModel.load(tmp_path / "odd")


def test_unknown_flow_is_named():
    with pytest.raises(ValueError, match=r"flow: expected one of 'nice', .*, got 'vpx'"):
        FlowModelConfig((2,), "vpx")
