"""Clocks, interleaved rounds and peak memory."""

import gc
import itertools
import math
import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy
import torch

LONG_CALL = 1.0  # seconds of a call that one measurement tells enough about
LONG_ROUNDS = 60.0  # seconds after which three rounds are enough
SHORTEST_MEASUREMENT = 1e-3  # seconds: below it the clock and the call overhead weigh too much
FLUSH_BYTES = 256 << 20  # several times the L2 cache of any present GPU
BACKLOG_CYCLES = 400_000  # about 0.2 ms of GPU time, in which the host queues the measured call


class CpuClock:
    """Seconds per call by the wall clock, over `repeats` calls."""

    def __call__(self, call: Callable, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats


class CudaWallClock(CpuClock):
    """Wall clock around whole loops, the launches and the final synchronisation included."""

    def __call__(self, call: Callable, repeats: int) -> float:
        def finished():
            call()
            torch.cuda.synchronize()

        torch.cuda.synchronize()
        return super().__call__(finished, repeats)


class CudaEventClock:
    """GPU seconds per call by events: L2 cache cold, launches hidden behind a backlog."""

    def __init__(self):
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def __call__(self, call: Callable, repeats: int) -> float:
        spans = [self._launch(call) for _ in range(repeats)]
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in spans) / repeats / 1e3

    def _launch(self, call):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(BACKLOG_CYCLES)
        start.record()
        call()
        end.record()
        return start, end


def clock_for(device: str, whole_loop: bool):
    if device == "cpu":
        return CpuClock()
    return CudaWallClock() if whole_loop else CudaEventClock()


@contextmanager
def no_garbage_collection():
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def repeats_for(clock, call: Callable) -> int:
    """Inner calls that make one measurement last at least SHORTEST_MEASUREMENT."""
    seconds = clock(call, 1)
    if seconds < LONG_CALL:
        seconds = min(seconds, clock(call, 1), clock(call, 1))
    return max(1, math.ceil(SHORTEST_MEASUREMENT / max(seconds, 1e-7)))


def interleave(calls: dict, clock, *, rounds: int, seconds: float = 0.0, most: int = 200) -> dict:
    """Seconds per call of every provider, measured in rounds that each run all of them.

    The order rotates from round to round, so that no provider always runs after the same other one,
    and a disturbance of the machine falls on all of them. Rounds go on until at least `rounds` of
    them and `seconds` have passed, but never beyond `most` rounds; of calls that take long, three are enough.
    """
    repeats = {name: repeats_for(clock, call) for name, call in calls.items()}
    names, samples = list(calls), {name: [] for name in calls}
    with no_garbage_collection():
        begin = time.perf_counter()
        for turn in itertools.count():
            elapsed = time.perf_counter() - begin
            if turn >= rounds and (turn >= most or elapsed >= seconds):
                return samples
            if turn >= 3 and elapsed >= LONG_ROUNDS:
                return samples
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(clock(calls[name], repeats[name]))


def quantiles(samples: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile in milliseconds."""
    milliseconds = [1e3 * seconds for seconds in samples]
    names = ("median_ms", "p20_ms", "p80_ms")
    return dict(zip(names, numpy.quantile(milliseconds, (0.5, 0.2, 0.8)).tolist(), strict=True))


def peak_bytes(call: Callable, device: str) -> int:
    """The most that a call adds, outputs included, to what PyTorch's allocator holds."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        call()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = itertools.accumulate(size for _, size in sorted(changes, key=lambda change: change[0]))
    return max(held, default=0)
