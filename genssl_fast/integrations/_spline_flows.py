"""What nflows and normflows have in common: both go back to the code of the neural spline flows paper."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check
from genssl_fast.integrations import _made
from genssl_fast.integrations._replacement import Replacement
from genssl_fast.ops.made import made_inverse
from genssl_fast.ops.rational_quadratic_spline import MAX_BINS, rational_quadratic_spline
from genssl_fast.ops.transforms import AffineTransform, SplineTransform, apply_transform

__all__ = [
    "AffineAutoregressive",
    "Coupling",
    "Spline",
    "SplineAutoregressive",
    "SplineCDF",
    "SplineCoupling",
    "affine_of_outputs",
    "spline",
    "spline_transform",
    "why_not_spline",
]


def spline(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    tails: str | Sequence[str] | None,
    tail_bound: float | Tensor | tuple[float, float, float, float],
    elementwise: bool = False,
    **options,
) -> tuple[Tensor, Tensor]:
    """:func:`genssl_fast.rational_quadratic_spline` with a kind of tails and a bound per feature, too.

    Arguments:
        inputs: [..., D].
        widths, heights: [..., D, K].
        derivatives: [..., D, K - 1] for linear tails, K for circular ones, K + 1 for none or a list.
        tails: of all features, or a list of D names.
        tail_bound: of all features, or [D], or (left, right, bottom, top).
        elementwise: return the logarithms of the slopes instead of their sum by sample.
        options: ``inverse``, ``min_bin_width``, ``min_bin_height``, ``min_derivative``.
    """
    if isinstance(tail_bound, Tensor):
        # Knots scale with the bound and slopes do not, so f(x) = b g(x / b) with g on [-1, 1].
        scaled, log_abs_det = spline(
            inputs / tail_bound, widths, heights, derivatives,
            tails=tails, tail_bound=1.0, elementwise=elementwise, **options,
        )  # fmt: skip
        return scaled * tail_bound, log_abs_det
    if isinstance(tails, list | tuple):
        outputs, slopes = _spline_by_kind(inputs, widths, heights, derivatives, tails, tail_bound, options)
        return outputs, slopes if elementwise else slopes.flatten(1).sum(1)
    return rational_quadratic_spline(
        inputs, widths, heights, derivatives,
        tails=tails, bound=tail_bound, elementwise=elementwise, **options,
    )  # fmt: skip


def _spline_by_kind(inputs, widths, heights, derivatives, tails, tail_bound, options):
    """One call per kind of tails; of K + 1 derivatives linear tails use those inside, circular ones K."""
    order, parts = [], []
    for kind, used in {"linear": slice(1, -1), "circular": slice(0, -1)}.items():
        index = [i for i, name in enumerate(tails) if name == kind]
        if index:
            order += index
            parts.append(spline(
                inputs[..., index], widths[..., index, :], heights[..., index, :],
                derivatives[..., index, used], tails=kind, tail_bound=tail_bound, elementwise=True, **options,
            ))  # fmt: skip
    is_complete = len(order) == len(tails) == inputs.shape[-1]
    check(is_complete, "tails", f"'linear' or 'circular' for each of {inputs.shape[-1]} features", tails)
    back = sorted(range(len(order)), key=order.__getitem__)
    return [torch.cat(tensors, dim=-1)[..., back] for tensors in zip(*parts)]


def affine_of_outputs(transform: AffineTransform, inputs: Tensor, parameters: Tensor, inverse: bool):
    """The affine transform of a network's outputs, which autocast may have made 16-bit."""
    return apply_transform(transform, inputs, parameters.to(inputs.dtype), inverse=inverse)


def _split(layer: nn.Module, parameters: Tensor, hidden: int | None) -> list[Tensor]:
    """Widths, heights [..., K] and derivatives of a network's output; the first two over √hidden."""
    bins = layer.num_bins
    sizes, derivatives = parameters[..., : 2 * bins], parameters[..., 2 * bins :]
    if hidden is not None:
        sizes = sizes / math.sqrt(hidden)
    return [sizes[..., :bins], sizes[..., bins:], derivatives]


def _bound(layer: nn.Module):
    return (0.0, 1.0, 0.0, 1.0) if layer.tails is None else layer.tail_bound


def _spline_of_layer(layer: nn.Module, inputs: Tensor, parameters: list[Tensor], inverse: bool):
    """The spline that a layer's attributes describe: outputs, and log_abs_det [B]."""
    layer.check_domain(inputs)
    return spline(
        inputs,
        *parameters,
        inverse=inverse,
        tails=layer.tails,
        tail_bound=_bound(layer),
        min_bin_width=layer.min_bin_width,
        min_bin_height=layer.min_bin_height,
        min_derivative=layer.min_derivative,
    )


