"""A transform of every entry whose parameters are a function of the entries before it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check, check_choice, check_count
from genssl_fast.nn.coupling import identity_parameters
from genssl_fast.nn.mlp import check_context, checked_widths
from genssl_fast.ops.flow_layers import AutoregressiveLayer, MLPWeights
from genssl_fast.ops.made import MADEWeights, made_degrees, made_inverse, made_transform
from genssl_fast.ops.transforms import AffineTransform, SplineTransform, check_transform, num_parameters
from genssl_fast.reference.causal import ACTIVATIONS

__all__ = ["MaskedAutoregressive"]


class MaskedAutoregressive(nn.Module):
    """Masked autoregressive transform of x [B, D]; forward is one pass of the network.

    The inverse, by :func:`genssl_fast.made_inverse`, has the work of about one pass, too. The network
    starts at zero.

    Arguments:
        features: D.
        transform: of every entry, by default affine with log-scales bounded as in zuko.
        hidden: width of every hidden layer or, if residual, of every block; blocks are equally wide.
        order: the degrees of the entries, a permutation of 1 to D: an entry depends on those of lower
            degree. By default 1 to D.
        activation: ``"relu"``, ``"leaky_relu"``, ``"elu"``, ``"silu"``, ``"tanh"``, ``"sigmoid"`` or
            ``"softplus"``.
        residual: whether hidden layers are residual blocks, see :class:`genssl_fast.nn.MLP`.
        context_features: length of the context, a linear function of which is added to the first layer.

    Raises:
        ValueError, TypeError: sizes that are not positive, an order that is no permutation, an unknown
            activation, a transform out of range.

    References:
        Papamakarios et al., Masked Autoregressive Flow for Density Estimation,
        https://arxiv.org/abs/1705.07057

    Example:
        >>> layer = genssl_fast.nn.MaskedAutoregressive(3, hidden=(16, 16))
        >>> y, log_abs_det = layer(torch.randn(5, 3))
        >>> x, log_abs_det_back = layer.inverse(y)
        >>> torch.allclose(log_abs_det, -log_abs_det_back)
        True
    """

    def __init__(
        self,
        features: int,
        transform: AffineTransform | SplineTransform = AffineTransform(clamp="zuko", layout="interleaved"),
        hidden: Sequence[int] = (128, 128),
        *,
        order: Sequence[int] | Tensor | None = None,
        activation: str = "relu",
        residual: bool = False,
        context_features: int = 0,
    ):
        super().__init__()
        check_transform(transform)
        hidden = checked_widths(hidden, residual)
        check_count("features", features, 1)
        check_choice("activation", activation, ACTIVATIONS)
        check_count("context_features", context_features)
        self.transform, self.activation, self.residual = transform, activation, residual
        self.features, self.context_features = features, context_features
        units = (hidden[0],) * (2 * len(hidden) + 1) if residual else hidden
        self._set_degrees(features, units, order)
        widths = (features, *units, features * num_parameters(transform))
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.context = nn.Linear(context_features, units[0], bias=False) if context_features else None
        with torch.no_grad():
            self.layers[-1].weight.zero_()
            self.layers[-1].bias.copy_(identity_parameters(transform).repeat(features))

    def _set_degrees(self, features: int, units: tuple[int, ...], order) -> None:
        order = torch.arange(1, features + 1) if order is None else torch.as_tensor(order, dtype=torch.int64)
        numbers = list(range(1, features + 1))
        check(sorted(order.tolist()) == numbers, "order", f"a permutation of 1 to {features}", order.tolist())
        self.num_degrees = 1 + len(units)
        for i, degrees in enumerate(made_degrees(features, units, order)):
            self.register_buffer(f"degrees{i}", degrees, persistent=i == 0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])``"""
        return self._apply_network(made_transform, x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse."""
        return self._apply_network(made_inverse, y, context)

    def weights(self) -> MADEWeights:
        """The network as :func:`genssl_fast.made` takes it."""
        weights, biases = zip(*((layer.weight, layer.bias) for layer in self.layers))
        if self.residual:
            return MADEWeights.with_residual_blocks(weights, biases, self.activation)
        return MADEWeights(weights, biases, self.activation)

    def degrees(self) -> tuple[Tensor, ...]:
        """Of the inputs and the units of every hidden layer."""
        return tuple(getattr(self, f"degrees{i}") for i in range(self.num_degrees))

    def plan_layer(self) -> AutoregressiveLayer:
        """This layer as :class:`genssl_fast.FlowPlan` takes it."""
        weights, biases = zip(*((layer.weight, layer.bias) for layer in self.layers))
        network = MLPWeights(weights, biases, self.activation, self.residual)
        context_weight = None if self.context is None else self.context.weight
        return AutoregressiveLayer(self.degrees(), network, self.transform, context_weight=context_weight)

    def _apply_network(self, function, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        check_context(context, self.context_features)
        terms = None if context is None else [self.context(context).to(x.dtype)]  # 16 bits under autocast
        return function(x, self.weights(), self.degrees(), transform=self.transform, context=terms)

    def extra_repr(self) -> str:
        parts = f"{self.transform}, activation={self.activation!r}, residual={self.residual}"
        return f"{parts}, context_features={self.context_features}"
