"""ψ of a user: differentiable PyTorch, and for GPUs a pair of Triton functions."""

import importlib
import importlib.util
import inspect
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genssl_fast.reference.contrast.similarity import FUNCTIONS

if TYPE_CHECKING:
    from triton import JITFunction

__all__ = ["Psi"]

_numbers = itertools.count(len(FUNCTIONS))


class Psi:
    r"""A ψ of your own for :func:`genssl_fast.generalized_contrastive`, also inside its GPU kernels.

    Like those that have a name, it is a function of :math:`u = (x + \mathrm{margin}) / \tau`. On a GPU
    ``value`` and ``derivative`` are compiled into the kernels, which store no matrix of pairs; their second
    derivatives and forward mode call ``function`` on all pairs. Elsewhere it is called on tiles of pairs.

    Make one where a module is imported: each is compiled once, and kept as long as the process. What is
    learnable is margin and τ: kernels give no gradients to tensors that the functions hold.

    Arguments:
        function: ψ(u), a differentiable elementwise function of a tensor.
        value: ψ(u) as a ``triton.jit`` function of a block in fp32 or fp64; both or neither are given.
        derivative: ψ'(u) likewise. It is what the gradients are made of, and must be the derivative of both.

    Raises:
        TypeError, ValueError: a function that is none, or not of one argument, or comes alone.

    Example:
        >>> import triton
        >>> import triton.language as tl
        >>> @triton.jit
        ... def value(u):
        ...     return tl.exp(-u * u)
        >>> @triton.jit
        ... def derivative(u):
        ...     return -2.0 * u * tl.exp(-u * u)
        >>> psi = genssl_fast.Psi(lambda u: torch.exp(-u * u), value, derivative)
        >>> z = torch.eye(4)
        >>> genssl_fast.generalized_contrastive(z, z, "identity", psi, margin=2.0)
        tensor(12.)
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        value: "JITFunction | None" = None,
        derivative: "JITFunction | None" = None,
    ):
        if not callable(function):
            raise TypeError(f"function: expected a function of a tensor, got {type(function).__name__}")
        self.function, self.value, self.derivative = function, value, derivative
        self.number = None
        if value is not None or derivative is not None:
            _check_pair(value, derivative)
            self.number = _registered(function, value, derivative)

    def __deepcopy__(self, memo) -> "Psi":
        """Itself, as functions are; Triton's cannot be copied."""
        return self


def _registered(function, value, derivative) -> int:
    """The number under which reference and kernels find ψ, since operations take no functions."""
    number = next(_numbers)

    def slope(u):
        values, pullback = torch.func.vjp(function, u)
        return pullback(torch.ones_like(values))[0]

    kernels = _kernels()
    FUNCTIONS[number] = function, slope
    kernels.PSI[number] = kernels.sum_of(value, derivative)
    return number


def _kernels():
    return importlib.import_module("genssl_fast.kernels.contrast.pair_terms")


def _check_pair(value, derivative) -> None:
    for name, function in (("value", value), ("derivative", derivative)):
        if not _is_elementwise(function):
            raise TypeError(f"{name}: expected a triton.jit function of one argument, got {function!r}")
    if value is not derivative and _full_name(value) == _full_name(derivative):
        raise ValueError(
            f"derivative: expected another name than that of value, by which Triton knows it, got "
            f"{_full_name(derivative)!r}"
        )


def _is_elementwise(function) -> bool:
    """Of the type of the kernels' own functions, which TRITON_INTERPRET chooses."""
    if importlib.util.find_spec("triton") is None or not isinstance(function, type(_kernels().exponential)):
        return False
    parameters = inspect.signature(function.fn).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in parameters) == 1


def _full_name(function) -> str:
    return f"{function.fn.__module__}.{function.fn.__qualname__}"
