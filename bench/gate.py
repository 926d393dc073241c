"""The correctness gate: no number for an operation whose value is wrong."""

import math
from dataclasses import dataclass

import torch

from bench.case import OURS, Workload

LOOSE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """Outcome of the gate: the worst error as a share of its limit, or the first complaint."""

    worst: float | None
    complaint: str = ""

    @property
    def passed(self) -> bool:
        return not self.complaint


def tensors(result) -> list[torch.Tensor]:
    """The tensors of a provider's result, which may be one, or a tuple of them."""
    return [result] if isinstance(result, torch.Tensor) else list(result)


def largest_error(y: torch.Tensor, y64: torch.Tensor) -> float:
    return (y.double() - y64.double()).abs().max().item()


def error_limit(y_torch: torch.Tensor, y64: torch.Tensor) -> float:
    """2·max|y_torch − y64| + 4 ulp(max|y64|), the ulp being that of y_torch's dtype."""
    kind = torch.finfo(y_torch.dtype)
    largest = max(y64.abs().max().item(), kind.tiny)
    ulp = kind.eps * 2.0 ** math.floor(math.log2(largest))
    return 2 * largest_error(y_torch, y64) + 4 * ulp


def check_ours(workload: Workload) -> Verdict:
    """Compare ours with the float64 reference, output by output."""
    outputs = tensors(workload.providers[OURS]())
    plain = tensors(workload.reference(outputs[0].dtype))
    exact = tensors(workload.reference(torch.float64))
    if not len(outputs) == len(plain) == len(exact):
        return Verdict(None, f"{len(outputs)} outputs, the reference has {len(exact)}")
    worst = 0.0
    for i, (y, y_torch, y64) in enumerate(zip(outputs, plain, exact, strict=True)):
        if y.shape != y64.shape:
            return Verdict(None, f"output {i}: shape {list(y.shape)}, not {list(y64.shape)}")
        error, limit = largest_error(y, y64), error_limit(y_torch, y64)
        if not error <= limit:  # a NaN is no better than a large error
            return Verdict(None, f"output {i}: error {error:.3g}, allowed {limit:.3g}")
        worst = max(worst, error / limit)
    return Verdict(worst)


def check_baseline(workload: Workload, name: str) -> str:
    """A complaint when a competitor computes something else: its time would mean nothing."""
    result = tensors(workload.providers[name]())
    if name in workload.own_values:
        return ""
    for y, y64 in zip(result, tensors(workload.reference(torch.float64)), strict=False):
        if y.shape != y64.shape:
            return f"wrong shape {list(y.shape)}"
        error = largest_error(y, y64)
        if not error <= LOOSE_TOLERANCE * max(1.0, y64.abs().max().item()):
            return f"wrong value, error {error:.3g}"
    return ""
