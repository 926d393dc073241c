"""Convolutions of a plan never leave their memory, under AddressSanitizer, and see no image but their own."""

import subprocess

import pytest

from genssl_fast._library import INSTRUCTION_SETS, instruction_set
from tests.kernels.compile import ROOT, SANITIZERS, compile_for_isa

# The machine's best instruction set and those below it.
BEST = INSTRUCTION_SETS.index(instruction_set() or "baseline")


@pytest.mark.parametrize("isa", INSTRUCTION_SETS[BEST:])
def test_images_of_every_size_under_address_sanitizer(isa, tmp_path):
    source = ROOT / "tests/kernels/conv_net_cases.cpp"
    program = compile_for_isa(source, isa, tmp_path / "cases", "-O1", *SANITIZERS)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
