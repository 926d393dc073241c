"""normflows' functions and layers, latent to data, on kernels of this library; tested with version 1.7.3."""

from collections.abc import Sequence

import torch
from normflows import NormalizingFlow, flows
from normflows.distributions import DiagGaussian
from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive as TheirAffineAutoregressive
from normflows.flows.base import Flow
from normflows.flows.neural_spline import autoregressive, coupling
from normflows.nets import MLP
from torch import Tensor, nn

from genssl_fast.integrations import _spline_flows
from genssl_fast.integrations._plan import PlannedFlow, check_kind, check_plain, sequential, unplanned
from genssl_fast.integrations._replacement import Replacement, by_class
from genssl_fast.ops.affine_coupling import affine_coupling, affine_parameters
from genssl_fast.ops.flow_layers import (
    CouplingLayer,
    ElementwiseLayer,
    Layer,
    LinearLayer,
    PermutationLayer,
)
from genssl_fast.ops.flow_plan import FlowPlan
from genssl_fast.ops.transforms import AffineTransform

__all__ = [
    "AffineCoupling",
    "MaskedAffineAutoregressive",
    "MaskedAffineFlow",
    "MaskedPiecewiseRationalQuadraticAutoregressive",
    "PiecewiseRationalQuadraticCDF",
    "PiecewiseRationalQuadraticCoupling",
    "plan",
    "rational_quadratic_spline",
    "replacement",
    "unconstrained_rational_quadratic_spline",
]

# scale_map of their couplings, from latent to data.
CLAMPS = {
    "exp": {"clamp": "none"},
    "sigmoid": {"clamp": "reciprocal_sigmoid", "offset": 2.0, "min_scale": 0.0},
    "sigmoid_inv": {"clamp": "sigmoid", "offset": 2.0, "min_scale": 0.0},
}


def unconstrained_rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str | Sequence[str] = "linear",
    tail_bound: float | Tensor = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """``normflows.utils.splines.unconstrained_rational_quadratic_spline`` in one kernel.

    Arguments are theirs: inputs [..., D], widths and heights [..., D, K], derivatives [..., D, K - 1] for
    linear tails, K for circular ones, and K + 1 for a list of D kinds of tails, which takes a kernel for each
    kind; ``tail_bound`` a number or [D]. Returns outputs and the logarithm of the slope, both [..., D].
    Outside the bounds the spline is the identity for a list of tails, too, where normflows 1.7.3 gives zeros.

    Example:
        >>> from genssl_fast.integrations.normflows import unconstrained_rational_quadratic_spline
        >>> x, w, h, d = torch.randn(4, 2), *torch.randn(2, 4, 2, 8), torch.randn(4, 2, 9)
        >>> tails, bounds = ["linear", "circular"], torch.tensor([5.0, 3.14])
        >>> y, log_slope = unconstrained_rational_quadratic_spline(x, w, h, d, tails=tails, tail_bound=bounds)
        >>> log_slope.shape
        torch.Size([4, 2])
    """
    return _spline_flows.spline(
        inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives,
        inverse=inverse, tails=tails, tail_bound=tail_bound, elementwise=True, min_bin_width=min_bin_width,
        min_bin_height=min_bin_height, min_derivative=min_derivative,
    )  # fmt: skip


def rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    left: float = 0.0,
    right: float = 1.0,
    bottom: float = 0.0,
    top: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """``normflows.utils.splines.rational_quadratic_spline`` in one kernel: no tails, K + 1 derivatives.

    Raises:
        ValueError: inputs outside [left, right], or outside [bottom, top] for the inverse.

    Example:
        >>> from genssl_fast.integrations.normflows import rational_quadratic_spline
        >>> x, w, h, d = torch.rand(4, 2), *torch.randn(2, 4, 2, 8), torch.randn(4, 2, 9)
        >>> y, log_slope = rational_quadratic_spline(x, w, h, d)
        >>> bool(((y >= 0) & (y <= 1)).all())
        True
    """
    return _spline_flows.spline(
        inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives,
        inverse=inverse, tails=None, tail_bound=(left, right, bottom, top), elementwise=True,
        min_bin_width=min_bin_width, min_bin_height=min_bin_height, min_derivative=min_derivative,
    )  # fmt: skip


