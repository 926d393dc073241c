"""Checkpoints come back as they were, or fail with words that say why."""

import pytest
import safetensors.torch
import torch

from genssl_fast import checkpoint
from genssl_fast.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "folder" / "model.safetensors"
    save_checkpoint(path, {"weight": torch.arange(6.0).reshape(2, 3).T}, {"kind": "test", "width": 3})
    return path


def test_tensors_and_configuration_come_back(saved):
    tensors, config = load_checkpoint(saved)
    assert config == {"kind": "test", "width": 3}
    assert torch.equal(tensors["weight"], torch.arange(6.0).reshape(2, 3).T)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_file(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"a whole safetensors file, got .*truncated"):
        load_checkpoint(saved)


def test_something_else(tmp_path):
    (tmp_path / "text").write_text("These are not the weights you are looking for. " * 10)
    with pytest.raises(CheckpointError, match="something else"):
        load_checkpoint(tmp_path / "text")
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="a folder"):
        load_checkpoint(tmp_path)


def test_safetensors_of_another_program(tmp_path):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="written by genssl_fast"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 7)
    save_checkpoint(tmp_path / "new.safetensors", {}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="expected version 1, got version 7"):
        load_checkpoint(tmp_path / "new.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "expected version 1, got version None"),
        ({"version": "1"}, "expected a configuration in JSON"),
        ({"version": "1", "config": "{"}, "expected a configuration in JSON"),
    ],
)
def test_damaged_header(tmp_path, metadata, message):
    path = tmp_path / "damaged.safetensors"
    safetensors.torch.save_file({}, path, {"format": "genssl_fast"} | metadata)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, {"weight": torch.zeros(2)}, {})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
