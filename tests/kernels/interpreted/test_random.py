"""Philox words and their numbers, against published vectors, the reference and philox.h."""

import ctypes
import subprocess

import pytest
import torch
import triton
import triton.language as tl
from genssl_fast.kernels.common.philox import philox4x32_10
from genssl_fast.kernels.random.random import random

from genssl_fast.reference.random import random_values
from tests.kernels.compile import ROOT, compiler

UNIFORM, NORMAL, RADEMACHER = 0, 1, 2
LARGE_SEED, LARGE_SAMPLE, LARGE_STEP = -(2**63) + 17, 2**32 - 2, 2**32 - 1
# kat_vectors of Random123: counter, key, words.
KNOWN = [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
SCALAR_NORMALS = """
#define GENSSL_ISA baseline
#include "kernels/common/philox.h"
extern "C" void normals(uint64_t seed, uint32_t step, uint64_t sample, uint32_t blocks, float* z) {
  using namespace genssl::baseline;
  for (uint32_t b = 0; b < blocks; ++b)
    normals_from_block(philox4x32_10(seed, b, step, sample), z + 4 * b);
}
"""


@triton.jit
def words_kernel(seed, block, step, sample, words):
    """The four words of the address that four tensors hold."""
    w0, w1, w2, w3 = philox4x32_10(tl.load(seed), tl.load(block), tl.load(step), tl.load(sample))
    tl.store(words, w0.to(tl.int64))
    tl.store(words + 1, w1.to(tl.int64))
    tl.store(words + 2, w2.to(tl.int64))
    tl.store(words + 3, w3.to(tl.int64))


def signed(high: int, low: int) -> int:
    value = high << 32 | low
    return value - (1 << 64) if value >> 63 else value


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    address = [signed(key[1], key[0]), counter[0], counter[1], signed(counter[3], counter[2])]
    words = torch.zeros(4, dtype=torch.int64)
    words_kernel[(1,)](*map(torch.tensor, address), words)
    assert " ".join(f"{word:08x}" for word in words.tolist()) == expected


def drawn(shape, distribution, seed=LARGE_SEED, step=LARGE_STEP, sample=LARGE_SAMPLE, **options):
    out = torch.full(shape, torch.nan, **options)
    random(out, distribution, seed, None, step, None, sample)
    return out


def assert_within_ulp(found, expected, ulps):
    spacing = torch.nextafter(expected.abs(), torch.tensor(torch.inf)) - expected.abs()
    assert ((found - expected).abs() / spacing).max() <= ulps


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 1), (600, 2), (3, 5), (17, 64), (3, 10, 103)])
@pytest.mark.parametrize("distribution", [UNIFORM, NORMAL, RADEMACHER])
def test_reference(shape, distribution):
    expected = random_values(distribution, shape, LARGE_SEED, LARGE_STEP, LARGE_SAMPLE)
    found = drawn(shape, distribution)
    if distribution == NORMAL:
        assert_within_ulp(found, expected, 4)
    else:
        assert torch.equal(found, expected)


@pytest.fixture(scope="module")
def scalar_normals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("philox")
    source, library = folder / "normals.cpp", folder / "normals.so"
    source.write_text(SCALAR_NORMALS)
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{ROOT}"]
    subprocess.run([compiler(), *flags, source, "-o", library], check=True)
    function = ctypes.CDLL(str(library)).normals
    word, address = ctypes.c_uint32, ctypes.c_uint64
    function.argtypes = [address, word, address, word, ctypes.c_void_p]
    return function


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**62])
def test_scalar_cpp(seed, scalar_normals):
    """philox.h as C++ compiles it draws the same normals within 4 ulp."""
    expected, found = torch.empty(2, 2, 4096)
    for row in range(2):
        scalar_normals(seed % 2**64, 7, 5 + row, 1024, expected[row].data_ptr())
    # A tensor, because the interpreter mistypes integers in [2^31, 2^32).
    random(found, NORMAL, 0, torch.tensor(seed), 7, None, 5)
    assert_within_ulp(found, expected, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("distribution", [UNIFORM, NORMAL, RADEMACHER])
def test_dtypes_convert_fp32(dtype, distribution):
    shape = (3, 130)
    assert torch.equal(drawn(shape, distribution, dtype=dtype), drawn(shape, distribution).to(dtype))


def test_tensors_override_integers():
    out = torch.empty(3, 9)
    random(out, NORMAL, 5, torch.tensor(LARGE_SEED), 6, torch.tensor([LARGE_STEP]), LARGE_SAMPLE)
    assert torch.equal(out, drawn((3, 9), NORMAL))


def test_sample_does_not_depend_on_its_batch():
    whole = drawn((9, 3, 37), NORMAL)
    assert torch.equal(whole[4:6], drawn((2, 3, 37), NORMAL, sample=LARGE_SAMPLE + 4))


def test_empty():
    for shape in ((0, 3), (3, 0)):
        random(torch.empty(shape), NORMAL, 0, None, 0, None, 0)
