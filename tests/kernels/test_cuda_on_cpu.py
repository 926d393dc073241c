"""The execution of CUDA C++ on the CPU finds the mistakes that it is there to find."""

import math
import subprocess

import pytest

from tests.kernels.compile import ROOT, SANITIZERS, compile_cuda_on_cpu

SOURCE = ROOT / "tests/kernels/cuda_on_cpu_cases.cpp"
SEEDS = range(8)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return compile_cuda_on_cpu([SOURCE], tmp_path_factory.mktemp("cases") / "cases")


@pytest.fixture(scope="module")
def sanitized_cases(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sanitized_cases")
    return compile_cuda_on_cpu([SOURCE], directory / "cases", *SANITIZERS)


def run(program, case, seed=0):
    return subprocess.run([program, case, str(seed)], capture_output=True, text=True, timeout=60)


def numbers(program, case, seed=0):
    done = run(program, case, seed)
    assert done.returncode == 0, done.stdout + done.stderr
    return [float(word) for word in done.stdout.split()]


def error(program, case, seed=0):
    done = run(program, case, seed)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def line_of(text):
    lines = SOURCE.read_text().splitlines()
    return 1 + next(i for i, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("seed", SEEDS)
def test_block_reduction(cases, seed):
    assert numbers(cases, "block_sum", seed) == [128, 256, 384]


def test_random_order_finds_a_missing_barrier(cases):
    wrong = [numbers(cases, "missing_barrier", seed) != [128, 256, 384] for seed in SEEDS]
    assert sum(wrong) >= len(SEEDS) // 2


def test_same_seed_gives_the_same_execution(cases):
    for seed in SEEDS:
        outputs = {run(cases, "missing_barrier", seed).stdout for _ in range(3)}
        assert len(outputs) == 1


def test_deadlock_says_who_waits_where(cases):
    text = error(cases, "divergent_barrier")
    first = line_of("if (threadIdx.x < 3) {") + 1
    assert text.startswith("deadlock")
    assert f"3 threads, the first 0, wait at __syncthreads ({SOURCE}:{first})" in text
    assert f"29 threads, the first 3, wait at __syncthreads ({SOURCE}:{first + 3})" in text


def test_threads_that_returned_do_not_hold_up_a_barrier(cases):
    assert numbers(cases, "early_return") == [32]


@pytest.mark.parametrize("seed", SEEDS)
def test_votes(cases, seed):
    assert numbers(cases, "votes", seed) == [40, 0, 1, 0x55, 1, 0]


def test_shuffles(cases):
    values = numbers(cases, "shuffles")
    lanes = range(32)
    assert values[:32] == [5] * 32
    assert values[32:64] == [lane - 3 if lane % 8 >= 3 else lane for lane in lanes]
    assert values[64:96] == [lane + 3 if lane % 16 < 13 else lane for lane in lanes]
    assert values[96:] == [lane ^ 4 for lane in lanes]


def test_lane_outside_its_own_mask_is_an_error(cases):
    text = error(cases, "wrong_mask")
    assert "is not in its own mask 1" in text
    assert f"{SOURCE}:{line_of('void wrong_mask')}" in text


@pytest.mark.parametrize("seed", SEEDS)
def test_atomics(cases, seed):
    assert numbers(cases, "atomics", seed) == [16, 16, 32, 131, 128]


@pytest.mark.parametrize("seed", SEEDS)
def test_cooperative_launch_keeps_every_block_and_its_shared_memory(cases, seed):
    expected = [60 + block + 1 for block in range(3) for _ in range(4)]
    assert numbers(cases, "grid_sum", seed) == expected


def test_grid_barrier_needs_a_cooperative_launch(cases):
    text = error(cases, "grid_sync_alone")
    assert text.startswith("grid.sync outside a cooperative launch")


@pytest.mark.parametrize("seed", SEEDS)
def test_spinning_threads_let_others_run(cases, seed):
    assert numbers(cases, "wait_for_flag", seed) == [7, 7, 7]


def test_spinning_for_ever_is_an_error(cases):
    text = error(cases, "spin_for_ever")
    assert text.startswith("threads spin without progress")
    assert "spin at" in text


def test_asynchronous_copies_land_when_waited_for(cases):
    assert numbers(cases, "copies") == [0, 1, 2, 3]
    assert all(math.isnan(value) for value in numbers(cases, "missing_wait"))


def test_shared_memory_starts_as_nan_in_every_block(cases):
    assert all(math.isnan(value) for value in numbers(cases, "fresh_shared"))


def test_indices(cases):
    assert numbers(cases, "indices") == [1000 * b + t for b in range(12) for t in range(24)]


def test_impossible_launch_is_an_error(cases):
    assert "1048576 bytes of shared memory" in error(cases, "too_much_shared")


@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("past_dynamic_shared", "heap-buffer-overflow"),
        ("past_static_shared", "index 8 out of bounds"),
        ("past_global", "heap-buffer-overflow"),
    ],
)
def test_sanitizers_find_accesses_out_of_bounds(sanitized_cases, case, report):
    done = run(sanitized_cases, case)
    assert done.returncode != 0
    assert report in done.stderr
    assert "cuda_on_cpu_cases.cpp:" in done.stderr


@pytest.mark.parametrize("case", ["block_sum", "votes", "grid_sum", "wait_for_flag", "copies"])
def test_right_kernels_pass_the_sanitizers(cases, sanitized_cases, case):
    assert numbers(sanitized_cases, case) == numbers(cases, case)


def test_errors_are_reported_under_the_sanitizers(sanitized_cases):
    assert error(sanitized_cases, "divergent_barrier").startswith("deadlock")
