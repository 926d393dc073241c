"""Objects compiled for one instruction set keep their code to themselves.

The linker keeps one copy of a weak symbol. Were an inline function shared by the objects of several
instruction sets, the copy with AVX-512 instructions could run on a machine that lacks them.
"""

import platform
import shutil
import subprocess

import pytest

from tests.kernels.compile import ROOT, compile_for_isa

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("nm") is None, reason="needs x86-64 and nm"
)
ISA = "avx512"
KERNELS = [path for path in sorted((ROOT / "kernels").rglob("*.cpp")) if path.name != "isa.cpp"]


def leaked_symbols(source, directory) -> list[str]:
    """Weak functions outside the namespace of the instruction set; unoptimised code hides none."""
    target = compile_for_isa(source, ISA, directory / f"{source.stem}.o", "-c", "-O0")
    listing = subprocess.run(["nm", "-C", target], capture_output=True, text=True, check=True).stdout
    symbols = [line[17:] for line in listing.splitlines()]
    inside = f"genssl::{ISA}::", f"W _ZN6genssl{len(ISA)}{ISA}"  # some names nm cannot decode
    return [s for s in symbols if s[0] == "W" and inside[0] not in s and not s.startswith(inside[1])]


@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_kernels_leak_no_symbols(source, tmp_path):
    assert leaked_symbols(source, tmp_path) == []


def test_a_shared_inline_function_is_found(tmp_path):
    source = tmp_path / "leak.cpp"
    source.write_text("inline int shared() { return 1; }\nint use() { return shared(); }\n")
    assert leaked_symbols(source, tmp_path) == ["W shared()"]
