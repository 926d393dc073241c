"""Progress on a terminal and elsewhere."""

import io

from genssl_fast.progress import ProgressReport


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr("genssl_fast.progress.SECONDS_BETWEEN_LINES", -1)
    file = io.StringIO()
    with ProgressReport("drawing", 4, "images", done=1, file=file) as progress:
        progress.advance(2, loss=0.25)
        progress.advance(1)
    first, last = file.getvalue().splitlines()
    assert first.startswith("drawing: 3/4 images  loss 0.25  ")
    assert first.endswith(" images/s  0 s left")
    assert last.startswith("drawing: 4/4 images  ")
    assert last.endswith("done")


def test_few_lines_for_many_steps():
    file = io.StringIO()
    with ProgressReport("drawing", 1000, "images", file=file) as progress:
        for _ in range(1000):
            progress.advance()
    assert len(file.getvalue().splitlines()) == 1


def test_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    with ProgressReport("drawing", 4, "images", file=file) as progress:
        progress.advance(4, loss=0.5)
    shown = file.getvalue()
    assert "drawing" in shown
    assert "4/4" in shown
    assert "images/s" in shown
    assert "loss 0.5" in shown


def test_quiet():
    file = io.StringIO()
    with ProgressReport("drawing", 4, "images", quiet=True, file=file) as progress:
        progress.advance(4)
    assert file.getvalue() == ""