def spline_transform(layer: nn.Module) -> SplineTransform:
    """The same as plain data, for tails and a bound that all features share."""
    return SplineTransform(
        layer.num_bins, layer.tails, _bound(layer),
        layer.min_bin_width, layer.min_bin_height, layer.min_derivative,
    )  # fmt: skip


def why_not_spline(layer: nn.Module, is_known: bool) -> str | None:
    """What about a layer's spline is beyond the kernel; ``is_known``: its library has such tails."""
    if not is_known:
        return f"no kernel for tails {layer.tails!r}"
    bins = layer.num_bins if hasattr(layer, "num_bins") else layer.unnormalized_widths.shape[-1]
    if bins > MAX_BINS:
        return f"its spline has more than {MAX_BINS} bins"
    if min(layer.min_bin_width, layer.min_bin_height, layer.min_derivative) <= 0:
        return "its spline has no least width, height or slope"
    return None


class Coupling(Replacement):
    """One function for both directions of a coupling."""

    def _coupling_transform_forward(self, inputs, transform_params):
        return self._coupling_transform(inputs, transform_params, inverse=False)

    def _coupling_transform_inverse(self, inputs, transform_params):
        return self._coupling_transform(inputs, transform_params, inverse=True)


class Spline(Replacement):
    """A layer with ``tails``."""

    def check_domain(self, inputs: Tensor) -> None:
        """Raises what the library does where there are no tails and inputs lie outside; else kernels do."""


class SplineCoupling(Spline, Coupling):
    """Rational-quadratic coupling: knots, search, transform and log-determinant in one kernel."""

    def _coupling_transform(self, inputs, transform_params, inverse):
        parameters = transform_params.reshape(*inputs.shape[:2], -1, *inputs.shape[2:]).movedim(2, -1)
        net = self.transform_net
        hidden = getattr(net, "hidden_features", getattr(net, "hidden_channels", None))
        return _spline_of_layer(self, inputs, _split(self, parameters.contiguous(), hidden), inverse)


class SplineCDF(Spline):
    """A rational-quadratic spline per feature, the same for every sample."""

    def _spline(self, inputs, inverse=False):
        parameters = (self.unnormalized_widths, self.unnormalized_heights, self.unnormalized_derivatives)
        return _spline_of_layer(self, inputs, [p.expand(len(inputs), *p.shape) for p in parameters], inverse)


class Autoregressive(Replacement):
    """An autoregressive layer whose inverse is one pass of work where its network allows it.

    ``transform_of_outputs`` says what the layer does with its network's outputs.
    """

    def transform_of_outputs(self) -> AffineTransform | SplineTransform | None:
        """The elementwise transform, or None where :func:`genssl_fast.made_inverse` has no such."""
        raise NotImplementedError

    def inverse(self, inputs, context=None):
        net, transform = self.autoregressive_net, self.transform_of_outputs()
        if self._why_not_one_pass() or _made.is_dropping(net):
            return super().inverse(inputs, context)
        weights, degrees = _made.masked_network(net)
        terms, gates = _made.context_terms(net, context), _made.context_gates(net, context)
        return made_inverse(inputs, weights, degrees, transform=transform, context=terms, gates=gates)

    def remaining(self) -> str | None:
        reason = self._why_not_one_pass()
        return reason and f"the inverse takes a pass for each dimension: {reason}"

    def _why_not_one_pass(self) -> str | None:
        if self.transform_of_outputs() is None:
            return "its splines differ in tails or bounds"
        return _made.why_not_one_pass(self.autoregressive_net)


class AffineAutoregressive(Autoregressive):
    """Scale and shift of each dimension in one kernel."""

    def _elementwise_forward(self, inputs, autoregressive_params):
        return affine_of_outputs(self.transform_of_outputs(), inputs, autoregressive_params, False)

    def _elementwise_inverse(self, inputs, autoregressive_params):
        return affine_of_outputs(self.transform_of_outputs(), inputs, autoregressive_params, True)


class SplineAutoregressive(Spline, Autoregressive):
    """A spline of each dimension in one kernel."""

    def inverse(self, inputs, context=None):
        self.check_domain(inputs)
        return super().inverse(inputs, context)

    def transform_of_outputs(self):
        if isinstance(self.tails, list | tuple) or isinstance(self.tail_bound, Tensor):
            return None
        return spline_transform(self)

    def _elementwise(self, inputs, autoregressive_params, inverse=False):
        parameters = autoregressive_params.unflatten(1, (inputs.shape[1], -1))
        hidden = getattr(self.autoregressive_net, "hidden_features", None)
        return _spline_of_layer(self, inputs, _split(self, parameters, hidden), inverse)
