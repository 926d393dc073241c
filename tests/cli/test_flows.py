"""`genssl-fast train`, `sample` and `likelihood` with normalizing flows."""

import math
import re

import numpy as np
import pytest
import torch

from genssl_fast.checkpoint import load_checkpoint
from genssl_fast.data import Scale, load_dataset
from genssl_fast.flow_model import FlowModel, FlowModelConfig
from genssl_fast.flows import FLOWS
from genssl_fast.training import FlowTrainer, FlowTrainingConfig

TRAINING = ("--steps", 4, "--batch", 8, "--validate-every", 2, "--threads", 1)
SMALL = {
    "nice": ("--layers", 2, "--hidden", 8),
    "realnvp": ("--layers", 2, "--hidden", 8, "--depth", 1, "--dropout", 0.5),
    "spline": ("--layers", 2, "--hidden", 8, "--bins", 4),
    "maf": ("--layers", 2, "--hidden", 8),
    "iaf": ("--layers", 2, "--hidden", 8),
    "glow": ("--scales", 1, "--steps-per-scale", 2, "--hidden", 4),
    "planar": ("--layers", 2),
    "made": ("--hidden", 8),
}


@pytest.fixture
def table(tmp_path):
    """Rows [200, 3] whose columns differ in magnitude, beside one that never varies."""
    path, generator = tmp_path / "table.npy", np.random.RandomState(0)
    columns = 1.7e9 + 100 * generator.randn(200), 1e-6 * generator.randn(200), np.full(200, 0.5)
    np.save(path, np.stack(columns, axis=1))
    return path


