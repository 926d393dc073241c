"""Say what this machine has, what was built, and which implementation of every operation runs where."""

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from genssl_fast._library import implementations, instruction_set
from genssl_fast._version import __version__

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(arguments: argparse.Namespace) -> None:
    console = Console(highlight=False, soft_wrap=True)
    facts = Table(show_header=False, box=None)
    for name, value in (_versions() | _machine()).items():
        facts.add_row(name, value)
    console.print(facts)
    console.print()
    console.print(_operations())
    for advice in _advice():
        console.print(f"\n{advice}")


def _versions() -> dict[str, str]:
    return {
        "genssl_fast": __version__,
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Triton": _version_of("triton"),
    }


def _machine() -> dict[str, str]:
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in use",
        "instruction set": instruction_set() or "none: CPU kernels are not built",
        "C++ compiler": _compiler(os.environ.get("CXX", "g++")),
        "CUDA compiler": _compiler(_nvcc()),
        "GPUs": _gpus(),
    }


def _operations() -> Table:
    table = Table("operation", "CPU", "CUDA", title="what runs where", title_justify="left")
    for name, devices in sorted(implementations().items()):
        table.add_row(name, devices["CPU"], devices["CUDA"])
    return table


def _advice() -> list[str]:
    advice = []
    if instruction_set() is None:
        advice.append(
            "Operations run their plain PyTorch references: correct, but slow. Install a C++ compiler "
            "(gcc 12 or newer) and reinstall genssl_fast."
        )
    if torch.cuda.is_available() and "reference" in {
        devices["CUDA"] for devices in implementations().values()
    }:
        advice.append(
            "Some operations have no GPU kernel here. Install the CUDA toolkit (nvcc) and reinstall."
        )
    return advice


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    return str(Path(home, "bin", "nvcc")) if home else "nvcc"


def _compiler(command: str) -> str:
    """The path and the version line of a compiler."""
    path = shutil.which(command)
    if path is None:
        return "not found"
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}, which does not run ({error})"
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    versions = [line for line in lines if "release" in line] or lines[:1]
    return f"{path} ({versions[0].strip()})" if versions else path


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that PyTorch can use"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    return ", ".join(names)
