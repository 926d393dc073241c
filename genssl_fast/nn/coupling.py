"""Couplings: a network of some entries sets the transform of the others."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check
from genssl_fast.nn.conv_net import ConvNet
from genssl_fast.nn.mlp import MLP
from genssl_fast.ops.flow_layers import CouplingLayer
from genssl_fast.ops.transforms import (
    AffineTransform,
    SplineTransform,
    apply_transform,
    check_transform,
    num_parameters,
    pixel_parameters,
)

__all__ = ["AffineCoupling", "Coupling", "SplineCoupling", "identity_parameters"]

Network = Callable[[int, int], nn.Module]


class Coupling(nn.Module):
    """``y[T] = transform(x[T]; network(x[I], context))`` and ``y[I] = x[I]`` along dimension 1.

    Arguments:
        mask: D booleans, True for the entries T that are transformed; the others are I. For images
            [B, C, H, W] it has C entries.
        transform: a :class:`genssl_fast.AffineTransform` or :class:`genssl_fast.SplineTransform`,
            with P parameters for every entry.
        network: called as ``network(len(I), len(T) * P)``, it builds a module whose output is
            [B, len(T) * P], or [B, len(T) * P, H, W] for images, in the transform's layout. The module
            is called with ``x[I]``, and with the context if there is one. Networks of this library
            start where a spline is the identity.

    Raises:
        ValueError, TypeError: a mask that transforms everything or nothing, a transform out of range.

    References:
        Dinh et al., Density Estimation Using Real NVP, https://arxiv.org/abs/1605.08803

    Example:
        >>> from functools import partial
        >>> from genssl_fast.nn import MLP, Coupling
        >>> transform = genssl_fast.SplineTransform(bins=4, bound=3.0)
        >>> layer = Coupling([True, False, True], transform, partial(MLP, hidden=(16, 16)))
        >>> y, log_abs_det = layer(torch.randn(5, 3))
        >>> y.shape, log_abs_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        mask: Sequence[bool] | Tensor,
        transform: AffineTransform | SplineTransform,
        network: Network = MLP,
    ):
        super().__init__()
        mask = _boolean(mask)
        check(mask.ndim == 1, "mask", "shape [D]", list(mask.shape))
        given, moved = int((~mask).sum()), int(mask.sum())
        check(given > 0 and moved > 0, "mask", "both True and False entries", mask.tolist())
        check_transform(transform)
        self.transform = transform
        self.register_buffer("identity", (~mask).nonzero().flatten())
        self.register_buffer("transformed", mask.nonzero().flatten())
        self._find_split()
        self.network = network(given, moved * num_parameters(transform))
        if hasattr(self.network, "start_at"):
            self.network.start_at(identity_parameters(transform).repeat(moved))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, log_abs_det [B])``"""
        return self._apply_transform(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, log_abs_det [B])`` of the inverse."""
        return self._apply_transform(y, context, inverse=True)

    @property
    def features(self) -> int:
        """D, or the number of channels."""
        return len(self.identity) + len(self.transformed)

    def _apply_transform(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        features = self.features
        check(x.ndim >= 2 and x.shape[1] == features, "x", f"shape [B, {features}, ...]", list(x.shape))
        given, moved = self._parts(x)
        output = self.network(given) if context is None else self.network(given, context)
        moved, log_abs_det = apply_transform(self.transform, moved, self._arranged(output), inverse=inverse)
        if self._split:
            return torch.cat([given, moved], 1), log_abs_det
        return x.index_copy(1, self.transformed, moved), log_abs_det

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x[I] and x[T], views where all of I comes first."""
        if self._split:
            return x[:, : self._split], x[:, self._split :]
        return x.index_select(1, self.identity), x.index_select(1, self.transformed)

    def _find_split(self) -> None:
        given = len(self.identity)
        self._split = given if int(self.identity[-1]) == given - 1 else None

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._find_split()

    def _arranged(self, output: Tensor) -> Tensor:
        """Parameters in the order that the transform expects; of images, P lies before the pixels."""
        if output.ndim == 2:
            return output
        return pixel_parameters(self.transform, output, len(self.transformed))

    def plan_layer(self) -> CouplingLayer:
        """This layer of vectors as :class:`genssl_fast.FlowPlan` takes it; its network must be an MLP."""
        if not isinstance(self.network, MLP):
            raise TypeError(f"network: expected an MLP for a plan, got {type(self.network).__name__}")
        return self._described(self.network.weights(), self.identity, self.transformed)

    def plan_layers(self, shape: Sequence[int]) -> list[CouplingLayer]:
        """This layer of images [C, H, W] likewise; its network must be a ConvNet."""
        if not isinstance(self.network, ConvNet):
            raise TypeError(f"network: expected a ConvNet for a plan, got {type(self.network).__name__}")
        columns = torch.arange(math.prod(shape), device=self.identity.device).view(shape[0], -1)
        given, moved = columns[self.identity].flatten(), columns[self.transformed].flatten()
        return [self._described(self.network.weights(shape[1:]), given, moved)]

    def _described(self, weights, given: Tensor, moved: Tensor) -> CouplingLayer:
        features = self.network.context_features
        return CouplingLayer(given, moved, weights, self.transform, context_features=features)

    def extra_repr(self) -> str:
        return f"identity={len(self.identity)}, transformed={len(self.transformed)}, {self.transform}"


def _boolean(mask: Sequence[bool] | Tensor) -> Tensor:
    """Zeros and ones count as booleans; numbers of columns do not."""
    values = torch.as_tensor(mask, device="cpu")
    are_booleans = bool(((values == 0) | (values == 1)).all())
    check(are_booleans, "mask", "booleans, one for every entry", values.tolist())
    return values.bool()


class AffineCoupling(Coupling):
    """``y[T] = x[T] * exp(log_scale) + shift``, both functions of ``x[I]``: RealNVP, or NICE without scale.

    Arguments:
        mask, network: see :class:`Coupling`.
        additive: whether there is only the shift.
        clamp, limit, offset, min_scale, order: see :func:`genssl_fast.affine_coupling`.

    Example:
        >>> layer = genssl_fast.nn.AffineCoupling([True, False])
        >>> layer(torch.ones(1, 2))[0].tolist()  # the network starts at zero
        [[1.0, 1.0]]
    """

    def __init__(
        self,
        mask: Sequence[bool] | Tensor,
        network: Network = MLP,
        *,
        additive: bool = False,
        clamp: str = "tanh",
        limit: float | None = None,
        offset: float | None = None,
        min_scale: float | None = None,
        order: str = "scale_shift",
    ):
        layout = "shift" if additive else "cat"
        clamp, limit = ("none", None) if additive else (clamp, limit)
        super().__init__(mask, AffineTransform(clamp, limit, offset, min_scale, layout, order), network)


class SplineCoupling(Coupling):
    """``y[T]`` is a monotonic rational-quadratic spline of ``x[T]`` set by ``x[I]``.

    Arguments:
        mask, network: see :class:`Coupling`.
        bins, tails, bound, min_bin_width, min_bin_height, min_derivative, parameterization, slope: see
            :func:`genssl_fast.rational_quadratic_spline`.

    References:
        Durkan et al., Neural Spline Flows, https://arxiv.org/abs/1906.04032

    Example:
        >>> layer = genssl_fast.nn.SplineCoupling([True, False], bins=4, bound=2.0)
        >>> y, log_abs_det = layer(torch.tensor([[0.5, 1.0]]))
        >>> torch.allclose(y, torch.tensor([[0.5, 1.0]]))  # the network starts at the identity
        True
    """

    def __init__(
        self,
        mask: Sequence[bool] | Tensor,
        network: Network = MLP,
        *,
        bins: int = 8,
        tails: str | None = "linear",
        bound: float | tuple[float, float, float, float] = 3.0,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
        parameterization: str = "softmax",
        slope: float = 1e-3,
    ):
        minima = (min_bin_width, min_bin_height, min_derivative)
        super().__init__(mask, SplineTransform(bins, tails, bound, *minima, parameterization, slope), network)


def identity_parameters(transform: AffineTransform | SplineTransform) -> Tensor:
    """Parameters [P] of one entry that make a spline the identity; zeros for affine transforms."""
    parameters = torch.zeros(num_parameters(transform))
    if isinstance(transform, SplineTransform) and transform.parameterization == "softmax":
        derivative = 1 - transform.min_derivative  # of softplus, so that the slope is 1
        parameters[2 * transform.bins :] = math.log(math.expm1(derivative))
    return parameters