@pytest.fixture
def data(tmp_path):
    """Images [40, 1, 4, 4] of 8 bits."""
    path = tmp_path / "images.npy"
    np.save(path, np.random.RandomState(0).randint(0, 256, (40, 1, 4, 4), dtype=np.uint8))
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained flow of digits whose samples and likelihoods depend on its weights."""
    options = {"layers": 2, "hidden": [8]}
    config = FlowModelConfig((1, 8, 8), "realnvp", options, num_levels=17, scale=Scale(0, 16))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FlowModel(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save(tmp_path / "flow.safetensors")
    return tmp_path / "flow.safetensors"


@pytest.mark.parametrize("model", FLOWS)
def test_every_flow_is_trained_sampled_and_evaluated(run, data, tmp_path, model):
    out, samples = tmp_path / "flow.safetensors", tmp_path / "samples.npy"
    result = run("train", "--model", model, "--data", data, "--out", out, *TRAINING, *SMALL[model])
    assert result.code == 0, result.err
    assert re.search(r"trained for 4 steps; validation \d+\.\d+ bits per dimension$", result.out.strip())
    config = load_checkpoint(out).config
    assert config["model"]["flow"] == model
    assert config["model"]["num_levels"] == 256
    assert config["training"]["validate_every"] == 2

    result = run("sample", "--checkpoint", out, "--count", 12, "--out", samples, "--batch", 5)
    assert result.code == 0, result.err
    drawn = np.load(samples)
    assert drawn.shape == (12, 1, 4, 4)
    np.testing.assert_allclose(drawn, drawn.round().clip(0, 255), atol=1e-4)

    result = run("likelihood", "--checkpoint", out, "--data", data)
    assert result.code == 0, result.err
    assert "40 samples, log-likelihood -" in result.out
    assert 6 < float(re.search(r"(\d+\.\d+) bits per dimension", result.out)[1]) < 12


def test_columns_of_every_magnitude_are_learned(run, table, tmp_path):
    """A NICE that is not trained is a normal density of every column."""
    out, log_prob, samples = tmp_path / "table.safetensors", tmp_path / "nats.npy", tmp_path / "samples.npy"
    options = ("--steps", 1, "--learning-rate", 1e-9, "--held-out", 0, "--threads", 1)
    result = run("train", "--model", "nice", "--data", table, "--out", out, *options)
    assert result.code == 0, result.err
    result = run("likelihood", "--checkpoint", out, "--data", table, "--out", log_prob)
    assert "bits per dimension" not in result.out

    rows = torch.from_numpy(np.load(table))
    mean, std = rows.mean(0), rows.std(0, correction=0)
    # The last column has the range of its magnitude.
    std[2] = 0.5
    expected = torch.distributions.Normal(mean, std).log_prob(rows).sum(1)
    np.testing.assert_allclose(np.load(log_prob), expected, rtol=1e-5)
    found = float(re.search(r"log-likelihood (-?\d+\.\d+) ±", result.out)[1])
    assert found == pytest.approx(float(expected.mean()), abs=1e-3)

    assert run("sample", "--checkpoint", out, "--count", 4000, "--out", samples).code == 0
    drawn = np.load(samples)
    np.testing.assert_allclose(drawn.std(0), std, rtol=0.05)
    assert len(np.unique(drawn[:, 0])) > 3990
    assert (abs(drawn.mean(0) - mean.numpy()) < 0.1 * std.numpy()).all()


def test_training_and_likelihood_have_one_unit(run, tmp_path):
    out = tmp_path / "moons.safetensors"
    options = ("--steps", 4, "--validate-every", 4, "--layers", 2, "--hidden", 8, "--ema", 0.5)
    result = run("train", "--model", "realnvp", "--data", "moons", "--out", out, *options)
    assert "training, loss in nats: 4/4 steps" in result.err
    validation = float(re.search(r"validation (\d+\.\d+) nats$", result.out.strip())[1])
    held_out = load_dataset("moons").samples[9::10]
    np.save(tmp_path / "held_out.npy", Scale(-3, 3).restore(held_out).numpy())
    result = run("likelihood", "--checkpoint", out, "--data", tmp_path / "held_out.npy")
    assert f"log-likelihood {-validation:.2f}" in result.out
    assert result.out.strip().endswith(" nats")


def test_run_of_a_checkpoint_with_one_scale_goes_on(run, table, tmp_path):
    """As those were that came before scales of entries."""
    out, rows = tmp_path / "old.safetensors", np.load(table)
    dataset = load_dataset(table)
    config = FlowModelConfig((3,), "nice", {"layers": 2, "hidden": [8]}, scale=dataset.scale)
    trainer = FlowTrainer(config, FlowTrainingConfig(steps=3))
    trainer.train_step(dataset.samples)
    trainer.save(f"{out}.training", data=str(table), command="")
    trainer.save_model(out, data=str(table), command="")
    assert load_checkpoint(out).config["model"]["scale"] == [rows.min(), rows.max()]
    result = run("train", "--resume", "--out", out)
    assert result.code == 0, result.err
    assert run("likelihood", "--checkpoint", out, "--data", table).code == 0
    assert run("sample", "--checkpoint", out, "--count", 2, "--out", tmp_path / "a.npy").code == 0
    assert np.load(tmp_path / "a.npy").dtype == np.float32


def test_options_that_make_no_flow_leave_no_files(run, data, tmp_path):
    folder = tmp_path / "new"
    command = ("train", "--data", data, "--out", folder / "a.safetensors", *TRAINING)
    result = run(*command, "--model", "spline", "--bins", 65, "--layers", 2, "--hidden", 8)
    assert result.code == 1
    assert "64" in result.err
    assert not folder.exists()
    assert run(*command, *("--model", "spline"), *SMALL["spline"]).code == 0


def test_options_become_the_arguments_of_the_flow(run, data, tmp_path):
    out = tmp_path / "flow.safetensors"
    command = ("train", "--model", "realnvp", "--data", data, "--out", out, *TRAINING, "--alpha", 0.01)
    options = ("--layers", 3, "--hidden", 8, "--depth", 3, "--dropout", 0.25, "--linear", "--no-actnorm")
    assert run(*command, *options).code == 0
    model = load_checkpoint(out).config["model"]
    expected = {"layers": 3, "hidden": [8, 8, 8], "dropout": 0.25, "linear": True, "actnorm": False}
    assert model["options"] == expected
    assert model["alpha"] == 0.01


def test_stopped_run_goes_on_as_if_nothing_had_happened(run, data, tmp_path):
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    command = ("train", "--model", "realnvp", "--data", data, *TRAINING, *SMALL["realnvp"])
    assert run(*command, "--out", whole).code == 0
    result = run(*command, "--out", stopped, "--minutes", 1e-9)
    assert "--resume" in result.out
    assert run("train", "--resume", "--out", stopped, *SMALL["realnvp"]).code == 0
    tensors, expected = (load_checkpoint(path).tensors for path in (stopped, whole))
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nice"), "model: expected 'realnvp', with which the run was begun, got 'nice'"),
        (("--hidden", 9), r"hidden: expected \[8\], with which the run was begun, got \[9\]"),
        (("--depth", 2), r"hidden: expected \[8\], with which the run was begun, got \[8, 8\]"),
        (("--alpha", 0.2), "alpha: expected 0.05, with which the run was begun, got 0.2"),
        (("--patience", 3), "patience: expected 10, with which the run was begun, got 3"),
        (("--process", "ve"), "process: expected no such option with --model realnvp, got ve"),
    ],
)
def test_resuming_with_other_settings_is_refused(run, data, tmp_path, options, message):
    out = tmp_path / "flow.safetensors"
    command = ("train", "--model", "realnvp", "--data", data, "--out", out, *TRAINING)
    assert run(*command, *SMALL["realnvp"]).code == 0
    result = run("train", "--resume", "--out", out, *options)
    assert result.code == 1
    assert re.search(message, result.err)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("score", ("--layers", 3)),
        ("score", ("--patience", 3)),
        ("nice", ("--bins", 4)),
        ("made", ("--layers", 3)),
        ("maf", ("--dropout", 0.1)),
        ("glow", ("--depth", 2)),
        ("spline", ("--blocks", 2)),
    ],
)
def test_options_of_other_models_are_refused(run, data, tmp_path, model, options):
    result = run("train", "--model", model, "--data", data, "--out", tmp_path / "a.safetensors", *options)
    assert result.code == 1
    name = options[0].removeprefix("--")
    assert f"{name}: expected no such option with --model {model}, got {options[1]}" in result.err


def test_samples_are_those_of_the_model_whatever_the_batch(run, checkpoint, tmp_path):
    expected = FlowModel.load(checkpoint).sample(20, seed=3).numpy()
    for batch in (20, 7, 1):
        out = tmp_path / f"{batch}.npy"
        command = ("sample", "--checkpoint", checkpoint, "--count", 20, "--seed", 3, "--out", out)
        assert run(*command, "--batch", batch).code == 0
        np.testing.assert_array_equal(np.load(out), expected)


@pytest.mark.parametrize("model", FLOWS)
def test_samples_of_plans_are_the_same_bits_in_every_batch(run, data, tmp_path, model):
    out = tmp_path / "flow.safetensors"
    options = (*TRAINING, "--learning-rate", 0.1, *SMALL[model])
    assert run("train", "--model", model, "--data", data, "--out", out, *options).code == 0
    assert FlowModel.load(out).samples_are_exact == (model != "planar")
    drawn = []
    for batch in (300, 7, 1):
        command = ("sample", "--checkpoint", out, "--count", 300, "--out", tmp_path / f"{batch}.npy")
        assert run(*command, "--batch", batch).code == 0
        drawn.append(np.load(tmp_path / f"{batch}.npy"))
    if FlowModel.load(out).samples_are_exact:
        np.testing.assert_array_equal(drawn[1], drawn[0])
        np.testing.assert_array_equal(drawn[2], drawn[0])


@pytest.mark.parametrize(("model", "refused"), [("planar", True), ("glow", False)])
def test_run_goes_on_with_another_batch_where_that_gives_the_same_bits(
    run, data, tmp_path, monkeypatch, model, refused
):
    out, samples = tmp_path / "flow.safetensors", tmp_path / "samples.npy"
    assert run("train", "--model", model, "--data", data, "--out", out, *TRAINING, *SMALL[model]).code == 0
    command = ("sample", "--checkpoint", out, "--count", 12, "--out", samples)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FlowModel, "sample", interrupt)
        assert run(*command, "--batch", 5).code == 130
    result = run(*command, "--batch", 4)
    assert (result.code == 1) == refused
    if refused:
        assert "batch: expected 5, with which" in result.err
        assert "threads: expected" in run(*command, "--batch", 5, "--threads", 3).err
        assert run(*command, "--batch", 5, "--threads", 1).code == 0


def test_points_are_not_called_images(run, checkpoint, tmp_path):
    result = run("sample", "--checkpoint", checkpoint, "--count", 5, "--out", tmp_path / "a.npy")
    assert "drawing: 5/5 samples" in result.err


def test_sampler_options_are_refused_for_flows(run, checkpoint, tmp_path):
    command = ("sample", "--checkpoint", checkpoint, "--count", 2, "--out", tmp_path / "a.npy")
    for name, value in (("sampler", "ddim"), ("steps", 5), ("backend", "eager")):
        result = run(*command, f"--{name}", value)
        assert result.code == 1
        assert f"{name}: expected no such option for {checkpoint}, which is a flow" in result.err


def test_samples_that_are_not_finite_are_reported(run, checkpoint, tmp_path, monkeypatch):
    drawn = torch.full((2, 1, 8, 8), math.nan)
    monkeypatch.setattr(FlowModel, "sample", lambda self, count, **_: drawn)
    result = run("sample", "--checkpoint", checkpoint, "--count", 2, "--out", tmp_path / "a.npy")
    assert result.code == 1
    assert "samples: expected finite numbers, got NaN or infinity in 0 to 1" in result.err


def test_likelihood_is_that_of_the_model(run, checkpoint, tmp_path):
    dataset = load_dataset("digits:test")
    digits = dataset.scale.restore(dataset.samples)
    model = FlowModel.load(checkpoint)
    expected = (model.log_prob(digits, seed=5) + model.log_prob(digits, seed=6)) / 2
    out = tmp_path / "new folder" / "log_prob.npy"
    command = ("likelihood", "--checkpoint", checkpoint, "--data", "digits:test", "--out", out)
    result = run(*command, "--seed", 5, "--draws", 2, "--batch", 100)
    assert result.code == 0, result.err
    np.testing.assert_allclose(np.load(out), expected.numpy(), rtol=1e-4)
    mean = float(expected.mean())
    assert f"digits:test: 360 samples, log-likelihood {mean:.1f}"[:-1] in result.out
    assert f"{-mean / 64 / math.log(2):.3f}"[:-1] in result.out


def test_likelihood_of_one_sample_has_no_spread(run, checkpoint, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((1, 1, 8, 8), dtype=np.uint8))
    result = run("likelihood", "--checkpoint", checkpoint, "--data", tmp_path / "one.npy")
    assert result.code == 0, result.err
    assert re.search(r"1 sample, log-likelihood -\d+\.\d+ nats, \d+\.\d+ bits per dimension", result.out)


def test_likelihood_of_bad_input_takes_one_line(run, checkpoint, tmp_path):
    (tmp_path / "file").touch()
    np.save(tmp_path / "unit.npy", np.random.RandomState(0).rand(9, 1, 8, 8))
    np.save(tmp_path / "bytes.npy", np.full((9, 1, 8, 8), 200, dtype=np.uint8))
    digits = ("--data", "digits:test")
    for arguments, message in (
        (("--checkpoint", checkpoint, "--data", "moons"), "shape [1, 8, 8], like those of the checkpoint"),
        (("--checkpoint", checkpoint, "--data", tmp_path / "unit.npy"), "17 levels from 0 to 16"),
        (("--checkpoint", checkpoint, "--data", tmp_path / "bytes.npy"), "in every entry, got 200"),
        (("--checkpoint", tmp_path / "none", *digits), "no such file"),
        (("--checkpoint", checkpoint, *digits, "--out", tmp_path / "file" / "a.npy"), "can be written"),
    ):
        result = run("likelihood", *arguments)
        assert result.code == 1
        assert message in result.err.splitlines()[-1]
        assert "Traceback" not in result.err


def test_likelihood_is_printed_though_it_cannot_be_saved(run, checkpoint, tmp_path):
    (tmp_path / "file").touch()
    command = ("likelihood", "--checkpoint", checkpoint, "--data", "digits:test")
    result = run(*command, "--out", tmp_path / "file" / "a.npy")
    assert result.code == 1
    assert "bits per dimension" in result.out


def test_alpha_is_of_levels(run, tmp_path):
    command = ("train", "--model", "nice", "--data", "moons", "--out", tmp_path / "a.safetensors")
    assert "alpha: expected no such option for continuous data, got 0.1" in run(*command, "--alpha", 0.1).err


def test_divergence_is_called_so(run, tmp_path):
    command = ("train", "--model", "realnvp", "--data", "moons", "--out", tmp_path / "a.safetensors")
    result = run(*command, "--steps", 300, "--learning-rate", 1e6, "--layers", 2, "--hidden", 8)
    assert result.code == 1
    assert re.search(r"at step \d+; try a lower --learning-rate", result.err)
