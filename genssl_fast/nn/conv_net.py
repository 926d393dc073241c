"""A small convolutional network that gives the parameters of a transform of images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check_choice, check_count
from genssl_fast.nn.mlp import check_context
from genssl_fast.ops.flow_layers import ConvNetWeights
from genssl_fast.reference.causal import ACTIVATIONS

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """Convolutions 3×3, 1×1, 3×3 from [B, in_channels, H, W] to [B, out_channels, H, W], channels-last.

    The last convolution starts at zero, so that a coupling starts close to the identity.

    Arguments:
        in_channels, out_channels: of input and output.
        hidden: channels between the convolutions.
        activation: ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"silu"``, ``"tanh"``, ``"sigmoid"`` or
            ``"softplus"``.
        context_features: length of the context, a linear function of which is added after the first
            convolution.

    Raises:
        ValueError: a width that is not positive, an unknown activation.

    References:
        Kingma and Dhariwal, Glow, https://arxiv.org/abs/1807.03039

    Example:
        >>> network = genssl_fast.nn.ConvNet(3, 6, hidden=16)
        >>> network(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 6, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 64,
        *,
        activation: str = "relu",
        context_features: int = 0,
    ):
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "hidden": hidden}
        for name, size in sizes.items():
            check_count(name, size, 1)
        check_choice("activation", activation, ACTIVATIONS)
        check_count("context_features", context_features)
        self.activation, self.context_features = activation, context_features
        self.first = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.last = nn.Conv2d(hidden, out_channels, 3, padding=1)
        self.context = nn.Linear(context_features, hidden, bias=False) if context_features else None
        self.start_at(torch.zeros(out_channels))
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def start_at(self, output: Tensor) -> None:
        """Makes the output [out_channels] a constant: the last layer's bias, its weights zero."""
        self.last.weight.zero_()
        self.last.bias.copy_(output)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Output at ``x`` [B, in_channels, H, W] and ``context`` [B, context_features]."""
        check_context(context, self.context_features)
        # In place, which halves the traffic of a ReLU.
        activation = torch.relu_ if self.activation == "relu" else ACTIVATIONS[self.activation]
        h = self.first(x.movedim(1, -1).contiguous().movedim(-1, 1))  # channels-last, under vmap, too
        if context is not None:
            h = h + self.context(context)[:, :, None, None]
        return self.last(activation(self.middle(activation(h))))

    def weights(self, size: Sequence[int]) -> ConvNetWeights:
        """The parameters as :class:`genssl_fast.FlowPlan` takes them, for images of this height and width."""
        layers = (self.first, self.middle, self.last)
        weights, biases = zip(*((layer.weight, layer.bias) for layer in layers))
        context_weight = None if self.context is None else self.context.weight
        return ConvNetWeights(weights, biases, tuple(size), self.activation, context_weight)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, context_features={self.context_features}"
