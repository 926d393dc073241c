"""Ahead-of-time compilation of every Triton kernel, as its launcher launches it, within a budget.

The launchers run on CPU tensors under a driver that has a target and no device, so that what is
compiled is what a GPU would get: the same tiles, options, alignments and argument types.
"""

import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")

import triton
from genssl_fast.kernels.common.tile import NUM_WARPS, TILE_ELEMENTS
from genssl_fast.kernels.contrast import (
    code_sums,
    fused_pairs,
    nearest_code,
    pair_chunks,
    pairs,
    sinkhorn,
    soft_cross_entropy,
)
from genssl_fast.kernels.coupling import affine_coupling, rational_quadratic_spline
from genssl_fast.kernels.integrate import langevin_step, sampler_step
from genssl_fast.kernels.random import random
from genssl_fast.kernels.score import time_embedding
from triton.backends.compiler import GPUTarget

from tests.kernels.user_psi import USER_PSI

ARCHITECTURES = (80, 90, 100)
TYPE_NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
}
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COUNTER = (1, None, 2, None, 3)


def run_random(distribution):
    return lambda x: random.random(x, distribution, *COUNTER)


def run_step(x, history=0, index_tensor=None, counter=COUNTER):
    table = torch.zeros(3, 2 * (history + 1) + 6, dtype=torch.float64)
    past = [x] * history
    sampler_step.sampler_step(
        x, x, past, past, None, table, 0, index_tensor, history + 1, math.nan, *counter
    )  # fmt: skip


def run_step_with_tensors(x):
    number = torch.zeros((), dtype=torch.int64)
    rows = number.expand(len(x))
    run_step(x, history=2, index_tensor=rows, counter=(0, number, 0, number, 0))


def run_langevin(x, snr=0.1):
    step_size = 0.1 if math.isnan(snr) else math.nan
    langevin_step.langevin_step(x, x, None, snr, step_size, 1.0, *COUNTER)


def run_langevin_given(x):
    run_langevin(x, math.nan)


def run_embedding(x):
    frequencies = torch.zeros(x.shape[1])
    time_embedding.time_embedding(x[:, 0], frequencies, False, 2 * x.shape[1])


def run_affine(x, clamp=1, rows=True):
    """Shift and log-scale are halves of a network's output, or its even and odd entries."""
    network_output = x.new_zeros(len(x), 2 * x.shape[1])
    halves = network_output.chunk(2, 1) if rows else (network_output[:, 0::2], network_output[:, 1::2])
    options = (None, 0, False, clamp, 2.0, 0.0, 0.0, False)
    y, log_abs_det = affine_coupling.affine_coupling(x, *halves, *options)
    affine_coupling.affine_coupling_backward(y, log_abs_det, x, *halves, *options)


def run_affine_interleaved(x):
    run_affine(x, rows=False)


def run_affine_softplus(x):
    run_affine(x, clamp=5)


def run_spline(x, bins=8, inverse=False, zuko=False):
    """Widths, heights and slopes are chunks of a network's output."""
    chunks = x.new_zeros(*x.shape, 3 * bins - 1).split([bins, bins, bins - 1], -1)
    options = (inverse, False, 1, zuko, -1.0, 1.0, -1.0, 1.0, 1e-3, 1e-3, 1e-3, 1e-3)
    y, log_abs_det = rational_quadratic_spline.rational_quadratic_spline(x, *chunks, *options)
    rational_quadratic_spline.rational_quadratic_spline_backward(y, log_abs_det, x, *chunks, *options)


def run_spline_inverse(x):
    run_spline(x, bins=64, inverse=True, zuko=True)


def run_sinkhorn(x):
    numbers = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    sinkhorn.sinkhorn_maxima(x, 0.05)
    sinkhorn.sinkhorn_sums(x, numbers, numbers, 0.05)


def run_sinkhorn_codes(x):
    numbers = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    sinkhorn.sinkhorn_codes(x, numbers, numbers, 0.05)


def run_soft_cross_entropy(x, views=1, teacher_moves=False):
    """Views of two teachers and more, or a pair of logits whose teacher is fixed."""
    student, teacher = x.expand(2 * views, *x.shape), x.expand(views, *x.shape)
    numbers = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    inputs = (student, teacher, numbers, numbers[0], numbers[0], teacher_moves)
    losses, *rows = soft_cross_entropy.soft_cross_entropy(*inputs)
    soft_cross_entropy.soft_cross_entropy_backward(losses, *inputs, *rows)


def run_dino(x):
    run_soft_cross_entropy(x, views=2, teacher_moves=True)


def run_nearest_code(x):
    indices, _ = nearest_code.nearest_code(x, x[:32])
    code_sums.code_sums(x, indices, x[:, 0], 32)


