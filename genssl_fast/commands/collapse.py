"""Warnings of collapsed embeddings, as a command prints them."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from genssl_fast.ssl import CollapseWarning

__all__ = ["collapse_warnings"]


@contextmanager
def collapse_warnings(command: str) -> Iterator[None]:
    """Prints them on standard error, one line each, and leaves all other warnings as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CollapseWarning)
        show = warnings.showwarning

        def print_line(message, category, *place, **options) -> None:
            if issubclass(category, CollapseWarning):
                print(f"genssl-fast {command}: warning: {message}", file=sys.stderr)
            else:
                show(message, category, *place, **options)

        warnings.showwarning = print_line
        yield
