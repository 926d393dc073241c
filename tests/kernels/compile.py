"""Compiles kernels for tests: CUDA C++ into libraries that run on the CPU, and into cubins."""

import ast
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDA_ON_CPU = [
    "-x", "c++", "-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-fPIC",
    "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", f"-I{ROOT}",
]  # fmt: skip
SANITIZERS = ["-fsanitize=address,bounds", "-fno-sanitize-recover=all", "-g1"]
NVCC = ["-O3", "-std=c++20", "--fmad=false", "-lineinfo", f"-I{ROOT}"]


def compiler() -> str:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "g++"


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def run(command: list[str]) -> str:
    """Runs a compiler and returns what it printed; raises with that text where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-8000:]}")
    return done.stdout + done.stderr


def cpu_instruction_sets() -> dict[str, str]:
    """Compiler flags of every instruction set, as setup.py has them."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "CPU_ISAS":
            return ast.literal_eval(statement.value)
    raise LookupError("setup.py: expected an assignment to CPU_ISAS")


def compile_for_isa(source: Path, isa: str, target: Path, *flags: str) -> Path:
    """Compiles a CPU kernel, or test code that includes its headers, for one instruction set."""
    machine = cpu_instruction_sets()[isa].split()
    fixed = ["-std=c++20", "-ffp-contract=off", "-fno-math-errno", "-fPIC", f"-DGENSSL_ISA={isa}"]
    run([compiler(), *fixed, *machine, *flags, f"-I{ROOT}", str(source), "-o", str(target)])
    return target


def compile_cuda_on_cpu(sources: list[Path], target: Path, *flags: str) -> Path:
    """Compiles unchanged ``.cu`` files and test code for the CPU, two objects at a time, and links them."""
    objects = [target.with_name(f"{target.name}.{source.stem}.o") for source in sources]

    def compile_object(source: Path, target: Path) -> None:
        run([compiler(), *CUDA_ON_CPU, *flags, "-c", str(source), "-o", str(target)])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_object, sources, objects))
    run([compiler(), *flags, *map(str, objects), "-o", str(target)])
    return target


def kernel_resources(source: Path, arch: str, directory: Path) -> dict[str, dict[str, int]]:
    """Compiles a ``.cu`` file for one architecture: registers, spills and shared bytes by kernel."""
    cubin = directory / f"{source.stem}.{arch}.cubin"
    log = run([nvcc(), *NVCC, "-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", str(source), "-o", str(cubin)])
    assert cubin.stat().st_size > 0
    return parse_ptxas(log)


def parse_ptxas(log: str) -> dict[str, dict[str, int]]:
    """Resources of every entry function in the output of ``ptxas -v``."""
    kernels = {}
    for entry in re.split(r"Compiling entry function '", log)[1:]:
        name = entry.split("'")[0]
        used = entry[entry.index("Used ") :].splitlines()[0]
        # The first function described is the kernel itself, others are what it calls.
        kernels[name] = {
            "registers": int(re.search(r"Used (\d+) registers", used)[1]),
            "spills": sum(map(int, re.findall(r"(\d+) bytes spill", entry))),
            "shared": int((re.search(r"(\d+) bytes smem", used) or [0, 0])[1]),
        }
    return kernels
