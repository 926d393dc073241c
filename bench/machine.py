"""The machine line that every result carries."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from genssl_fast import _library

PACKAGES = ("torch", "triton", "diffusers", "numpy")
ROOT = Path(__file__).resolve().parent.parent


def describe(device: str) -> dict:
    """Hardware, software and the state of the source tree, as plain JSON values."""
    line = {
        "device": device,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": instruction_set(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if version(name)},
        "commit": git("rev-parse", "--short", "HEAD") or "none",
        "tree": "dirty" if git("status", "--porcelain", "--", ":!bench/results") else "clean",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if device == "cuda":
        line["gpu"] = torch.cuda.get_device_name()
        line["cuda"] = torch.version.cuda
    return line


def one_line(machine: dict) -> str:
    hardware = f"{machine['cpu']}, {machine['cores']} cores ({machine['isa']})"
    if "gpu" in machine:
        hardware = f"{machine['gpu']} (CUDA {machine['cuda']}), {hardware}"
    software = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{hardware}, {machine['threads']} threads; Python {machine['python']}, {software}; "
        f"commit {machine['commit']} ({machine['tree']} tree), {machine['date']}"
    )


def slug(machine: dict) -> str:
    """A file name for this machine's results: `cpu-amd-epyc-2core`, `cuda-nvidia-h200`."""
    text = machine.get("gpu") or f"{machine['cpu']} {machine['cores']}core"
    return "-".join([machine["device"], *re.findall(r"[a-z0-9]+", text.lower())])


def cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def instruction_set() -> str:
    """That of the library's CPU kernels, or a word that they are not built."""
    return _library.instruction_set() or "no CPU kernels"


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
