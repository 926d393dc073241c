"""Training of flows: early stopping, held-out samples, and runs that stop and go on."""

import pytest
import torch

from genssl_fast.checkpoint import CheckpointError
from genssl_fast.data import Scale, load_density
from genssl_fast.flow_model import FlowModel, FlowModelConfig
from genssl_fast.training import FlowTrainer, FlowTrainingConfig, Trainer

GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randint(17, (60, 1, 2, 3), generator=GENERATOR) / 8.0 - 1
OPTIONS = {"layers": 2, "hidden": [8], "dropout": 0.5}
MODEL = FlowModelConfig((1, 2, 3), "realnvp", OPTIONS, num_levels=17, scale=Scale(0, 16))


def trained(steps, **settings):
    config = FlowTrainingConfig(**dict(steps=6, batch=4, validate_every=2, seed=3) | settings)
    trainer = FlowTrainer(MODEL, config)
    losses = [trainer.train_step(DATA) for _ in range(steps)]
    return trainer, losses


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stop", [2, 3])
def test_resumed_run_ends_with_the_same_bits(tmp_path, stop):
    whole, losses = trained(6)
    trained(stop)[0].save(tmp_path / "state", data="digits")
    resumed, facts = Trainer.load(tmp_path / "state")
    assert isinstance(resumed, FlowTrainer)
    assert facts == {"data": "digits"}
    assert [resumed.train_step(DATA) for _ in range(6 - stop)] == losses[stop:]
    for kind in ("model", "average", "best"):
        assert_same(state(getattr(resumed, kind)), state(getattr(whole, kind)))
    assert (resumed.best_loss, resumed.best_step) == (whole.best_loss, whole.best_step)


def test_every_seed_trains():
    trainer, losses = trained(1, seed=(1 << 63) - 1)
    assert losses[0].isfinite()
    assert losses != trained(1, seed=0)[1]
    assert trainer.step == 1


def test_runs_do_not_disturb_the_default_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    trained(2)
    assert torch.equal(torch.rand(1), expected)


def test_held_out_samples_are_not_trained_on(monkeypatch):
    seen = []
    loss = FlowModel.loss

    def record(self, samples, **options):
        (seen if self.training else []).append(samples)
        return loss(self, samples, **options)

    monkeypatch.setattr(FlowModel, "loss", record)
    numbered = torch.arange(60.0).view(60, 1, 1, 1).expand(60, 1, 2, 3) / 30 - 1
    trainer = FlowTrainer(MODEL, FlowTrainingConfig(steps=20, batch=100, held_out=0.2))
    for _ in range(20):
        trainer.train_step(numbered)
    numbers = {round(30 * (float(sample.flatten()[0]) + 1)) for batch in seen for sample in batch}
    assert numbers == {number for number in range(60) if number % 5 != 4}


def test_training_stops_when_held_out_samples_are_explained_no_better(monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 1.5, 1.7, 1.6, 1.8, 1.0])
    averages = []
    monkeypatch.setattr(FlowModel, "fit", lambda self, samples, seed: None)
    trainer = FlowTrainer(MODEL, FlowTrainingConfig(steps=100, batch=4, validate_every=1, patience=3))
    assert trainer.best is trainer.average
    loss = FlowModel.loss

    def validation_loss(self, samples, **options):
        if self is not trainer.average:
            return loss(self, samples, **options)
        averages.append(state(self))
        return torch.tensor(next(losses))

    monkeypatch.setattr(FlowModel, "loss", validation_loss)
    while not trainer.finished:
        trainer.train_step(DATA)
    assert (trainer.step, trainer.best_step, trainer.best_loss) == (7, 4, 1.5)
    assert trainer.details == {"validation": 1.5}
    assert_same(state(trainer.best), averages[3])


def test_without_held_out_samples_all_steps_are_done():
    trainer, _ = trained(6, held_out=0.0, validate_every=1, patience=1)
    assert trainer.finished
    assert trainer.best is trainer.average
    assert trainer.details == {}


def test_training_finds_the_density_of_the_plane():
    data = load_density("two_rings", 2000)
    model = FlowModelConfig((2,), "spline", {"layers": 4, "hidden": [32, 32]}, scale=data.scale)
    trainer = FlowTrainer(model, FlowTrainingConfig(steps=150, batch=256, learning_rate=5e-3, ema=0.9))
    while not trainer.finished:
        trainer.train_step(data.samples)
    points = data.scale.restore(load_density("two_rings", 2000, seed=1).samples)
    gaussian = torch.distributions.MultivariateNormal(points.mean(0), points.T.cov())
    assert trainer.best.log_prob(points).mean() > gaussian.log_prob(points).mean() + 0.3


def test_best_weights_come_back_with_their_configuration(tmp_path):
    trainer, _ = trained(6)
    trainer.save_model(tmp_path / "model.safetensors", data="digits")
    model = FlowModel.load(tmp_path / "model.safetensors")
    assert model.config == MODEL
    assert_same(state(model), state(trainer.best))


def test_other_states_are_refused(tmp_path):
    trained(1)[0].save_model(tmp_path / "model")
    with pytest.raises(CheckpointError, match="expected a flow_training_state, got 'flow_model'"):
        FlowTrainer.load(tmp_path / "model")
    with pytest.raises(CheckpointError, match="expected a training_state or flow_training_state"):
        Trainer.load(tmp_path / "model")


def test_too_few_samples_are_named():
    trainer = FlowTrainer(MODEL, FlowTrainingConfig(steps=1, batch=4))
    with pytest.raises(ValueError, match="samples: expected at least 10, to hold one out, got 9"):
        trainer.train_step(DATA[:9])


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("weight_decay", -1.0), ("held_out", 0.6), ("validate_every", 0), ("patience", 0)],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got {value!r}"):
        FlowTrainingConfig(**{name: value})
