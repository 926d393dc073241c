"""Training that stops and goes on, and objectives of every process."""

import pytest
import torch

from genssl_fast.checkpoint import CheckpointError, save_checkpoint
from genssl_fast.data import Scale
from genssl_fast.score_model import PROCESSES, WEIGHTINGS, ScoreModel, ScoreModelConfig
from genssl_fast.training import ScoreTrainer, TrainingConfig

DATA = torch.rand(50, 1, 2, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
MODEL = ScoreModelConfig((1, 2, 3), hidden=8, blocks=1, embed=4, time_dim=4, scale=Scale(0, 16))


def trained(steps, config=TrainingConfig(steps=6, batch=4, seed=3)):
    trainer = ScoreTrainer(MODEL, config)
    losses = [trainer.train_step(DATA) for _ in range(steps)]
    return trainer, losses


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_resumed_run_ends_with_the_same_bits(tmp_path):
    whole, losses = trained(6)
    trained(2)[0].save(tmp_path / "state", data="digits")
    resumed, facts = ScoreTrainer.load(tmp_path / "state")
    assert facts == {"data": "digits"}
    assert [resumed.train_step(DATA) for _ in range(4)] == losses[2:]
    for kind in ("model", "average"):
        ours, theirs = weights(getattr(resumed, kind)), weights(getattr(whole, kind))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), kind


def test_runs_do_not_disturb_the_default_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    trained(1)
    assert torch.equal(torch.rand(1), expected)


def test_batches_go_through_the_data(monkeypatch):
    seen = []
    loss = ScoreModel.loss

    def record(self, x0, **options):
        seen.append(x0.flatten(1)[:, 0])
        return loss(self, x0, **options)

    monkeypatch.setattr(ScoreModel, "loss", record)
    trained(6, TrainingConfig(steps=6, batch=100))
    assert not torch.equal(seen[0], seen[1])
    assert set(torch.cat(seen).tolist()) == set(DATA[:, 0, 0, 0].tolist())


def test_average_and_learning_rate_follow_their_formulas():
    config = TrainingConfig(steps=4, batch=4, warmup=2, ema=0.5, learning_rate=1e-2)
    trainer = ScoreTrainer(MODEL, config)
    average, rates = weights(trainer.average), []
    for step in range(4):
        trainer.train_step(DATA)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        decay = min(0.5, (2 + step) / (11 + step))
        for name, parameter in weights(trainer.model).items():
            average[name] = decay * average[name] + (1 - decay) * parameter
    assert rates == pytest.approx([0.005, 0.01 * (2 + 2**0.5) / 4, 0.005, 0.01 * (2 - 2**0.5) / 4])
    for name, parameter in weights(trainer.average).items():
        torch.testing.assert_close(parameter, average[name])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_trains_and_samples(process, weighting):
    config = ScoreModelConfig((2,), process=process, hidden=16, blocks=1, embed=8, time_dim=8)
    trainer = ScoreTrainer(config, TrainingConfig(steps=10, batch=8, weighting=weighting))
    data = torch.tensor([[0.5, -0.5]])
    losses = torch.stack([trainer.train_step(data) for _ in range(10)])
    assert losses.isfinite().all()
    samples = trainer.average.sample(4, steps=5, seed=0)
    assert samples.shape == (4, 2)
    assert samples.abs().max() <= 1


@pytest.mark.parametrize("process", PROCESSES)
def test_training_learns_a_point(process):
    config = ScoreModelConfig((2,), process=process, hidden=32, blocks=2, embed=16, time_dim=16)
    schedule = TrainingConfig(steps=150, batch=64, learning_rate=1e-2, warmup=5, ema=0.9)
    trainer = ScoreTrainer(config, schedule)
    point = torch.tensor([[0.5, -0.5]])
    for _ in range(150):
        trainer.train_step(point)
    samples = trainer.average.sample(64, steps=20, seed=0)
    assert (samples - point).abs().mean() < 0.1


def test_model_comes_back_with_its_configuration(tmp_path):
    trainer, _ = trained(2)
    trainer.save_model(tmp_path / "model.safetensors", data="digits")
    model = ScoreModel.load(tmp_path / "model.safetensors")
    assert model.config == MODEL
    assert torch.equal(model.sample(3, steps=3, seed=0), trainer.average.sample(3, steps=3, seed=0))
    assert model.sample(3, steps=3, seed=0).min() >= 0


def test_samples_do_not_depend_on_the_share():
    model = trained(2)[0].average
    whole = model.sample(5, steps=4, sampler="ddpm", seed=9)
    assert torch.equal(whole[3:], model.sample(2, steps=4, sampler="ddpm", seed=9, first_sample=3))


def test_other_checkpoints_are_refused(tmp_path):
    trainer, _ = trained(1)
    trainer.save(tmp_path / "state", data="digits")
    with pytest.raises(CheckpointError, match="expected a score_model, got 'training_state'"):
        ScoreModel.load(tmp_path / "state")
    trainer.save_model(tmp_path / "model")
    with pytest.raises(CheckpointError, match="expected a training_state, got 'score_model'"):
        ScoreTrainer.load(tmp_path / "model")
    save_checkpoint(tmp_path / "odd", {}, {"kind": "score_model", "model": {"shape": [2]}})
    with pytest.raises(CheckpointError, match="weights that fit"):
        ScoreModel.load(tmp_path / "odd")


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch", 0), ("learning_rate", 0.0), ("ema", 1.0), ("weighting", "none")],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got {value!r}"):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("steps", "9"), ("batch", 2.0), ("learning_rate", None)])
def test_settings_of_another_type_are_named(name, value):
    with pytest.raises(TypeError, match=f"^{name}: expected an? (integer|number), got"):
        TrainingConfig(**{name: value})


def test_unknown_process_is_named():
    with pytest.raises(ValueError, match="process: expected one of 'vp', 'subvp', 've', got 'vpx'"):
        ScoreModelConfig((2,), process="vpx")
