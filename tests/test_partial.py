"""Arrays that are filled piece by piece, and what they become."""

import errno
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from genssl_fast._outputs import check_output, finish_output
from genssl_fast._partial import OutputError, PartialArray
from genssl_fast.data import Scale

COUNT, SHAPE = 7, (1, 2, 2)
SAMPLES = np.arange(COUNT * 4, dtype=np.float32).reshape(COUNT, *SHAPE)
SCALE = Scale(0.0, 255.0)


def prepared(out, job=None, count=COUNT):
    partial = PartialArray(out, count, SHAPE)
    partial.prepare(job or {"seed": 1})
    return partial


def filled(out):
    partial = prepared(out)
    with partial:
        partial.write(0, SAMPLES)
    return partial


def test_pending_is_what_was_not_written(tmp_path):
    partial = prepared(tmp_path / "a.npy")
    with partial:
        assert list(partial.pending(range(COUNT), 3)) == [range(0, 3), range(3, 6), range(6, 7)]
        partial.write(2, SAMPLES[2:4])
        partial.mark()
        assert list(partial.pending(range(COUNT), 3)) == [range(0, 2), range(4, 7)]
        assert list(partial.pending(range(3, 5), 3)) == [range(4, 5)]
        assert partial.num_done(range(COUNT)) == 2
        np.testing.assert_array_equal(partial.read(2, 4), SAMPLES[2:4])


def test_record_without_its_data_is_begun_anew(tmp_path):
    """What a run leaves that is killed just after its .npy file took its place."""
    partial = filled(tmp_path / "a.npy")
    partial.data_path.unlink()
    with prepared(tmp_path / "a.npy", {"seed": 2}) as anew:
        assert anew.num_done(range(COUNT)) == 0


def test_nothing_counts_as_done_before_it_is_on_disk(tmp_path, monkeypatch):
    partial = prepared(tmp_path / "a.npy")

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with partial:
        partial.write(0, SAMPLES)
        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            partial.mark()
        assert partial.num_done(range(COUNT)) == 0
        monkeypatch.undo()
    with partial:
        assert partial.num_done(range(COUNT)) == COUNT


def test_another_run_takes_up_the_same_job_only(tmp_path):
    with prepared(tmp_path / "a.npy") as partial:
        partial.write(0, SAMPLES[:5])
    with prepared(tmp_path / "a.npy") as partial:
        assert partial.num_done(range(COUNT)) == 5
    with pytest.raises(ValueError, match=r"seed: expected 1, with which .*a\.npy was begun, got 2"):
        prepared(tmp_path / "a.npy", {"seed": 2})


def test_two_runs_cannot_write_the_same_output(tmp_path):
    with prepared(tmp_path / "a.npy") as first, prepared(tmp_path / "a.npy") as second:
        first.lock()
        with pytest.raises(OutputError, match="another run"):
            second.lock()


def test_array_file(tmp_path):
    finish_output(filled(tmp_path / "a.npy"), SCALE)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), SAMPLES)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_archive_is_the_same_every_time(tmp_path):
    for name in ("a.npz", "b.npz"):
        finish_output(filled(tmp_path / name), SCALE)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["samples"], SAMPLES)


def test_folder_of_images(tmp_path):
    finish_output(filled(tmp_path / "images"), SCALE)
    assert len(list((tmp_path / "images").iterdir())) == COUNT
    pixels = np.asarray(Image.open(tmp_path / "images" / "00002.png"))
    np.testing.assert_array_equal(pixels, SAMPLES[2, 0])
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_full_disk_at_the_end_loses_nothing(tmp_path, monkeypatch):
    partial = filled(tmp_path / "a.npz")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OutputError, match=r"room for .* MB in .*; make room, then run the same"):
        finish_output(partial, SCALE)
    assert not (tmp_path / "a.npz").exists()
    monkeypatch.undo()
    finish_output(filled(tmp_path / "a.npz"), SCALE)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["samples"], SAMPLES)


def test_full_disk_at_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutputError, match="out: expected room for"):
        prepared(tmp_path / "a.npy")
    assert list(tmp_path.iterdir()) == []


def test_filesystem_that_cannot_reserve_room_is_fine(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", unsupported)
    finish_output(filled(tmp_path / "a.npy"), SCALE)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), SAMPLES)


def test_unwritable_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"can be written, got .*file/a\.npy \(File exists: .*file\)"):
        prepared(tmp_path / "file" / "a.npy")


def test_pieces_longer_than_the_scan(tmp_path, monkeypatch):
    monkeypatch.setattr("genssl_fast._partial.SCAN_LENGTH", 4)
    with prepared(tmp_path / "a.npy") as partial:
        assert list(partial.pending(range(1, 7), 10)) == [range(1, 5), range(5, 7)]


def test_outputs_that_could_not_be_written_are_refused_first(tmp_path):
    check_output(tmp_path / "new", (1, 2, 2))
    check_output(tmp_path, (2, 2))
    with pytest.raises(ValueError, match=r"no images \[H, W\] or \[C, H, W\], got .* shape \[5\]"):
        check_output(tmp_path / "new", (5,))
    (tmp_path / "there").touch()
    with pytest.raises(ValueError, match="a new or empty folder"):
        check_output(tmp_path, (2, 2))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match=r"a file, got .* which is a folder"):
        check_output(tmp_path / "folder.npz", (2, 2))


def test_record_says_what_is_being_drawn(tmp_path):
    prepared(tmp_path / "a.npy", {"seed": 1, "sampler": "ddim"})
    record = json.loads((tmp_path / "a.npy.partial.json").read_text())
    assert record == {"seed": 1, "sampler": "ddim"}
