"""Types and groups of arguments that several subcommands share."""

import argparse
from collections.abc import Callable
from pathlib import Path

__all__ = ["add_device", "add_threads", "fraction", "output_path", "positive", "positive_int", "seed"]


def _number(kind: Callable, holds: Callable, expected: str) -> Callable[[str], float]:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


positive_int = _number(int, lambda value: value >= 1, "a whole number of at least 1")
positive = _number(float, lambda value: 0 < value < float("inf"), "a number above 0")
fraction = _number(float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
seed = _number(int, lambda value: 0 <= value < 1 << 63, "a whole number from 0 to 2^63 - 1")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=_device,
        help="cpu, cuda or cuda:N (default: a GPU if there is one, else cpu)",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=positive_int, help="CPU threads (default: what OMP_NUM_THREADS or PyTorch says)"
    )


def output_path(*suffixes: str) -> Callable[[str], Path]:
    """A path that ends in one of the suffixes, or in none, for a folder, where "" is among them."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix not in suffixes:
            names = " or ".join(suffix or "no suffix (a folder)" for suffix in suffixes)
            raise argparse.ArgumentTypeError(f"expected a name that ends in {names}, got {text!r}")
        return path

    return parse


def _device(text: str) -> str:
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text
