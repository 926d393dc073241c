"""A perceptron that gives the parameters of a transform."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from genssl_fast._checks import check, check_choice, check_count, check_integer, check_tensor
from genssl_fast.ops.flow_layers import MLPWeights
from genssl_fast.reference.causal import ACTIVATIONS

__all__ = ["MLP", "check_context", "checked_widths"]


class MLP(nn.Module):
    """Multilayer perceptron [B, in_features] → [B, out_features]; context is appended to its input.

    The last layer starts at zero, so that a coupling that reads its parameters here starts as the
    transform of parameters zero, close to the identity.

    Arguments:
        in_features, out_features: lengths of input and output.
        hidden: width of every hidden layer or, if residual, of every block; blocks are equally wide.
        activation: ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"silu"``, ``"tanh"``, ``"sigmoid"`` or
            ``"softplus"``.
        residual: whether hidden layers are blocks ``h + linear(act(linear(act(h))))``.
        context_features: length of the context, 0 for none.
        dropout: probability of dropping a hidden unit in training.

    Raises:
        ValueError: a width that is not positive, blocks of unequal width, an unknown activation.

    References:
        Residual blocks: He et al., Identity Mappings in Deep Residual Networks,
        https://arxiv.org/abs/1603.05027

    Example:
        >>> network = genssl_fast.nn.MLP(3, 4, hidden=(16, 16), context_features=2)
        >>> network(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (128, 128),
        *,
        activation: str = "relu",
        residual: bool = False,
        context_features: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        hidden = checked_widths(hidden, residual)
        check_choice("activation", activation, ACTIVATIONS)
        check_count("in_features", in_features, 1)
        check_count("out_features", out_features, 1)
        check(0 <= dropout < 1, "dropout", "a probability in [0, 1)", dropout)
        check_count("context_features", context_features)
        self.activation, self.residual, self.dropout = activation, residual, dropout
        self.context_features = context_features
        between = (hidden[0],) * (2 * len(hidden) + 1) if residual else hidden
        widths = (in_features + context_features, *between, out_features)
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.start_at(torch.zeros(out_features))

    @torch.no_grad()
    def start_at(self, output: Tensor) -> None:
        """Makes the output [out_features] a constant: the last layer's bias, its matrix zero."""
        self.layers[-1].weight.zero_()
        self.layers[-1].bias.copy_(output)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Output [B, out_features] at ``x`` [B, in_features] and ``context`` [B, context_features]."""
        check_context(context, self.context_features)
        first, *hidden, last = self.layers
        h = first(x if context is None else torch.cat([x, context], 1))
        if self.residual:
            for inner, outer in zip(hidden[::2], hidden[1::2]):
                h = h + outer(self._hidden(inner(self._activate(h))))
            return last(h)
        for layer in hidden:
            h = layer(self._hidden(h))
        return last(self._hidden(h))

    def weights(self) -> MLPWeights:
        """The parameters as :class:`genssl_fast.FlowPlan` takes them."""
        weights, biases = zip(*((layer.weight, layer.bias) for layer in self.layers))
        return MLPWeights(weights, biases, self.activation, self.residual)

    def _activate(self, h: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](h)

    def _hidden(self, h: Tensor) -> Tensor:
        h = self._activate(h)
        return functional.dropout(h, self.dropout, self.training) if self.dropout else h

    def extra_repr(self) -> str:
        return (
            f"activation={self.activation!r}, residual={self.residual}, "
            f"context_features={self.context_features}, dropout={self.dropout}"
        )


def checked_widths(hidden: Sequence[int], residual: bool) -> tuple[int, ...]:
    """Widths of hidden layers, or of residual blocks."""
    if not isinstance(hidden, Sequence):
        raise TypeError(f"hidden: expected a sequence of widths, as (128, 128), got {hidden!r}")
    for width in hidden:
        check_integer("hidden", width)
    check(len(hidden) >= 1 and min(hidden) >= 1, "hidden", "widths of at least 1", hidden)
    check(not residual or len(set(hidden)) == 1, "hidden", "equal widths where residual", hidden)
    return tuple(hidden)


def check_context(context: Tensor | None, context_features: int) -> None:
    """Context [B, context_features] is given where it is expected, and nowhere else."""
    expected = f"shape [B, {context_features}]" if context_features else "None, as context_features is 0"
    if context is not None:
        check_tensor("context", context)
    got = None if context is None else list(context.shape)
    fits = got is None if context_features == 0 else got is not None and got[1:] == [context_features]
    check(fits, "context", expected, got)
