"""`genssl-fast train` and `embed` with self-supervised learning."""

import os
import re
import signal

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from genssl_fast.checkpoint import load_checkpoint
from genssl_fast.data import load_dataset
from genssl_fast.ssl import METHODS
from genssl_fast.ssl_model import SSLModel, SSLModelConfig
from genssl_fast.ssl_training import SSLTrainer

TRAINING = ("--steps", 6, "--batch", 8, "--threads", 1)


@pytest.fixture
def recipe(tmp_path):
    """A small SimCLR."""
    path = tmp_path / "small.toml"
    path.write_text('method = "simclr"\n[backbone]\nwidths = [4, 8]\n[options]\nhidden = 8\n')
    return path


@pytest.fixture
def data(tmp_path):
    """Images [40, 1, 12, 12] of four classes, each of its own brightness, with their labels."""
    path, generator = tmp_path / "images.npz", np.random.RandomState(0)
    labels = np.arange(40) % 4
    noise = generator.randint(0, 40, (40, 1, 12, 12))
    samples = (50 * labels[:, None, None, None] + noise).astype(np.uint8)
    np.savez(path, samples=samples, labels=labels)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained backbone of nuisance digits."""
    path = tmp_path / "untrained.safetensors"
    dataset = load_dataset("nuisance_digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = SSLModelConfig((1, 16, 16), "vicreg", backbone={"widths": [4, 8]}, scale=dataset.scale)
        SSLModel(config).save(path)
    return path


@pytest.mark.parametrize("model", METHODS)
def test_every_method_trains_and_embeds(run, data, tmp_path, model):
    out, features = tmp_path / "model.safetensors", tmp_path / "features.npz"
    result = run("train", "--model", model, "--data", data, "--out", out, *TRAINING)
    assert result.code == 0, result.err
    assert re.search(r"trained for 6 steps; spread \d\.\d+; rank \d+\.?\d*$", result.out.strip())
    assert "training: 6/6 steps  loss " in result.err
    config = load_checkpoint(out).config
    assert config["model"]["method"] == config["recipe"] == model
    assert config["training"]["batch"] == 8

    result = run("embed", "--checkpoint", out, "--data", data, "--out", features)
    assert result.code == 0, result.err
    assert re.search(
        r"nearest neighbours \d+\.\d%, linear probe \d+\.\d% of 8, every fifth sample", result.out
    )
    found = np.load(features)
    dataset = load_dataset(data)
    expected = SSLModel.load(out).embed(dataset.scale.restore(dataset.samples))
    np.testing.assert_allclose(found["features"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["labels"], np.arange(40) % 4)


def interrupt_after(monkeypatch, steps):
    step = SSLTrainer.train_step

    def train_step(self, samples):
        if self.step + 1 == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, samples)

    monkeypatch.setattr(SSLTrainer, "train_step", train_step)


def test_interrupted_run_goes_on_as_if_nothing_had_happened(run, data, recipe, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    command = ("train", "--model", "simclr", "--recipe", recipe, "--data", data, *TRAINING)
    assert run(*command, "--out", whole).code == 0
    interrupt_after(monkeypatch, 3)
    result = run(*command, "--out", stopped)
    monkeypatch.undo()
    assert result.code == 130
    assert "stopped at step 3" in result.err
    assert run("embed", "--checkpoint", stopped, "--data", data).code == 0
    assert run("train", "--resume", "--out", stopped).code == 0
    tensors, expected = (load_checkpoint(path).tensors for path in (stopped, whole))
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_runs_are_limited_and_not_overwritten_by_accident(run, data, recipe, tmp_path):
    out = tmp_path / "model.safetensors"
    command = ("train", "--model", "simclr", "--recipe", recipe, "--data", data, "--out", out, *TRAINING)
    result = run(*command, "--minutes", 1e-9)
    assert result.code == 0
    assert "trained for 0 steps" in result.out
    assert "--resume to go on or --overwrite to begin anew" in run(*command).err
    assert run(*command, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "byol"), "model: expected 'simclr', with which the run was begun, got 'byol'"),
        (
            ("--recipe", "simclr"),
            r"recipe: expected '.*small.toml', with which the run was begun, got 'simclr'",
        ),
        (("--weight-decay", 0.5), "weight_decay: expected 0.0001, with which the run was begun, got 0.5"),
        (("--hidden", 9), "hidden: expected no such option with --model simclr, got 9"),
    ],
)
def test_resuming_with_other_settings_is_refused(run, data, recipe, tmp_path, options, message):
    out = tmp_path / "model.safetensors"
    command = ("train", "--model", "simclr", "--recipe", recipe, "--data", data, "--out", out, *TRAINING)
    assert run(*command).code == 0
    result = run("train", "--resume", "--out", out, *options)
    assert result.code == 1
    assert re.search(message, result.err)


def test_bad_input_takes_one_line(run, data, recipe, tmp_path):
    out = tmp_path / "model.safetensors"
    (tmp_path / "bad.toml").write_text('method = "simclr"\n[options]\ntemperatur = 1')
    for arguments, message in (
        (
            ("--model", "simclr", "--data", "moons"),
            "shape: expected that of images, [C, H, W] or [H, W], got [2]",
        ),
        (("--model", "simclr", "--data", data, "--batch", 41), "batch: expected at most 40"),
        (
            ("--model", "simclr", "--data", data, "--process", "ve"),
            "process: expected no such option with --model",
        ),
        (("--model", "byol", "--data", data, "--recipe", recipe), "recipe: expected one for --model byol"),
        (("--model", "simclr", "--data", data, "--recipe", "none"), "recipe: expected one of barlow_twins"),
        (("--model", "simclr", "--data", data, "--recipe", tmp_path / "bad.toml"), "argument 'temperatur'"),
        (
            ("--model", "maf", "--data", data, "--recipe", "simclr"),
            "recipe: expected no such option with --model maf",
        ),
    ):
        result = run("train", *arguments, "--out", out)
        assert result.code == 1
        assert message in result.err
        assert len(result.err.splitlines()) == 1
        assert not out.exists()


def test_collapse_is_reported_while_training(run, data, recipe, tmp_path, monkeypatch):
    loss = SSLModel.loss

    def collapsed(self, samples, **options):
        value = loss(self, samples, **options)
        self.method.embeddings = torch.ones(8, 4)
        return value

    monkeypatch.setattr(SSLModel, "loss", collapsed)
    recipe.write_text(recipe.read_text() + "[training]\nwarmup = 2\n")
    command = ("train", "--model", "simclr", "--recipe", recipe, "--data", data, *TRAINING)
    result = run(*command, "--out", tmp_path / "model.safetensors")
    assert result.code == 0
    lines = [line for line in result.err.splitlines() if "warning" in line]
    assert lines == [
        "genssl-fast train: warning: embeddings of simclr have collapsed to a point: their standard "
        "deviation is 0 of 1/sqrt(4), expected at least 0.1, at step 6"
    ]


def test_bundled_data_are_probed_on_their_held_out_part(run, checkpoint):
    result = run("embed", "--checkpoint", checkpoint, "--data", "nuisance_digits")
    assert result.code == 0, result.err
    assert "nuisance_digits: 1437 samples, 8 features; spread 0." in result.out
    assert "of 360, nuisance_digits:test" in result.out


def test_test_data_may_be_named(run, checkpoint):
    options = ("--data", "nuisance_digits:test", "--test", "nuisance_digits")
    result = run("embed", "--checkpoint", checkpoint, *options)
    assert "of 1437, nuisance_digits" in result.out


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_features_are_saved_and_drawn(run, checkpoint, tmp_path, projection):
    out, picture = tmp_path / "new" / "features.safetensors", tmp_path / "new" / "picture.png"
    options = ("--out", out, "--picture", picture, "--projection", projection)
    result = run("embed", "--checkpoint", checkpoint, "--data", "nuisance_digits:test", *options)
    assert result.code == 0, result.err
    found = safetensors.torch.load_file(out)
    assert found["features"].shape == (360, 8)
    assert torch.equal(found["labels"], load_dataset("nuisance_digits:test").labels)
    assert Image.open(picture).size[0] > 500


def test_data_without_labels_are_embedded(run, checkpoint, tmp_path):
    np.save(tmp_path / "images.npy", np.random.RandomState(0).rand(12, 1, 16, 16))
    options = (
        "--data",
        tmp_path / "images.npy",
        "--out",
        tmp_path / "a.npz",
        "--picture",
        tmp_path / "a.png",
    )
    result = run("embed", "--checkpoint", checkpoint, *options)
    assert result.code == 0, result.err
    assert "probe" not in result.out
    assert np.load(tmp_path / "a.npz").files == ["features"]


def test_collapsed_features_are_reported(run, checkpoint):
    model = SSLModel.load(checkpoint)
    torch.nn.init.zeros_(model.method.backbone[-4].weight)  # the last normalization
    torch.nn.init.ones_(model.method.backbone[-4].bias)
    model.save(checkpoint)
    result = run("embed", "--checkpoint", checkpoint, "--data", "nuisance_digits")
    assert result.code == 0
    assert "genssl-fast embed: warning: features have collapsed to a point" in result.err


def test_embedding_bad_input_takes_one_line(run, checkpoint, tmp_path):
    (tmp_path / "file").touch()
    np.save(tmp_path / "plain.npy", np.random.RandomState(0).rand(12, 1, 16, 16))
    np.savez(
        tmp_path / "labels.npz", samples=np.zeros((3, 1, 16, 16), np.uint8), labels=np.zeros(2, np.int64)
    )
    digits = ("--data", "nuisance_digits")
    for arguments, message in (
        (("--checkpoint", checkpoint, "--data", "digits"), "shape [1, 16, 16], like those of the checkpoint"),
        (
            ("--checkpoint", checkpoint, *digits, "--test", tmp_path / "plain.npy"),
            "test: expected labelled data",
        ),
        (("--checkpoint", checkpoint, "--data", tmp_path / "labels.npz"), "data: expected integers 'labels'"),
        (("--checkpoint", tmp_path / "none", *digits), "no such file"),
        (("--checkpoint", checkpoint, *digits, "--out", tmp_path / "file" / "a.npz"), "out: expected a path"),
        (
            ("--checkpoint", checkpoint, *digits, "--picture", tmp_path / "file" / "a.png"),
            "picture: expected a",
        ),
    ):
        result = run("embed", *arguments)
        assert result.code == 1
        assert message in result.err.splitlines()[-1]
        assert "Traceback" not in result.err


def test_other_checkpoints_are_refused(run, checkpoint, tmp_path):
    result = run("sample", "--checkpoint", checkpoint, "--count", 2, "--out", tmp_path / "a.npy")
    assert result.code == 1
    assert "expected a score_model or flow_model, got 'ssl_model'" in result.err
