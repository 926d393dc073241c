"""Progress on a terminal as a bar, elsewhere as a line now and then."""

import time
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["ProgressReport"]

SECONDS_BETWEEN_LINES = 10


class ProgressReport:
    """Reports how much is done, how fast, and how long the rest will take.

    Arguments:
        description: What is being done.
        total: The number of items.
        unit: What an item is, in the plural.
        done: The number of items done before this run; they do not count for the rate.
        quiet: Whether to report nothing.
        file: Where to write, standard error by default.

    Example:
        >>> with ProgressReport("drawing", total=8, unit="images", quiet=True) as progress:
        ...     progress.advance(8)
        >>> progress.done
        8
    """

    def __init__(
        self,
        description: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        quiet: bool = False,
        file: TextIO | None = None,
    ) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, done
        self._first, self._details, self._quiet = done, "", quiet
        self._console = Console(stderr=True) if file is None else Console(file=file)
        self._bar = None
        if self._console.is_terminal and not quiet:
            self._bar = _bar(self._console, unit)

    def __enter__(self) -> Self:
        self._start = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.done, details="", rate=0.0
            )
        return self

    def advance(self, count: int = 1, **details: float) -> None:
        """Counts items as done; `details` are numbers to show beside the rate."""
        self.done += count
        self._details = "  ".join(f"{name} {value:.4g}" for name, value in details.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, details=self._details, rate=self.rate)
        elif self.done < self.total and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print_line()

    @property
    def rate(self) -> float:
        """Items per second in this run."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet:
            self._print_line()

    def _print_line(self) -> None:
        parts = [f"{self.description}: {self.done}/{self.total} {self.unit}", self._details]
        if self.rate:
            parts.append(f"{self.rate:,.0f} {self.unit}/s")
        if self.done == self.total:
            parts.append("done")
        elif self.rate:
            parts.append(f"{(self.total - self.done) / self.rate:.0f} s left")
        self._console.print("  ".join(filter(None, parts)), highlight=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['rate']:,.0f} {self.unit}/s")


def _bar(console: Console, unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        _RateColumn(unit),
        TextColumn("{task.fields[details]}"),
        TimeRemainingColumn(),
        console=console,
    )
