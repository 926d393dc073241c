"""What a program computes on an instruction set other than the one in use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genssl_fast._library import INSTRUCTION_SETS, instruction_set

__all__ = ["outputs_under"]


def outputs_under(isa: str, program: str, folder: Path):
    """What the program saves to ``sys.argv[1]``; skips where the machine lacks the instruction set."""
    if INSTRUCTION_SETS.index(isa) < INSTRUCTION_SETS.index(instruction_set()):
        pytest.skip(f"this machine lacks {isa}")
    target = folder / "outputs.pt"
    environment = {**os.environ, "GENSSL_ISA": isa}
    subprocess.run([sys.executable, "-c", program, str(target)], check=True, env=environment)
    return torch.load(target)
