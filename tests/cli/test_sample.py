"""`genssl-fast sample`: the same file whatever happens, and what bad input gets."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from genssl_fast.checkpoint import load_checkpoint, save_checkpoint
from genssl_fast.score_model import ScoreModel


@pytest.fixture
def expected(sample, tmp_path):
    """The file that one undisturbed run writes."""
    path = tmp_path / "expected.npz"
    result = sample(path)
    assert result.code == 0, result.err
    assert "drawing: 40/40 samples" in result.err
    return path.read_bytes()


def draw_until(monkeypatch, action, calls):
    """Lets `action` happen in place of the call with this number."""
    draw, count = ScoreModel.sample, 0

    def sample(self, *arguments, **options):
        nonlocal count
        count += 1
        if count == calls:
            action()
        return draw(self, *arguments, **options)

    monkeypatch.setattr(ScoreModel, "sample", sample)


def test_outputs_hold_the_samples_of_the_model(sample, checkpoint, tmp_path):
    model = ScoreModel.load(checkpoint)
    wanted = model.sample(40, steps=5, seed=0, clip=True).numpy()
    for name in ("a.npy", "a.npz", "images"):
        assert sample(tmp_path / name).code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), wanted)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["samples"], wanted)
    pixels = np.asarray(Image.open(tmp_path / "images" / "00039.png"))
    np.testing.assert_array_equal(pixels, np.rint(wanted[39, 0] * (255 / 16)))
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.npz", "images"}


@pytest.mark.parametrize("options", [("--batch", 7), ("--batch", 1, "--threads", 1), ("--threads", 3)])
def test_neither_batch_nor_threads_matter(sample, expected, tmp_path, options):
    threads = torch.get_num_threads()
    assert sample(tmp_path / "other.npz", *options).code == 0
    torch.set_num_threads(threads)
    assert (tmp_path / "other.npz").read_bytes() == expected


def test_seed_and_sampler_matter(sample, expected, tmp_path):
    for options in (("--seed", 1), ("--sampler", "ddpm"), ("--no-clip",)):
        assert sample(tmp_path / "other.npz", *options).code == 0
        assert (tmp_path / "other.npz").read_bytes() != expected


def test_interrupted_run_goes_on(sample, expected, tmp_path, monkeypatch):
    out = tmp_path / "out.npz"
    draw_until(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT), calls=3)
    result = sample(out, "--batch", 8)
    monkeypatch.undo()
    assert result.code == 130
    assert "16 of 40 samples are safe" in result.err
    assert "give the same command again" in result.err
    assert not out.exists()

    result = sample(out, "--batch", 5)
    assert result.code == 0
    assert out.read_bytes() == expected
    assert not list(tmp_path.glob("*.partial*"))


def test_interrupted_run_goes_on_with_the_same_arguments_only(sample, tmp_path, monkeypatch):
    draw_until(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM), calls=1)
    assert sample(tmp_path / "out.npz").code == 130
    monkeypatch.undo()
    result = sample(tmp_path / "out.npz", "--seed", 7)
    assert result.code == 1
    assert "seed: expected 0, with which" in result.err


def test_killed_run_goes_on(sample, expected, checkpoint, tmp_path):
    out = tmp_path / "out.npz"
    code = f"""
import os, signal, time
from genssl_fast.cli import main
from genssl_fast.score_model import ScoreModel
import genssl_fast._partial
genssl_fast._partial.SECONDS_BETWEEN_MARKS = 0
draw, count = ScoreModel.sample, []
def sample(self, *arguments, **options):
    count.append(1)
    if len(count) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(self, *arguments, **options)
ScoreModel.sample = sample
main("sample --checkpoint {checkpoint} --steps 5 --count 40 --batch 6 --out {out}".split())
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert not out.exists()
    done = (tmp_path / "out.npz.partial.done").read_bytes()
    assert done == b"\1" * 18 + b"\0" * 22
    assert sample(out).code == 0
    assert out.read_bytes() == expected


