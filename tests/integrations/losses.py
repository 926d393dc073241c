"""A loss of another library and ours: values and gradients on the same inputs."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from tests.integrations.parity import agree

__all__ = ["drawn", "drawn_examples", "same_loss", "value_and_gradients"]

drawn_examples = settings(max_examples=30, deadline=None)


def drawn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def seeds():
    return st.integers(0, 2**31)


def same_loss(ours, theirs, *tensors: Tensor, tolerance: float = 1e-10) -> None:
    """Both functions of ``tensors`` have the same value and the same gradients."""
    agree(value_and_gradients(ours, *tensors), value_and_gradients(theirs, *tensors), tolerance)


def value_and_gradients(loss, *tensors: Tensor) -> list[Tensor]:
    """Zeros where there is no gradient."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    value.sum().backward()
    return [value.detach()] + [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
