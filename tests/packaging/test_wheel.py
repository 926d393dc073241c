"""The wheel holds everything: built, installed beside a bare torch, imported, an operation per family run."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

CHECK = """
import importlib, pkgutil, sys
import torch, genssl_fast
assert "site-packages" in genssl_fast.__file__, genssl_fast.__file__
optional = {"safetensors", "rich", "PIL", "sklearn", "matplotlib", "triton", "nflows", "normflows", "zuko"}
for module in pkgutil.walk_packages(genssl_fast.__path__, "genssl_fast."):
    if module.name in ("genssl_fast._cpu", "genssl_fast._cuda"):  # loaded by PyTorch, not imported
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        assert (error.name or "").split(".")[0] in optional, (module.name, error)
genssl_fast.random_normal((2, 3), seed=0)
table = genssl_fast.CoefficientTable.from_rows([dict(noise=1.0)])
genssl_fast.sampler_step(torch.zeros(2, 3), torch.zeros(2, 3), table, 0, seed=0)
genssl_fast.rational_quadratic_spline(torch.zeros(2, 3), torch.zeros(2, 3, 11))
genssl_fast.flows.MAF(3, layers=1, hidden=(8,)).sample(2, seed=0)
genssl_fast.time_embedding(torch.rand(2), 8)
found = genssl_fast._library.implementations()
assert all(row["CPU"].startswith(("C++", "PyTorch")) for row in found.values()), found
print("complete")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    built = subprocess.run([*command, "-w", str(folder), str(ROOT)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return next(folder.glob("*.whl"))


def test_wheel_holds_kernels_and_their_sources(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [p for p in (ROOT / "kernels").rglob("*") if p.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"}]
    expected = {f"genssl_fast/{p.relative_to(ROOT).as_posix()}" for p in sources}
    own = (p for p in (ROOT / "genssl_fast").rglob("*") if p.suffix in {".py", ".toml"})
    expected |= {p.relative_to(ROOT).as_posix() for p in own}
    assert not expected - names
    assert "genssl_fast/_cpu.so" in names
    assert any(name.startswith("genssl_fast/_native") for name in names)


def test_wheel_works_in_a_clean_environment(wheel, tmp_path):
    """The environment borrows this one's torch and sees nothing of the checkout."""
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean/bin/python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--no-deps", "--quiet", str(wheel)], capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    borrowed = Path(torch.__file__).parents[1]
    environment = {"PYTHONPATH": f"{own}:{borrowed}", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [python, "-c", CHECK], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip().endswith("complete")