def test_several_processes_write_the_same_file(expected, checkpoint, tmp_path):
    out = tmp_path / "out.npz"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "genssl_fast.cli", "sample", "--checkpoint", str(checkpoint), "--steps", "5"]
    command += ["--count", "40", "--batch", "9", "--out", str(out)]
    result = subprocess.run([*launch, *command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("40 samples") == 1
    assert out.read_bytes() == expected


def test_failure_of_the_first_process_ends_all(checkpoint, tmp_path):
    (tmp_path / "file").touch()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "genssl_fast.cli", "sample", "--checkpoint", str(checkpoint), "--steps", "5"]
    command += ["--count", "40", "--out", str(tmp_path / "file" / "out.npz")]
    result = subprocess.run([*launch, *command], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "out: expected a path that can be written" in result.stderr


def test_memory_does_not_grow_with_the_count(sample, tmp_path, monkeypatch):
    drawn = torch.zeros(256, 1, 4, 4)
    monkeypatch.setattr(ScoreModel, "sample", lambda self, count, **_: drawn[:count])
    peaks = []
    for count in (1_000, 100_000):
        tracemalloc.start()
        assert sample(tmp_path / "out.npz", "--batch", 256, count=count).code == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "out.npz").stat().st_size > 6_400_000
    # What grows is the one byte per sample that says whether it is done, read in bounded pieces.
    assert peaks[1] - peaks[0] < 1_000_000


def test_complete_file_replaces_an_old_one(sample, expected, tmp_path):
    (tmp_path / "out.npz").write_bytes(b"old")
    assert sample(tmp_path / "out.npz").code == 0
    assert (tmp_path / "out.npz").read_bytes() == expected


def test_full_disk_shows_at_once(sample, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        result = sample(tmp_path / "out.npz", count=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.code == 1
    assert "out: expected room for 0.1 MB in" in result.err
    assert "run the same command again" in result.err
    assert list(tmp_path.iterdir()) == []


def test_full_disk_on_the_way_keeps_what_is_there(sample, expected, tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    draw_until(monkeypatch, full, calls=2)
    result = sample(tmp_path / "out.npz", "--batch", 10)
    monkeypatch.undo()
    assert result.code == 1
    assert "make room, then run the same command again" in result.err
    assert (tmp_path / "out.npz.partial.done").read_bytes().count(1) == 10
    assert sample(tmp_path / "out.npz").code == 0
    assert (tmp_path / "out.npz").read_bytes() == expected


def test_nan_is_reported_with_its_step(sample, checkpoint, tmp_path, monkeypatch):
    tensors, config = load_checkpoint(checkpoint)
    tensors["b_out"][3] = float("nan")
    save_checkpoint(tmp_path / "nan.safetensors", tensors, config)
    result = sample(tmp_path / "out.npz", "--checkpoint", tmp_path / "nan.safetensors")
    assert result.code == 1
    assert "not finite at step 1 of 5" in result.err
    assert not (tmp_path / "out.npz").exists()


def test_wrong_checkpoints(sample, checkpoint, tmp_path):
    whole = checkpoint.read_bytes()
    for name, content, message in (
        ("missing", None, "no such file"),
        ("cut", whole[: len(whole) // 2], "truncated or something else"),
        ("text", b"not a checkpoint at all", "truncated or something else"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        result = sample(tmp_path / "out.npz", "--checkpoint", path)
        assert result.code == 1
        assert result.err.startswith("genssl-fast sample: checkpoint: expected a")
        assert message in result.err
        assert len(result.err.splitlines()) == 1
        assert not list(tmp_path.glob("out*"))


def test_count_beyond_any_disk(sample, tmp_path):
    for count in (10**15, 10**30):
        result = sample(tmp_path / "out.npy", count=count)
        assert result.code == 1
        assert "out: expected room for" in result.err
        assert not list(tmp_path.iterdir())


def test_unwritable_paths(sample, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out.npz", "/proc/out.npz"):
        result = sample(out)
        assert result.code == 1
        assert "out: expected a path that can be written" in result.err
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sampler", "dddim"), "invalid choice: 'dddim'"),
        (("--sampler", "identity"), "invalid choice: 'identity'"),
        (("--steps", "-3"), "argument --steps: expected a whole number of at least 1, got '-3'"),
        (("--count", "many"), "argument --count: expected a whole number of at least 1, got 'many'"),
        (("--seed", "-1"), "argument --seed: expected a whole number from 0"),
        (("--out", "out.png"), "ends in .npz or .npy or no suffix (a folder), got 'out.png'"),
    ],
)
def test_wrong_usage(sample, tmp_path, arguments, message):
    result = sample(tmp_path / "out.npz", *arguments)
    assert result.code == 2
    assert message in result.err