LONG, SHORT = (4, 4096), (64, 64)
SPLINE = rational_quadratic_spline.rational_quadratic_spline_kernel
SPLINE_BACKWARD = rational_quadratic_spline.rational_quadratic_spline_backward_kernel
AFFINE = affine_coupling.affine_coupling_kernel
AFFINE_BACKWARD = affine_coupling.affine_coupling_backward_kernel
UPDATE = langevin_step.langevin_update_kernel
SQUARES = langevin_step.langevin_squares_kernel
STEP = sampler_step.sampler_step_kernel
RANDOM = random.random_kernel
EMBEDDING = time_embedding.time_embedding_kernel
SINKHORN_ROWS, SINKHORN_COLUMNS = sinkhorn.sinkhorn_rows_kernel, sinkhorn.sinkhorn_columns_kernel
SINKHORN_MAXIMA, SINKHORN_MERGE = sinkhorn.sinkhorn_block_maxima_kernel, sinkhorn.sinkhorn_merge_kernel
SOFT = soft_cross_entropy.soft_cross_entropy_kernel
SOFT_MEANS = soft_cross_entropy.soft_cross_entropy_means_kernel
SOFT_BACKWARD = soft_cross_entropy.soft_cross_entropy_backward_kernel
SEARCH = nearest_code.search_kernel
DECIDE = nearest_code.decide_kernel
DISTANCE = nearest_code.distance_kernel
CODE_SUMS = code_sums.code_sums_kernel
# Sine and cosine in fp64 are libdevice's, whose reduction of large arguments needs the stack.
NOT_FP64 = tuple(dtype for dtype in FLOATING if dtype != torch.float64)
FP32 = (torch.float32,)


class Case(NamedTuple):
    """Streams that the kernel reads and writes, and registers that it may use, apart for fp64; bytes of
    shared memory."""

    kernel: triton.JITFunction
    call: Callable
    shape: tuple[int, int]
    reads: int
    writes: int
    registers: int
    registers_fp64: int = 0
    dtypes: tuple[torch.dtype, ...] = FLOATING
    shared: int = 4096


CASES = {
    "uniform": Case(RANDOM, run_random(0), LONG, 0, 1, 32, dtypes=FP32),
    "normal": Case(RANDOM, run_random(1), LONG, 0, 1, 40, 40),
    "normal-short": Case(RANDOM, run_random(1), SHORT, 0, 1, 40, dtypes=FP32),
    "rademacher": Case(RANDOM, run_random(2), LONG, 0, 1, 32, dtypes=FP32),
    "step": Case(STEP, run_step, LONG, 2, 2, 48, 80),
    "step-short": Case(STEP, run_step, SHORT, 2, 2, 48, dtypes=FP32),
    "step-history": Case(STEP, run_step_with_tensors, LONG, 6, 2, 56, 96),
    "langevin-squares": Case(SQUARES, run_langevin, LONG, 1, 0, 48, 64),
    "langevin-update": Case(UPDATE, run_langevin, LONG, 2, 1, 64, 80),
    "langevin-short": Case(UPDATE, run_langevin, SHORT, 2, 1, 56, dtypes=FP32),
    "langevin-given": Case(UPDATE, run_langevin_given, LONG, 2, 1, 48, dtypes=FP32),
    "affine": Case(AFFINE, run_affine, LONG, 3, 1, 48, 168),
    "affine-short": Case(AFFINE, run_affine, SHORT, 3, 1, 56, dtypes=FP32),
    "affine-interleaved": Case(AFFINE, run_affine_interleaved, LONG, 1, 1, 96, dtypes=FP32),
    "affine-softplus": Case(AFFINE, run_affine_softplus, LONG, 3, 1, 56, dtypes=FP32),
    "affine-backward": Case(AFFINE_BACKWARD, run_affine, LONG, 3, 3, 48, 168),
    "spline": Case(SPLINE, run_spline, SHORT, 0, 0, 128, dtypes=NOT_FP64),
    "spline-inverse": Case(SPLINE, run_spline_inverse, SHORT, 0, 0, 128, dtypes=FP32),
    "spline-backward": Case(SPLINE_BACKWARD, run_spline, SHORT, 0, 0, 128, dtypes=NOT_FP64),
    "spline-inverse-backward": Case(SPLINE_BACKWARD, run_spline_inverse, SHORT, 0, 0, 128, dtypes=FP32),
    "sinkhorn-maxima": Case(SINKHORN_MAXIMA, run_sinkhorn, LONG, 1, 0, 64, dtypes=FP32),
    "sinkhorn-merge": Case(SINKHORN_MERGE, run_sinkhorn, LONG, 0, 0, 64, dtypes=FP32),
    "sinkhorn-rows": Case(SINKHORN_ROWS, run_sinkhorn, LONG, 1, 0, 80, 128),
    "sinkhorn-columns": Case(SINKHORN_COLUMNS, run_sinkhorn, LONG, 1, 0, 64, dtypes=FP32),
    "sinkhorn-codes": Case(SINKHORN_COLUMNS, run_sinkhorn_codes, LONG, 1, 1, 80, 112),
    "soft-cross-entropy": Case(SOFT, run_soft_cross_entropy, LONG, 1, 0, 64, 96),
    "soft-cross-entropy-backward": Case(SOFT_BACKWARD, run_soft_cross_entropy, LONG, 1, 0, 64, 96),
    "dino": Case(SOFT, run_dino, LONG, 1, 0, 80, dtypes=FP32),
    "dino-means": Case(SOFT_MEANS, run_dino, LONG, 1, 0, 96, dtypes=FP32),
    "dino-backward": Case(SOFT_BACKWARD, run_dino, LONG, 1, 0, 96, dtypes=FP32),
    "nearest-code": Case(SEARCH, run_nearest_code, SHORT, 0, 0, 168, dtypes=NOT_FP64, shared=49152),
    "nearest-code-decide": Case(DECIDE, run_nearest_code, SHORT, 0, 0, 96, 96),
    "nearest-code-distance": Case(DISTANCE, run_nearest_code, SHORT, 0, 0, 64, 64),
    "code-sums": Case(CODE_SUMS, run_nearest_code, SHORT, 0, 0, 64, 64),
    "embedding": Case(EMBEDDING, run_embedding, LONG, 0, 2, 40, dtypes=NOT_FP64),
}


