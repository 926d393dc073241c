"""Every CUDA C++ kernel compiles for every architecture within its budget of registers and memory."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

import genssl_fast
from tests.kernels.compile import ROOT, kernel_resources, nvcc, parse_ptxas

ARCHITECTURES = ("80", "90a", "100a")
SOURCES = sorted((ROOT / "kernels").rglob("*.cu"))
# Registers per thread by (kernel, samples per tile); blocks have at most 256 threads, so 255 would do.
REGISTERS = {
    ("film_mlp", "8"): 224,
    ("film_mlp", "16"): 224,
    ("film_mlp", "32"): 255,
    ("film_mlp_sample", "8"): 224,
    ("film_mlp_sample", "16"): 224,
    ("film_mlp_sample", "32"): 255,
    ("film_branch", "8"): 224,
    ("film_branch", "16"): 224,
    ("film_branch", "32"): 255,
    ("pack_mlps", None): 64,
    ("made_inverse", "8"): 128,
    ("made_inverse", "32"): 128,
    ("made_order", None): 64,
    ("made_pack", None): 64,
}
STATIC_SHARED_BYTES = 0  # launchers count on all of it


def kernel_key(mangled):
    """_ZN6genssl4cuda8film_mlpILi8ELb1EfEE... -> ("film_mlp", "8")"""
    match = re.match(r"_ZN6genssl4cuda\d+([a-z_]+?)I(?:Li(\d+)E)?", mangled)
    return match[1], match[2]


@pytest.fixture(scope="module")
def resources(tmp_path_factory):
    """What every kernel uses, by (source, architecture); two compilers run side by side."""
    if nvcc() is None:
        pytest.skip("nvcc is not installed")
    directory = tmp_path_factory.mktemp("cubins")
    builds = [(source, arch) for source in SOURCES for arch in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda build: kernel_resources(*build, directory), builds)
        return dict(zip(builds, found))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_compiles_within_budget(resources, source, arch):
    kernels = resources[source, arch]
    assert kernels
    for name, used in kernels.items():
        assert used["spills"] == 0, (name, used)
        assert used["registers"] <= REGISTERS[kernel_key(name)], (name, used)
        assert used["shared"] <= STATIC_SHARED_BYTES, (name, used)


LIBRARY = ROOT / "genssl_fast/_cuda.so"


@pytest.mark.skipif(not LIBRARY.is_file(), reason="_cuda.so is not built")
def test_library_loads_without_cuda_and_registers_its_operations():
    """It is loaded by importing genssl_fast, here on a machine that may have no GPU."""
    for operation in ("film_mlp", "film_mlp_sample", "made_inverse"):
        assert genssl_fast._library.implementations()[operation]["CUDA"] == "CUDA C++"
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch_get_current_cuda_stream" not in undefined
    assert " cuda" not in undefined  # the runtime is linked in


def test_report_of_ptxas_is_understood():
    log = """\
ptxas info    : Compiling entry function '_ZN6genssl4cuda8film_mlpILi16ELb1EfEEvv' for 'sm_90a'
ptxas info    : Function properties for _ZN6genssl4cuda8film_mlpILi16ELb1EfEEvv
    16 bytes stack frame, 12 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 256 bytes smem
ptxas info    : Compiling entry function '_ZN6genssl4cuda9pack_mlpsIfEEvv' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""
    film_mlp, pack = parse_ptxas(log).items()
    assert kernel_key(film_mlp[0]) == ("film_mlp", "16")
    assert film_mlp[1] == {"registers": 128, "spills": 36, "shared": 256}
    assert kernel_key(pack[0]) == ("pack_mlps", None)
    assert pack[1] == {"registers": 40, "spills": 0, "shared": 0}
