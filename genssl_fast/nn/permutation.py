"""Reordering of features or channels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check
from genssl_fast.ops.flow_layers import PermutationLayer
from genssl_fast.ops.permute import permute

__all__ = ["Permutation"]


class Permutation(nn.Module):
    """``y[:, i] = x[:, index[i]]`` for x [B, D, ...]; the log-determinant is zero.

    Arguments:
        index: a permutation of 0, ..., D - 1. It is a buffer, so a checkpoint keeps random ones.

    Raises:
        ValueError: ``index`` is no permutation.

    Example:
        >>> reverse = genssl_fast.nn.Permutation([2, 1, 0])
        >>> reverse(torch.tensor([[1.0, 2.0, 3.0]]))[0]
        tensor([[3., 2., 1.]])
    """

    def __init__(self, index: Sequence[int] | Tensor):
        super().__init__()
        index = torch.as_tensor(index, dtype=torch.int64)
        check(index.ndim == 1 and index.numel() > 0, "index", "shape [D]", list(index.shape))
        sorted_index = index.sort().values.tolist()
        check(sorted_index == list(range(len(index))), "index", "a permutation of 0 to D - 1", index.tolist())
        self.register_buffer("index", index)

    @classmethod
    def random(cls, features: int) -> "Permutation":
        """A permutation drawn from PyTorch's default generator."""
        return cls(torch.randperm(features))

    @classmethod
    def reverse(cls, features: int) -> "Permutation":
        """The permutation that turns the order around."""
        return cls(torch.arange(features).flip(0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])``"""
        return permute(x, self.index), zero_log_abs_det(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse."""
        return permute(y, self.index, inverse=True), zero_log_abs_det(y)

    def plan_layer(self) -> PermutationLayer:
        """This layer as :class:`genssl_fast.FlowPlan` takes it."""
        return PermutationLayer(self.index)

    def extra_repr(self) -> str:
        return f"features={len(self.index)}"


def zero_log_abs_det(x: Tensor) -> Tensor:
    """[B] zeros: fp64 for fp64 input, else fp32."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_zeros(x.shape[0], dtype=dtype)