class AffineCoupling(Replacement, flows.AffineCoupling):
    """Shift and scale of the second of two parts, with their log-determinant, in one kernel each way."""

    def forward(self, z):
        return self._affine(z, inverse=False)

    def inverse(self, z):
        return self._affine(z, inverse=True)

    def _affine(self, z, inverse):
        given, moved = z
        parameters = self.param_map(given).to(moved.dtype)
        if self.scale:
            shift, log_scale = affine_parameters(parameters, "interleaved")
            options = CLAMPS[self.scale_map]
        else:
            shift, log_scale, options = parameters, None, {}
        moved, log_det = affine_coupling(moved, shift, log_scale, inverse=inverse, **options)
        return [given, moved], log_det


class MaskedAffineFlow(Replacement, flows.MaskedAffineFlow):
    """RealNVP with a mask of zeros and ones, of which zeros are transformed."""

    def forward(self, z):
        return self._affine(z, inverse=False)

    def inverse(self, z):
        return self._affine(z, inverse=True)

    def _affine(self, z, inverse):
        given = self.b * z
        shift, log_scale = self.t(given).to(z.dtype), self.s(given).to(z.dtype)
        return affine_coupling(z, shift, log_scale, inverse=inverse, mask=self.b[0] == 0)


class PiecewiseRationalQuadraticCoupling(
    _spline_flows.SplineCoupling, coupling.PiecewiseRationalQuadraticCoupling
):
    """The spline coupling for [B, D] and [B, C, H, W], tails and bounds by feature included."""


class PiecewiseRationalQuadraticCDF(_spline_flows.SplineCDF, coupling.PiecewiseRationalQuadraticCDF):
    """A learned spline per feature."""


class MaskedAffineAutoregressive(_spline_flows.AffineAutoregressive, TheirAffineAutoregressive):
    """MAF's layer with scale sigmoid(a + 2) + 1e-3; the inverse takes one pass of work."""

    def transform_of_outputs(self):
        return AffineTransform("sigmoid", offset=2.0, min_scale=1e-3, layout="interleaved_scale_first")


class MaskedPiecewiseRationalQuadraticAutoregressive(
    _spline_flows.SplineAutoregressive, autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive
):
    """The autoregressive spline layer; the inverse takes one pass of work."""


REPLACEMENTS = {
    flows.AffineCoupling: AffineCoupling,
    flows.MaskedAffineFlow: MaskedAffineFlow,
    coupling.PiecewiseRationalQuadraticCoupling: PiecewiseRationalQuadraticCoupling,
    coupling.PiecewiseRationalQuadraticCDF: PiecewiseRationalQuadraticCDF,
    TheirAffineAutoregressive: MaskedAffineAutoregressive,
    autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive: (
        MaskedPiecewiseRationalQuadraticAutoregressive
    ),
}
SPLINES = (
    PiecewiseRationalQuadraticCoupling,
    PiecewiseRationalQuadraticCDF,
    MaskedPiecewiseRationalQuadraticAutoregressive,
)
WITHOUT_WORK = (
    flows.AffineCouplingBlock,
    flows.AutoregressiveRationalQuadraticSpline,
    flows.CircularAutoregressiveRationalQuadraticSpline,
    flows.CircularCoupledRationalQuadraticSpline,
    flows.Composite,
    flows.CoupledRationalQuadraticSpline,
    flows.GlowBlock,
    flows.LULinearPermute,
    flows.Merge,
    flows.Permute,
    flows.Reverse,
    flows.Split,
    flows.Squeeze,
    flows.mixing._Permutation,
)
PLANNED = {
    AffineCoupling,
    DiagGaussian,
    MLP,
    flows.ActNorm,
    flows.AffineConstFlow,
    flows.AffineCoupling,
    flows.AffineCouplingBlock,
    flows.LULinearPermute,
    flows.Merge,
    flows.Permute,
    flows.Split,
    flows.mixing._LULinear,
    flows.mixing._RandomPermutation,
    nn.Dropout,
    nn.Linear,
    nn.ModuleList,
    nn.Sequential,
}


def replacement(layer: nn.Module) -> type | str | None:
    """The class that :func:`genssl_fast.accelerate` gives this layer, why there is none, or None."""
    found = by_class(layer, REPLACEMENTS, Flow, WITHOUT_WORK)
    if found in SPLINES:
        return _spline_flows.why_not_spline(layer, _has_known_tails(layer)) or found
    if found is MaskedAffineFlow and not bool(((layer.b == 0) | (layer.b == 1)).all()):
        return "its mask has values other than 0 and 1"
    if found is MaskedAffineFlow and not bool((layer.b == 0).any()):
        return "its mask transforms nothing"
    if found is AffineCoupling and layer.scale and layer.scale_map not in CLAMPS:
        return f"scale_map {layer.scale_map!r} is unknown"
    return found


