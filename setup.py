"""Build of the compiled parts: one ninja file, three shared libraries.

genssl_fast/_cpu.so       CPU kernels and their glue for PyTorch's dispatcher (LibTorch stable ABI)
genssl_fast/_cuda.so      CUDA C++ kernels and theirs; built where nvcc is found
genssl_fast/_native*.so   torch-free pybind11 module

Environment: GENSSL_CUDA=0|1|auto, GENSSL_CUDA_ARCHS="80;90a;100a", MAX_JOBS, DEBUG=1.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
CPU_ISAS = {
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c",
    "avx2": "-mavx2 -mfma -mf16c",
    "baseline": "-march=x86-64-v2",
}
RULES = """
rule cxx
  command = $cxx $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = C++ $out
rule nvcc
  command = $nvcc $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = CUDA $out
rule link
  command = $cxx -shared $in $flags -o $out
  description = LINK $out
"""


def find_nvcc() -> str | None:
    """nvcc from CUDA_HOME or PATH; a CPU-only torch does not hide it."""
    wanted = os.environ.get("GENSSL_CUDA", "auto")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None and wanted == "1":
        raise SystemExit("GENSSL_CUDA=1 asks for CUDA, but nvcc is neither in CUDA_HOME nor on PATH")
    return nvcc


def cuda_toolkit(nvcc: str) -> Path:
    """The toolkit's folder as nvcc itself sees it: the program on PATH may be a wrapper."""
    dry_run = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True)
    top = next(line for line in dry_run.stderr.splitlines() if line.startswith("#$ TOP="))
    return Path(top.removeprefix("#$ TOP=")).resolve()


def torch_paths() -> tuple[list[str], Path]:
    try:
        import torch
        from torch.utils.cpp_extension import include_paths
    except ImportError:
        raise SystemExit(
            "genssl_fast builds against an installed PyTorch: install torch>=2.11 first, then run\n"
            "  pip install --no-build-isolation ."
        ) from None
    return include_paths(), Path(torch.__file__).parent / "lib"


class Ninja:
    """Collects objects and libraries of one build file."""

    def __init__(self, objects: Path):
        self.objects, self.lines = objects, [RULES]

    def compile(self, rule: str, source: Path, flags: str, tag: str = "") -> str:
        relative = source.relative_to(ROOT).with_suffix("")
        target = self.objects / f"{relative}{tag and '.' + tag}.o"
        self.lines.append(f"build {target}: {rule} {source}\n  flags = {flags}\n")
        return str(target)

    def link(self, target: Path, objects: list[str], flags: str) -> None:
        self.lines.append(f"build {target}: link {' '.join(objects)}\n  flags = {flags}\n")

    def run(self, compilers: dict[str, str]) -> None:
        self.objects.mkdir(parents=True, exist_ok=True)
        header = "".join(f"{name} = {path}\n" for name, path in compilers.items())
        (self.objects / "build.ninja").write_text(header + "".join(self.lines))
        import ninja

        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        program = str(Path(ninja.BIN_DIR) / "ninja")
        subprocess.run([program, "-C", str(self.objects), "-j", jobs], check=True)


