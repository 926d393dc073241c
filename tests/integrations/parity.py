"""A layer of another library and the same layer accelerated: values, log-determinants, gradients."""

import copy

import torch
from torch import nn

from genssl_fast.accelerate import accelerate

__all__ = ["accelerated", "agree", "randomize", "same_function", "within_error"]


def randomize(module: nn.Module, scale: float = 0.5, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Every parameter drawn anew, so that nothing is at its start, where layers are the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.to(dtype).parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return module.eval()


def accelerated(module: nn.Module, left: str | None = None) -> nn.Module:
    """A copy on our kernels; nothing is left as it was but what a reason with these words names."""
    ours = copy.deepcopy(module)
    report = accelerate(ours)
    assert report.replaced
    assert all(left and left in entry.reason for entry in report.skipped), report
    assert bool(report.skipped) == bool(left)
    return ours


def agree(ours, theirs, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_dtype=False)


def within_error(found, exact, *others, factor: float = 2) -> None:
    """Its largest error is at most ``factor`` times that of one of the others, and 4 ulp of fp32."""
    assert found.shape == exact.shape
    error, *of_others = ((values - exact).detach().abs().max().item() for values in (found, *others))
    bound = factor * max(of_others) + 4 * 2.0**-23 * exact.detach().abs().max().item()
    assert error <= bound, f"{error:.2e} > {bound:.2e}"


def same_function(module: nn.Module, ours: nn.Module, call, tolerance: float = 1e-11) -> None:
    """``call(module)`` gives the same tensors, and gradients, on both."""
    results = [call(m) for m in (module, ours)]
    agree(*reversed(results), tolerance)
    gradients = [_gradients(m, outputs) for m, outputs in zip((module, ours), results)]
    assert any(gradient is not None for gradient in gradients[0])
    for theirs, found in zip(*gradients):
        if theirs is not None:
            agree(found, theirs, 100 * tolerance)


def _gradients(module: nn.Module, outputs) -> list:
    """Of a sum in which every number has its own weight."""
    module.zero_grad()
    kept = [output.flatten() for output in outputs if output.requires_grad]
    sum(output @ torch.arange(len(output)).cos().to(output.dtype) for output in kept).backward()
    return [parameter.grad for parameter in module.parameters()]
