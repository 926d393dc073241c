"""An array on disk that is filled piece by piece and survives being interrupted."""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from genssl_fast._files import replacing, synchronise

__all__ = ["OutputError", "PartialArray"]

SECONDS_BETWEEN_MARKS = 1.0
SCAN_LENGTH = 1 << 20
LARGEST_FILE = (1 << 63) - 1


class OutputError(OSError):
    """An output that cannot be written, and what to do about it."""


class PartialArray:
    """Samples [count, *shape] in fp32 or fp64 beside the output they will become.

    Three files: `<out>.partial` is a `.npy` file of full size, `<out>.partial.done` has one byte per
    sample, 1 once the sample is safely on disk, and `<out>.partial.json` says which run they belong to.
    Several processes may fill different samples. No method holds more than one piece in memory.

    Arguments:
        out: The output.
        count: The number of samples.
        shape: The shape of a sample.
        dtype: fp32 or fp64.
    """

    def __init__(self, out: Path, count: int, shape: tuple[int, ...], dtype: type = np.float32) -> None:
        self.out, self.count, self.shape = out, count, tuple(shape)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self.data_path = out.with_name(out.name + ".partial")
        self._done_path = out.with_name(out.name + ".partial.done")
        self._job_path = out.with_name(out.name + ".partial.json")
        self._sample_bytes = int(np.prod(self.shape, dtype=np.int64)) * self._dtype.itemsize
        self._unmarked: list[range] = []

    def prepare(self, job: dict[str, Any]) -> None:
        """Creates the files, or takes up those that an interrupted run of the same job left."""
        # A run that stopped just after its .npy file took its place leaves a record without data.
        if self._job_path.exists() and self.data_path.exists():
            self._check_job(json.loads(self._job_path.read_text()), job)
            return
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.remove()
            self._allocate()
            with replacing(self._job_path) as temporary:
                temporary.write_text(json.dumps(job, indent=1))
        except OSError as error:
            with contextlib.suppress(OSError):
                self.remove()
            raise self.error(error) from error

    def error(self, error: OSError) -> OutputError:
        """The same failure, in words that say what to do."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            size = self.count * (self._sample_bytes + 1) / 1e6
            return OutputError(
                f"out: expected room for {size:,.1f} MB in {self.out.parent.absolute()}, got "
                f"'{error.strerror}'; make room, then run the same command again"
            )
        cause = ": ".join(str(part) for part in (error.strerror, error.filename) if part)
        return OutputError(f"out: expected a path that can be written, got {self.out} ({cause or error})")

    def __enter__(self) -> Self:
        self._data = os.open(self.data_path, os.O_RDWR)
        self._done = os.open(self._done_path, os.O_RDWR)
        with open(self.data_path, "rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            self._offset = file.tell()
        self._last_mark = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.mark()
        finally:
            os.close(self._data)
            os.close(self._done)

    def lock(self) -> None:
        """Makes sure that no other run fills the same files; held until the files are closed."""
        try:
            fcntl.flock(self._data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"out: expected a free path, got {self.out}, which another run is writing"
            ) from None

    def num_done(self, samples: range) -> int:
        """How many of the samples are on disk."""
        return sum(chunk.count(1) for _, chunk in self._scan(samples))

    def pending(self, samples: range, batch: int) -> Iterator[range]:
        """The samples that are not on disk, in pieces of at most `batch`."""
        for start, chunk in self._scan(samples):
            begin = chunk.find(0)
            while begin >= 0:
                end = chunk.find(1, begin, begin + batch)
                end = min(begin + batch, len(chunk)) if end < 0 else end
                yield range(start + begin, start + end)
                begin = chunk.find(0, end)

    def write(self, begin: int, values: np.ndarray) -> None:
        """Writes samples; they count as done at the next mark, at most a second or so later."""
        content = memoryview(np.ascontiguousarray(values, dtype=self._dtype)).cast("B")
        position = self._offset + begin * self._sample_bytes
        while content:
            written = os.pwrite(self._data, content, position)
            content, position = content[written:], position + written
        self._unmarked.append(range(begin, begin + len(values)))
        if time.monotonic() - self._last_mark > SECONDS_BETWEEN_MARKS:
            self.mark()

    def mark(self) -> None:
        """Marks what was written as done, after it has reached the disk."""
        if self._unmarked:
            os.fsync(self._data)
        for samples in self._unmarked:
            os.pwrite(self._done, b"\1" * len(samples), samples.start)
        self._unmarked, self._last_mark = [], time.monotonic()

    def read(self, begin: int, end: int) -> np.ndarray:
        """Samples [end - begin, *shape]."""
        length, position = (end - begin) * self._sample_bytes, self._offset + begin * self._sample_bytes
        return np.frombuffer(os.pread(self._data, length, position), self._dtype).reshape(-1, *self.shape)

    def remove(self) -> None:
        """Removes the files; the record of the job goes first, so that no half of them is taken up."""
        for path in (self._job_path, self._done_path, self.data_path):
            path.unlink(missing_ok=True)

    def _allocate(self) -> None:
        with open(self.data_path, "wb") as file:
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count, *self.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            _reserve(file.fileno(), file.tell() + self.count * self._sample_bytes)
        with open(self._done_path, "wb") as file:
            _reserve(file.fileno(), self.count)
        synchronise(self.data_path)

    def _check_job(self, begun: dict[str, Any], job: dict[str, Any]) -> None:
        for name, value in job.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{name}: expected {begun.get(name)!r}, with which {self.out} was begun, got {value!r}; "
                    f"finish that run, or remove {self.data_path}* to begin anew"
                )

    def _scan(self, samples: range) -> Iterator[tuple[int, bytes]]:
        for start in range(samples.start, samples.stop, SCAN_LENGTH):
            length = min(SCAN_LENGTH, samples.stop - start)
            yield start, os.pread(self._done, length, start)


def _reserve(descriptor: int, size: int) -> None:
    """Takes the room on disk now: a full disk shows before hours of work, not after."""
    if size > LARGEST_FILE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    os.ftruncate(descriptor, size)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
