"""`genssl-fast train`: checkpoints, resumption, interruption, and what bad input gets."""

import os
import signal

import numpy as np
import pytest
import torch

from genssl_fast.checkpoint import load_checkpoint
from genssl_fast.commands import train
from genssl_fast.score_model import ScoreModel
from genssl_fast.training import ScoreTrainer

SMALL = ("--hidden", 8, "--blocks", 1, "--embed", 4, "--time-dim", 4, "--batch", 8, "--threads", 1)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npy"
    np.save(path, np.random.RandomState(0).rand(20, 2, 3))
    return path


def interrupt_after(monkeypatch, steps, number=signal.SIGINT):
    """Sends a signal in the middle of this step."""
    step = ScoreTrainer.train_step

    def train_step(self, samples):
        if self.step + 1 == steps:
            os.kill(os.getpid(), number)
        return step(self, samples)

    monkeypatch.setattr(ScoreTrainer, "train_step", train_step)


def test_checkpoint_carries_its_configuration(run, data, tmp_path):
    out = tmp_path / "new folder" / "model.safetensors"
    command = ("train", "--data", data, "--out", out, "--steps", 3, "--process", "ve", "--seed", 5, *SMALL)
    result = run(*command)
    assert result.code == 0, result.err
    assert "training: 3/3 steps  loss " in result.err
    assert "steps/s" in result.err
    config = load_checkpoint(out).config
    assert config["model"]["process"] == "ve"
    assert config["model"]["shape"] == [2, 3]
    assert config["training"]["seed"] == 5
    assert config["data"] == str(data)
    assert config["command"].startswith(f"genssl-fast train --data {data} --out")
    assert ScoreModel.load(out).sample(2, steps=2).shape == (2, 2, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_goes_on_as_if_nothing_had_happened(run, data, tmp_path, monkeypatch, number):
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    options = ("--data", data, "--steps", 8, *SMALL)
    assert run("train", "--out", whole, *options).code == 0

    interrupt_after(monkeypatch, 3, number)
    result = run("train", "--out", stopped, *options)
    monkeypatch.undo()
    assert result.code == 130
    assert "stopped at step 3" in result.err
    assert f"'genssl-fast train --resume --out {stopped}' goes on" in result.err
    assert ScoreModel.load(stopped).sample(1, steps=2).isfinite().all()

    assert run("train", "--resume", "--out", stopped).code == 0
    tensors, expected = (load_checkpoint(path).tensors for path in (stopped, whole))
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_time_limit(run, data, tmp_path):
    out = tmp_path / "model.safetensors"
    result = run("train", "--data", data, "--out", out, "--minutes", 1e-9, *SMALL)
    assert result.code == 0
    assert "trained for 0 steps" in result.out
    assert "--resume" in result.out


def test_resuming_with_other_settings_is_refused(run, data, tmp_path):
    out = tmp_path / "model.safetensors"
    assert run("train", "--data", data, "--out", out, "--steps", 2, *SMALL).code == 0
    result = run("train", "--resume", "--out", out, "--hidden", 9)
    assert result.code == 1
    assert "hidden: expected 8, with which the run was begun, got 9" in result.err
    assert run("train", "--resume", "--out", out, "--data", "digits").code == 1
    longer = run("train", "--resume", "--out", out, "--steps", 4, *SMALL)
    assert longer.code == 0
    assert "trained for 4 steps" in longer.out
    shorter = run("train", "--resume", "--out", out, "--steps", 3)
    assert shorter.code == 1
    assert "steps: expected at least 4, which the run has done, got 3" in shorter.err


def test_finished_run_is_not_overwritten_by_accident(run, data, tmp_path):
    out = tmp_path / "model.safetensors"
    command = ("train", "--data", data, "--out", out, "--steps", 1, *SMALL)
    assert run(*command).code == 0
    before = out.read_bytes()
    result = run(*command)
    assert result.code == 1
    assert "--resume to go on or --overwrite to begin anew" in result.err
    assert out.read_bytes() == before
    assert run(*command, "--overwrite", "--seed", 9).code == 0
    assert out.read_bytes() != before


def test_periodic_checkpoints(run, data, tmp_path, monkeypatch):
    saved = []
    save = ScoreTrainer.save
    monkeypatch.setattr(
        ScoreTrainer, "save", lambda self, *a, **k: saved.append(self.step) or save(self, *a, **k)
    )
    options = ("--data", data, "--out", tmp_path / "model.safetensors", "--steps", 3, *SMALL)
    assert run("train", *options, "--save-every", 1e-9).code == 0
    assert saved == [0, 1, 2, 3, 3]


def test_loss_that_is_not_finite_stops_the_run(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ScoreTrainer, "train_step", lambda self, _: setattr(self, "step", 20) or torch.tensor(float("nan"))
    )
    monkeypatch.setattr(train, "STEPS_PER_REPORT", 1)
    result = run("train", "--data", data, "--out", tmp_path / "model.safetensors", *SMALL)
    assert result.code == 1
    assert "loss: expected a finite number, got nan at step 20; try a lower --learning-rate" in result.err


def test_bad_input_takes_one_line(run, data, tmp_path):
    out = tmp_path / "model.safetensors"
    (tmp_path / "file").touch()
    for arguments, message in (
        (("--out", out), "data: expected --data digits, --data PATH or --resume"),
        (("--out", out, "--data", tmp_path / "missing.npy"), "which does not exist"),
        (("--out", out, "--resume"), "(no such file)"),
        (("--out", tmp_path / "file" / "a.safetensors", "--data", data), "out: expected a path that can be"),
    ):
        result = run("train", *arguments, *SMALL)
        assert result.code == 1
        assert message in result.err
        assert len(result.err.splitlines()) == 1


def test_missing_gpu(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("train", "--data", data, "--out", tmp_path / "a.safetensors", "--device", "cuda")
    assert result.code == 1
    assert "device: expected cpu, since PyTorch finds no usable GPU, got cuda" in result.err