def run_gram_logsumexp(z):
    pairs.gram_logsumexp(z, torch.ones((), dtype=number_dtype(z)), None, None, False)


def run_gram_logsumexp_backward(z):
    numbers = torch.zeros(len(z), dtype=number_dtype(z))
    pairs.gram_logsumexp_backward(numbers, numbers, numbers[:1], z, numbers[0], numbers, None)


def run_pair_sum_backward(z, psi=0):
    numbers = torch.zeros(len(z), dtype=number_dtype(z))
    pairs.gram_pair_sum_backward(numbers, z, numbers[0], numbers, numbers, psi)


def run_user_sums(name):
    def call(z):
        numbers = torch.zeros(len(z), dtype=number_dtype(z))
        pairs.gram_pair_sum(z, numbers[0], numbers, numbers, USER_PSI[name].number)

    return call


def run_user_backward(name):
    return lambda z: run_pair_sum_backward(z, USER_PSI[name].number)


def run_sigmoid(x):
    number, ids = torch.ones((), dtype=number_dtype(x)), torch.arange(len(x), dtype=torch.int32)
    pairs.sigmoid_pairs(x, x, number, number, ids, ids, True)


def number_dtype(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class PairCase(NamedTuple):
    """What the first launch of a kernel may use for rows of `depth`, and who multiplies."""

    kernel: triton.JITFunction
    call: Callable
    depth: int
    dtype: torch.dtype
    registers: int
    tensor_cores: bool = False


ROW_SUMS, ROW_GRADIENTS = fused_pairs.row_sums_kernel, fused_pairs.row_gradients_kernel
CHUNK_SUMS, CHUNK_WEIGHTS = pair_chunks.chunk_sums_kernel, pair_chunks.chunk_weights_kernel
MERGE = pair_chunks.merge_kernel
PAIR_CASES = {
    "log-sums": PairCase(ROW_SUMS, run_gram_logsumexp, 128, torch.bfloat16, 128, True),
    "gradients": PairCase(ROW_GRADIENTS, run_gram_logsumexp_backward, 128, torch.bfloat16, 255, True),
    "gradients-fp16": PairCase(ROW_GRADIENTS, run_gram_logsumexp_backward, 128, torch.float16, 255, True),
    "gradients-fp32": PairCase(ROW_GRADIENTS, run_gram_logsumexp_backward, 64, torch.float32, 168),
    "soft-triplet": PairCase(ROW_GRADIENTS, run_pair_sum_backward, 128, torch.bfloat16, 255, True),
    "sigmoid": PairCase(ROW_GRADIENTS, run_sigmoid, 128, torch.bfloat16, 255, True),
    "sigmoid-ragged": PairCase(ROW_GRADIENTS, run_sigmoid, 255, torch.bfloat16, 255, True),
    "chunk-log-sums": PairCase(CHUNK_SUMS, run_gram_logsumexp, 256, torch.float32, 64),
    "chunk-log-sums-fp64": PairCase(CHUNK_SUMS, run_gram_logsumexp, 5, torch.float64, 128),
    "chunk-weights": PairCase(CHUNK_WEIGHTS, run_gram_logsumexp_backward, 256, torch.bfloat16, 112),
    "user": PairCase(ROW_SUMS, run_user_sums("bell"), 64, torch.float32, 128),
    "user-gradients": PairCase(ROW_GRADIENTS, run_user_backward("log_square"), 64, torch.float32, 168),
    "user-gradients-typed": PairCase(ROW_GRADIENTS, run_user_backward("ramp"), 64, torch.float32, 168),
    "chunk-user-fp64": PairCase(CHUNK_SUMS, run_user_sums("bell"), 5, torch.float64, 128),
    "chunk-user-weights": PairCase(CHUNK_WEIGHTS, run_user_backward("bell"), 256, torch.float32, 112),
    "chunk-user-weights-fp64": PairCase(CHUNK_WEIGHTS, run_user_backward("same"), 5, torch.float64, 255),
    "chunk-sigmoid": PairCase(CHUNK_WEIGHTS, run_sigmoid, 256, torch.bfloat16, 112),
    "chunk-sigmoid-fp64": PairCase(CHUNK_WEIGHTS, run_sigmoid, 5, torch.float64, 255),
}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


class StubDriver:
    """As much of Triton's driver as compilation needs: a target without a device."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self):
        return self.architecture

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compile_launches(monkeypatch):
    """Compiles, and does not run, the first launches of a call: kernel -> compiled kernel."""

    def compile_launches(call, x, architecture):
        compiled = {}
        monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver(architecture))
        for kernel in {case.kernel for case in (*CASES.values(), *PAIR_CASES.values())} | {MERGE}:

            def compile_only(*args, kernel=kernel, run=type(kernel).run, warmup, **kwargs):
                if kernel not in compiled:
                    compiled[kernel] = run(kernel, *args, warmup=True, **kwargs)

            monkeypatch.setattr(kernel, "run", compile_only)
        call(x)
        return compiled

    return compile_launches


def resource_usage(cubin: bytes, folder: Path) -> dict[str, int]:
    (folder / "kernel.cubin").write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [tool, "--dump-resource-usage", folder / "kernel.cubin"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}


def wide_bytes(ptx: str, instruction: str) -> int:
    """Bytes that one thread moves by instructions of at least 16 bytes."""
    found = re.findall(rf"{instruction}\.global\S*\.v(\d)\.[bf](\d+)", ptx)
    widths = [int(count) * int(bits) // 8 for count, bits in found]
    return sum(width for width in widths if width >= 16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{name}-{TYPE_NAMES[dtype]}")
        for name, case in CASES.items()
        for dtype in case.dtypes
    ],
)
def test_budget(case, dtype, architecture, compile_launches, tmp_path):
    x = torch.zeros(case.shape, dtype=dtype)
    compiled = compile_launches(case.call, x, architecture)[case.kernel]
    usage = resource_usage(compiled.asm["cubin"], tmp_path)
    assert usage["STACK"] == usage["LOCAL"] == 0, "spills"
    assert usage["REG"] <= (case.registers_fp64 if dtype == torch.float64 else case.registers)
    assert compiled.metadata.shared <= case.shared
    thread_bytes = TILE_ELEMENTS // (32 * NUM_WARPS) * dtype.itemsize
    assert wide_bytes(compiled.asm["ptx"], "ld") >= case.reads * thread_bytes
    assert wide_bytes(compiled.asm["ptx"], "st") >= case.writes * thread_bytes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", PAIR_CASES.values(), ids=PAIR_CASES)
def test_budget_of_pairs(case, architecture, compile_launches, tmp_path, monkeypatch):
    """Shared memory for two programs on a multiprocessor of sm_90; tf32 for fp16 alone."""
    for product in ("multiply", "add_product"):
        monkeypatch.setattr(pair_chunks, product, lambda *args: None)
    compiled = compile_launches(case.call, torch.zeros(512, case.depth, dtype=case.dtype), architecture)
    usage = resource_usage(compiled[case.kernel].asm["cubin"], tmp_path)
    assert usage["STACK"] == usage["LOCAL"] == 0, "spills"
    assert usage["REG"] <= case.registers
    assert compiled[case.kernel].metadata.shared <= 112 * 1024
    ptx = compiled[case.kernel].asm["ptx"]
    assert (TENSOR_CORES[architecture] in ptx) == case.tensor_cores
    assert ("tf32" in ptx) == (case.dtype == torch.float16)
