"""What `doctor` reports, and where `bench` goes."""

import platform

import torch

from genssl_fast._library import implementations
from genssl_fast.commands import bench, doctor


def test_doctor_reports_versions_and_operations(run):
    result = run("doctor")
    assert result.code == 0
    for fact in (platform.python_version(), torch.__version__, "instruction set", "C++ compiler", "GPUs"):
        assert fact in result.out
    for name, devices in implementations().items():
        line = next(line for line in result.out.splitlines() if f" {name} " in line)
        assert devices["CPU"] in line
        assert devices["CUDA"] in line


def test_doctor_says_what_is_missing(run, monkeypatch):
    monkeypatch.setattr(doctor, "instruction_set", lambda: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("CUDA_HOME", "/no/such/folder")
    result = run("doctor")
    assert result.code == 0
    assert result.out.count("not found") == 2
    assert "Install a C++ compiler" in result.out


def test_bench_needs_a_checkout(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    result = run("bench", "integrate")
    assert result.code == 1
    assert "expected a checkout of the repository" in result.err


def test_bench_hands_over_its_arguments(run, monkeypatch, tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()
    (tmp_path / "bench" / "__main__.py").write_text("import sys; print(sys.argv[1:]); sys.exit(3)")
    monkeypatch.chdir(tmp_path)
    result = run("bench", "integrate", "--device", "cpu")
    assert result.code == 3
    assert result.out == "['integrate', '--device', 'cpu']\n"
