"""Loading: with and without compiled kernels, instruction sets, raw operations."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import genssl_fast
from genssl_fast._library import implementations, instruction_set

ROOT = Path(__file__).parents[1]


def run_python(code, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_every_operation_has_a_cpu_kernel():
    assert instruction_set() in ("avx512", "avx2", "baseline")
    for name, row in implementations().items():
        if row["CPU"] == "PyTorch":  # said so by its definition
            continue
        assert row["CPU"] == f"C++ ({instruction_set()})", name
        assert row["CUDA"] in ("Triton", "CUDA C++", "reference"), name


def test_without_compiled_kernels_references_run(tmp_path):
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "genssl_fast", tmp_path / "genssl_fast", ignore=ignore)
    code = (
        "import genssl_fast, torch;"
        "print(sorted({row['CPU'] for row in genssl_fast._library.implementations().values()}));"
        "print(genssl_fast.random_normal((2, 3), seed=1).sum().item())"
    )
    result = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}")
    lines = result.stdout.splitlines()
    assert lines[0] == "['PyTorch', 'reference']", result.stderr
    expected = genssl_fast.random_normal((2, 3), seed=1).sum().item()
    assert float(lines[1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_instruction_set_override(isa):
    code = "import genssl_fast; print(genssl_fast._library.instruction_set())"
    assert run_python(code, GENSSL_ISA=isa).stdout.strip() == isa


def test_unknown_instruction_set_is_an_error():
    result = run_python("import genssl_fast", GENSSL_ISA="sse9")
    assert "GENSSL_ISA: expected one of avx512, avx2, baseline, got 'sse9'" in result.stderr


def test_import_touches_no_gpu():
    code = "import genssl_fast, torch; print(torch.cuda.is_initialized())"
    assert run_python(code).stdout.strip() == "False"


def test_raw_operations_refuse_derivatives():
    guarded = [torch.ops.genssl_fast._film_mlp_sample, torch.ops.genssl_fast._sampler_step_out]
    for packet in guarded:
        name = packet.default.name()
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "Autograd"), name