class build_kernels(build_ext):
    """Compiles everything with ninja; without a C++ compiler the library runs its references."""

    def run(self) -> None:
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            print("no C++ compiler found: operations will run their references", file=sys.stderr)
            return
        target = ROOT if self.inplace else Path(self.build_lib).resolve()
        # The objects stay, so that the next build, of a wheel too, compiles only what changed.
        build = Ninja(ROOT / "build/objects")
        compilers = {"cxx": compiler}
        self.add_cpu(build, target / "genssl_fast")
        nvcc = find_nvcc()
        if nvcc:
            compilers["nvcc"] = nvcc
            self.add_cuda(build, target / "genssl_fast", nvcc)
        (target / "genssl_fast").mkdir(parents=True, exist_ok=True)
        build.run(compilers)

    def common_flags(self) -> str:
        optimise = "-O0 -g" if os.environ.get("DEBUG") == "1" else "-O3"
        return f"{optimise} -std=c++20 -fPIC -fvisibility=hidden -Wall -Wno-uninitialized -I{ROOT}"

    def torch_flags(self) -> str:
        includes, _ = torch_paths()
        return f"{self.common_flags()} {STABLE_ABI} " + " ".join(f"-isystem {p}" for p in includes)

    def add_cpu(self, build: Ninja, package: Path) -> None:
        kernels = [build.compile("cxx", ROOT / "kernels/common/isa.cpp", self.common_flags())]
        isas = CPU_ISAS if platform.machine() == "x86_64" else {"baseline": ""}
        for source in sorted((ROOT / "kernels").rglob("*.cpp")):
            if source.name == "isa.cpp":
                continue
            for isa, machine in isas.items():
                flags = (
                    f"{self.common_flags()} -ffp-contract=off -fno-math-errno -DGENSSL_ISA={isa} {machine}"
                )
                kernels.append(build.compile("cxx", source, flags, isa))
        glue = [build.compile("cxx", s, self.torch_flags()) for s in sorted((ROOT / "csrc").glob("*.cpp"))]
        libraries = torch_paths()[1]
        build.link(package / "_cpu.so", kernels + glue, f"-L{libraries} -ltorch_cpu -ltorch -lc10")

        import pybind11

        headers = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}"
        native = [
            build.compile("cxx", source, f"{self.common_flags()} {headers}")
            for source in sorted((ROOT / "csrc/native").glob("*.cpp"))
        ]
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        build.link(package / f"_native{suffix}", kernels + native, "")

    def add_cuda(self, build: Ninja, package: Path, nvcc: str) -> None:
        toolkit = cuda_toolkit(nvcc)
        archs = os.environ.get("GENSSL_CUDA_ARCHS", "80;90a;100a").split(";")
        code = " ".join(f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs)
        flags = f"-O3 -std=c++20 -lineinfo --fmad=false -Xcompiler -fPIC,-fvisibility=hidden {code} -I{ROOT}"
        objects = [build.compile("nvcc", s, flags, "cuda") for s in sorted((ROOT / "kernels").rglob("*.cu"))]
        cuda_flags = f"{self.torch_flags()} -isystem {toolkit}/include"
        objects += [
            build.compile("cxx", source, cuda_flags) for source in sorted((ROOT / "csrc/cuda").glob("*.cpp"))
        ]
        library = next(p for p in (toolkit / "lib64", toolkit / "lib") if p.is_dir())
        libraries = (
            f"-L{torch_paths()[1]} -ltorch_cpu -ltorch -lc10 -L{library} -lcudart_static -ldl -lrt -lpthread"
        )
        build.link(package / "_cuda.so", objects, libraries)

    def get_outputs(self) -> list[str]:
        package = (ROOT if self.inplace else Path(self.build_lib)) / "genssl_fast"
        return [str(path) for path in package.glob("*.so")]

    def get_source_files(self) -> list[str]:
        return []


def kernel_packages() -> list[str]:
    """genssl_fast.kernels and every folder below it: their Triton files are imported."""
    folders = [ROOT / "kernels", *(p for p in sorted((ROOT / "kernels").rglob("*")) if p.is_dir())]
    names = (p.relative_to(ROOT).as_posix().replace("/", ".") for p in folders if p.name != "__pycache__")
    return [f"genssl_fast.{name}" for name in names]


setup(
    packages=find_packages(include=["genssl_fast*"]) + kernel_packages(),
    package_dir={"genssl_fast.kernels": "kernels"},
    package_data={name: ["*.h", "*.cpp", "*.cu", "*.cuh"] for name in kernel_packages()}
    | {"genssl_fast.ssl": ["recipes/*.toml"]},
    ext_modules=[Extension("genssl_fast._native", sources=[])],
    cmdclass={"build_ext": build_kernels},
)
