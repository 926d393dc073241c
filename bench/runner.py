"""Runs cases: gate, interleaved timing, ceilings, bars; returns plain JSON values."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch

from bench import gate, timing
from bench.case import OURS, Bar, Case, Workload

CEILING = "ceiling: "


@dataclass(frozen=True)
class Effort:
    """How long to measure each case: at least `rounds` rounds and `seconds`."""

    rounds: int = 15
    seconds: float = 1.5


QUICK = Effort(rounds=5, seconds=0.2)


def run_cases(cases: Iterable[Case], device: str, effort: Effort, progress: Callable) -> list[dict]:
    """Measure the cases; `progress` is told each result as it comes.

    Ctrl-C ends the measurements and keeps those that are complete.
    """
    results = []
    try:
        for case in cases:
            with torch.no_grad():
                results.append(run_case(case, device, effort))
            progress(results[-1])
    except KeyboardInterrupt:
        print("interrupted: the cases so far are kept", file=sys.stderr)
    return results


def run_case(case: Case, device: str, effort: Effort) -> dict:
    """One case: its identity, the gate's verdict and, when that is green, the measurements."""
    result = {"family": case.family, "operation": case.operation, "title": case.title}
    torch.compiler.reset()
    try:
        workload = case.build(device)
        verdict = gate.check_ours(workload)
    except Exception as error:  # one broken case must not cost the others their numbers
        return result | {"gate": asdict(gate.Verdict(None, one_line(error)))}
    result["gate"] = asdict(verdict)
    if verdict.passed:
        result |= measure(workload, case.bars(device), device, effort)
    return result


def measure(workload: Workload, bars: tuple[Bar, ...], device: str, effort: Effort) -> dict:
    """Time the providers that work, beside the ceilings, in the same rounds."""
    complaints = {name: complaint_about(workload, name) for name in workload.providers}
    calls = {name: call for name, call in workload.providers.items() if not complaints[name]}
    ceilings = {CEILING + name: ceiling.run for name, ceiling in workload.ceilings.items()}
    clock = timing.clock_for(device, workload.whole_loop)
    samples = timing.interleave(calls | ceilings, clock, rounds=effort.rounds, seconds=effort.seconds)
    times = {name: timing.quantiles(values) for name, values in samples.items()}
    providers = {
        name: times[name]
        | rates(workload, times[name]["median_ms"])
        | {"peak_bytes": timing.peak_bytes(call, device)}
        for name, call in calls.items()
    }
    failed = {name: text for name, text in complaints.items() if text}
    ceiling = ceiling_share(workload, times)
    return {
        "rounds": len(samples[OURS]),
        "providers": providers,
        "failed": failed,
        "ceiling": ceiling,
        "bars": [judge(bar, providers, ceiling) for bar in bars],
    }


def complaint_about(workload: Workload, name: str) -> str:
    """Warm a provider up (compiling it where it compiles) and check its value."""
    if name == OURS:
        return ""
    try:
        return gate.check_baseline(workload, name)
    except Exception as error:  # a missing or failing competitor is reported, not fatal
        return one_line(error)


def rates(workload: Workload, milliseconds: float) -> dict[str, float]:
    amounts = {"gb_per_s": workload.bytes, "gflop_per_s": workload.flops}
    return {unit: amount / milliseconds / 1e6 for unit, amount in amounts.items() if amount}


def ceiling_share(workload: Workload, times: dict) -> dict | None:
    """The fastest of the measured ceilings, and the share of its rate that ours reaches."""
    if not workload.ceilings:
        return None
    per_ms = {
        name: ceiling.work / times[CEILING + name]["median_ms"] for name, ceiling in workload.ceilings.items()
    }
    name = max(per_ms, key=per_ms.get)
    work = workload.flops or workload.bytes
    share = work / times[OURS]["median_ms"] / per_ms[name]
    return {"name": name, "giga_per_s": per_ms[name] / 1e6, "share": share}


def judge(bar: Bar, providers: dict, ceiling: dict | None) -> dict:
    """What ours reaches against a bar; None when what it is measured against did not run."""
    reached = ceiling and ceiling["share"] if not bar.over else speedup(providers, bar.over)
    met = reached is not None and reached >= bar.at_least
    return asdict(bar) | {"over": list(bar.over), "reached": reached, "met": met}


def speedup(providers: dict, names: Iterable[str]) -> float | None:
    """How many times faster ours is than the fastest of the named providers."""
    times = [providers[name]["median_ms"] for name in names if name in providers]
    return min(times) / providers[OURS]["median_ms"] if times else None


def others(providers: dict) -> list[str]:
    """Those that compete; ours at another size does not."""
    return [name for name in providers if name != OURS and not name.startswith(f"{OURS}, ")]


def one_line(error: Exception) -> str:
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0] if first else ''}"[:300]