def _has_known_tails(layer: nn.Module) -> bool:
    kinds = layer.tails if isinstance(layer.tails, list | tuple) else [layer.tails or "linear"]
    return set(kinds) <= {"linear", "circular"}


def plan(model: NormalizingFlow) -> FlowPlan:
    """A model of affine couplings as one compiled call for densities and one for samples; no derivatives.

    Couplings are ``AffineCouplingBlock`` of vectors in halves of channels whose ``param_map`` is ``MLP``;
    between them come ``Permute``, ``LULinearPermute``, ``AffineConstFlow`` and an ``ActNorm`` that has seen
    data. Later changes of the model's weights are noticed as :class:`genssl_fast.FlowPlan` says, other
    changes, such as hooks, are not.

    Arguments:
        model: with a ``DiagGaussian`` of vectors, whose mean and scale become a layer; accelerated or not.

    Raises:
        TypeError: a part that a plan cannot run; the message names it.

    Example:
        >>> import normflows
        >>> from genssl_fast.integrations import normflows as integration
        >>> block = normflows.flows.AffineCouplingBlock(normflows.nets.MLP([1, 8, 2]))
        >>> model = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(2), [block])
        >>> plan = integration.plan(model)
        >>> x = plan.sample(5, seed=0)
        >>> torch.allclose(plan.log_prob(x), model.log_prob(x), atol=1e-4)
        True
    """
    check_kind("model", model, NormalizingFlow)
    if type(model.q0) is not DiagGaussian or model.q0.n_dim != 1 or model.q0.temperature is not None:
        raise unplanned(model.q0, "it is not a DiagGaussian of vectors")
    return FlowPlan(PlannedFlow(model, _model_layers))


def _model_layers(model: NormalizingFlow) -> list[Layer]:
    check_plain(model, NormalizingFlow, [model.flows, model.q0], PLANNED)
    columns = torch.arange(model.q0.shape[0], device=model.q0.loc.device)
    layers = [layer for flow in reversed(model.flows) for layer in _layers(flow, columns)]
    return [*layers, _normalization(model.q0.loc, model.q0.log_scale)]


def _layers(flow: nn.Module, columns: Tensor) -> list[Layer]:
    """A flow of vectors, from data to latent."""
    match flow:
        case flows.AffineCouplingBlock():
            return [_coupling_layer(flow, columns)]
        case flows.Permute(mode="shuffle"):
            return [PermutationLayer(flow.inv_perm)]
        case flows.Permute(mode="swap"):
            return [PermutationLayer(columns.roll(-((len(columns) + 1) // 2)))]
        case flows.LULinearPermute():
            linear = flow.linear
            matrix = LinearLayer(linear.weight(), linear.bias, linear.logabsdet())
            return [PermutationLayer(flow.permutation._permutation), matrix]
        case flows.ActNorm() if not flow.data_dep_init_done:
            raise unplanned(flow, "it has seen no data")
        case flows.AffineConstFlow() if flow.s.ndim == 2:
            return [_normalization(flow.t, flow.s)]
    raise unplanned(flow, "no plan for this class")


def _normalization(shift: Tensor, log_scale: Tensor) -> ElementwiseLayer:
    """From z e^s + t back to z; both [1, D]."""
    return ElementwiseLayer((-shift * torch.exp(-log_scale))[0], -log_scale[0])


def _coupling_layer(block: flows.AffineCouplingBlock, columns: Tensor) -> CouplingLayer:
    split, affine, _ = block.flows
    if split.mode not in ("channel", "channel_inv"):
        raise unplanned(block, "it does not split vectors in halves")
    net = affine.param_map
    if type(net) is not MLP:
        raise unplanned(net, "its map is not an MLP")
    first, second = columns.chunk(2)
    given, moved = (first, second) if split.mode == "channel" else (second, first)
    options = CLAMPS[affine.scale_map] | {"layout": "interleaved"} if affine.scale else {"layout": "shift"}
    return CouplingLayer(
        given, moved, sequential(net, net.net, nn.Linear), AffineTransform(**options), inverse=True
    )
