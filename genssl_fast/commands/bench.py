"""Measure every operation against PyTorch and the best public peers.

Hands over to 'python -m bench', which takes a family and the options --device, --json, --compare and
--plot; it needs a checkout of the repository, in whose root the command is to be given.
"""

import argparse
import subprocess
import sys
from pathlib import Path

__all__ = ["add_arguments", "run"]

CHECKOUT = Path(__file__).parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "genssl-fast bench [FAMILY] [OPTIONS OF python -m bench]"


def run(arguments: argparse.Namespace) -> int:
    roots = [root for root in (Path.cwd(), CHECKOUT) if (root / "bench" / "__main__.py").is_file()]
    if not roots:
        raise FileNotFoundError(
            "bench: expected a checkout of the repository, got an installed package; clone the "
            "repository and give the command in its root"
        )
    return subprocess.run([sys.executable, "-m", "bench", *arguments.rest], cwd=roots[0]).returncode
