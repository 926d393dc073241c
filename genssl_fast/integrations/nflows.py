"""nflows' functions and layers, data to noise, on kernels of this library; tested with version 0.14."""

import math

from nflows import flows, transforms
from nflows.distributions.normal import StandardNormal
from nflows.nn.nets import resnet
from nflows.transforms.base import InputOutsideDomain
from nflows.transforms.coupling import CouplingTransform
from torch import Tensor, nn

from genssl_fast._checks import values_are_checked
from genssl_fast.integrations import _spline_flows
from genssl_fast.integrations._plan import PlannedFlow, check_kind, check_plain, perceptron, unplanned
from genssl_fast.integrations._replacement import by_class
from genssl_fast.ops.flow_layers import (
    CouplingLayer,
    ElementwiseLayer,
    Layer,
    LinearLayer,
    MLPWeights,
    PermutationLayer,
)
from genssl_fast.ops.flow_plan import FlowPlan
from genssl_fast.ops.transforms import AffineTransform, SplineTransform, num_parameters

__all__ = [
    "AdditiveCouplingTransform",
    "AffineCouplingTransform",
    "MaskedAffineAutoregressiveTransform",
    "MaskedPiecewiseRationalQuadraticAutoregressiveTransform",
    "PiecewiseRationalQuadraticCDF",
    "PiecewiseRationalQuadraticCouplingTransform",
    "plan",
    "rational_quadratic_spline",
    "replacement",
    "unconstrained_rational_quadratic_spline",
]

SIGMOID = AffineTransform("sigmoid", offset=2.0, min_scale=1e-3, layout="cat")
SHIFT = AffineTransform(layout="shift")


def unconstrained_rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """``nflows.transforms.splines.unconstrained_rational_quadratic_spline`` in one kernel.

    Arguments are theirs: inputs [...], widths and heights [..., K], derivatives [..., K - 1]. Returns outputs
    and the logarithm of the slope, both [...]. Unlike theirs it neither asserts nor gives NaN for extreme
    parameters in fp32, and takes parameters in bf16 and fp16.

    Example:
        >>> from genssl_fast.integrations.nflows import unconstrained_rational_quadratic_spline
        >>> x, w, h, d = torch.randn(4, 2), *torch.randn(2, 4, 2, 8), torch.randn(4, 2, 7)
        >>> y, log_slope = unconstrained_rational_quadratic_spline(x, w, h, d, tail_bound=3.0)
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
    """``nflows.transforms.splines.rational_quadratic_spline`` in one kernel: no tails, K + 1 derivatives.

    Raises:
        InputOutsideDomain: inputs outside [left, right], or outside [bottom, top] for the inverse.

    Example:
        >>> from genssl_fast.integrations.nflows import rational_quadratic_spline
        >>> x, w, h, d = torch.rand(4, 2), *torch.randn(2, 4, 2, 8), torch.randn(4, 2, 9)
        >>> y, log_slope = rational_quadratic_spline(x, w, h, d)
        >>> bool(((y >= 0) & (y <= 1)).all())
        True
    """
    _check_domain(inputs, *((bottom, top) if inverse else (left, right)))
    return _spline_flows.spline(
        inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives,
        inverse=inverse, tails=None, tail_bound=(left, right, bottom, top), elementwise=True,
        min_bin_width=min_bin_width, min_bin_height=min_bin_height, min_derivative=min_derivative,
    )  # fmt: skip


def _check_domain(inputs: Tensor, low: float, high: float) -> None:
    """Raises nflows' exception for inputs outside."""
    if values_are_checked(inputs) and bool(((inputs < low) | (inputs > high)).any()):
        raise InputOutsideDomain(f"inputs: expected values in [{low}, {high}]")


class _UnitDomain:
    """A layer with ``tails``; without, it takes values in [0, 1]."""

    def check_domain(self, inputs):
        if self.tails is None:
            _check_domain(inputs, 0.0, 1.0)


class AffineCouplingTransform(_spline_flows.Coupling, transforms.AffineCouplingTransform):
    """Shift and scale sigmoid(a + 2) + 1e-3, with their log-determinant, in one kernel each way."""

    def _coupling_transform(self, inputs, transform_params, inverse):
        return _spline_flows.affine_of_outputs(SIGMOID, inputs, transform_params, inverse)


class AdditiveCouplingTransform(_spline_flows.Coupling, transforms.AdditiveCouplingTransform):
    """Shift alone; the log-determinant is zero."""

    def _coupling_transform(self, inputs, transform_params, inverse):
        return _spline_flows.affine_of_outputs(SHIFT, inputs, transform_params, inverse)


class PiecewiseRationalQuadraticCouplingTransform(
    _UnitDomain, _spline_flows.SplineCoupling, transforms.PiecewiseRationalQuadraticCouplingTransform
):
    """The spline coupling for [B, D] and [B, C, H, W], in one kernel each way."""


class PiecewiseRationalQuadraticCDF(
    _UnitDomain, _spline_flows.SplineCDF, transforms.PiecewiseRationalQuadraticCDF
):
    """A learned spline per feature, in one kernel each way."""


class MaskedAffineAutoregressiveTransform(
    _spline_flows.AffineAutoregressive, transforms.MaskedAffineAutoregressiveTransform
):
    """MAF's layer with scale softplus(a) + 1e-3; the inverse takes one pass of work."""

    def transform_of_outputs(self):
        return AffineTransform(
            "softplus", min_scale=self._epsilon, offset=0.0, layout="interleaved_scale_first"
        )


class MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
    _UnitDomain,
    _spline_flows.SplineAutoregressive,
    transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
):
    """The autoregressive spline layer; the inverse takes one pass of work."""


REPLACEMENTS = {
    transforms.AffineCouplingTransform: AffineCouplingTransform,
    transforms.AdditiveCouplingTransform: AdditiveCouplingTransform,
    transforms.PiecewiseRationalQuadraticCouplingTransform: PiecewiseRationalQuadraticCouplingTransform,
    transforms.PiecewiseRationalQuadraticCDF: PiecewiseRationalQuadraticCDF,
    transforms.MaskedAffineAutoregressiveTransform: MaskedAffineAutoregressiveTransform,
    transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform: (
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    ),
}
COUPLINGS = {
    kind: ours
    for theirs, ours in REPLACEMENTS.items()
    if issubclass(theirs, CouplingTransform)
    for kind in (theirs, ours)
}
SPLINES = (
    PiecewiseRationalQuadraticCouplingTransform,
    PiecewiseRationalQuadraticCDF,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
)
WITHOUT_WORK = (
    transforms.CompositeTransform,
    transforms.IdentityTransform,
    transforms.InverseTransform,
    transforms.MultiscaleCompositeTransform,
    transforms.Permutation,
    transforms.SqueezeTransform,
)
PLANNED = {
    *COUPLINGS,
    nn.Dropout,
    nn.Identity,
    nn.Linear,
    nn.ModuleList,
    resnet.ResidualBlock,
    resnet.ResidualNet,
    StandardNormal,
    transforms.ActNorm,
    transforms.BatchNorm,
    transforms.CompositeTransform,
    transforms.LULinear,
    transforms.Permutation,
    transforms.RandomPermutation,
    transforms.ReversePermutation,
}


def replacement(layer: nn.Module) -> type | str | None:
    """The class that :func:`genssl_fast.accelerate` gives this layer, why there is none, or None."""
    found = by_class(layer, REPLACEMENTS, transforms.Transform, WITHOUT_WORK)
    if found in SPLINES:
        return _spline_flows.why_not_spline(layer, layer.tails in (None, "linear")) or found
    return found


def plan(flow: flows.Flow) -> FlowPlan:
    """A flow of couplings as one compiled call for densities and one for samples; no derivatives.

    Couplings are affine, additive or rational-quadratic ones of vectors whose networks are ``ResidualNet``;
    between them come permutations, ``LULinear``, ``ActNorm`` and ``BatchNorm``, as in evaluation. Later
    changes of the flow's weights are noticed as :class:`genssl_fast.FlowPlan` says, other changes, such as
    hooks, are not.

    Arguments:
        flow: with a ``StandardNormal`` and without an embedding of its context; accelerated or not.

    Raises:
        TypeError: a part that a plan cannot run; the message names it.

    Example:
        >>> from nflows.flows import SimpleRealNVP
        >>> from genssl_fast.integrations import nflows as integration
        >>> flow = SimpleRealNVP(4, hidden_features=8, num_layers=2, num_blocks_per_layer=1)
        >>> plan = integration.plan(flow)
        >>> x = plan.sample(5, seed=0)
        >>> torch.allclose(plan.log_prob(x), flow.log_prob(x), atol=1e-4)
        True
    """
    check_kind("flow", flow, flows.Flow)
    if type(flow._distribution) is not StandardNormal:
        raise unplanned(flow._distribution, "its noise is not a StandardNormal")
    if not isinstance(flow._embedding_net, nn.Identity):
        raise unplanned(flow._embedding_net, "it embeds the context")
    return FlowPlan(PlannedFlow(flow, _flow_layers))


def _flow_layers(flow: flows.Flow) -> list[Layer]:
    check_plain(flow, flows.Flow, [flow._transform, flow._distribution, flow._embedding_net], PLANNED)
    return _layers(flow._transform)


def _layers(transform: nn.Module) -> list[Layer]:
    """A transform of vectors, from data to noise."""
    match transform:
        case transforms.CompositeTransform():
            return [layer for part in transform._transforms for layer in _layers(part)]
        case CouplingTransform():
            return [_coupling_layer(transform)]
        case transforms.Permutation(_dim=1):
            return [PermutationLayer(transform._permutation)]
        case transforms.LULinear():
            return [LinearLayer(transform.weight(), transform.bias, transform.logabsdet())]
        case transforms.ActNorm():
            return [ElementwiseLayer(transform.shift, transform.log_scale)]
        case transforms.BatchNorm():
            return [_batch_norm_layer(transform)]
    raise unplanned(transform, "no plan for this class")


def _batch_norm_layer(transform: transforms.BatchNorm) -> ElementwiseLayer:
    log_scale = transform.weight.log() - 0.5 * (transform.running_var + transform.eps).log()
    return ElementwiseLayer(transform.bias - transform.running_mean * log_scale.exp(), log_scale)


def _coupling_layer(layer: nn.Module) -> CouplingLayer:
    net = layer.transform_net
    if type(net) is not resnet.ResidualNet or net.context_features is not None:
        raise unplanned(net, "its network is not a ResidualNet without context")
    inner = [linear for block in net.blocks for linear in block.linear_layers]
    linears = [net.initial_layer, *inner, net.final_layer]
    network = perceptron(net, linears, [block.activation for block in net.blocks], residual=True)
    transform = _transform_of(layer)
    if isinstance(transform, SplineTransform):
        network = _with_scaled_sizes(network, transform, net.hidden_features)
    return CouplingLayer(layer.identity_features, layer.transform_features, network, transform)


def _with_scaled_sizes(network: MLPWeights, transform: SplineTransform, hidden: int) -> MLPWeights:
    """Divides widths and heights, of the P outputs of each feature, by √hidden, in the last layer."""
    (*weights, weight), (*biases, bias) = network.weights, network.biases
    scale = weight.new_ones(num_parameters(transform))
    scale[: 2 * transform.bins] /= math.sqrt(hidden)
    scale = scale.repeat(len(bias) // len(scale))
    return network._replace(weights=(*weights, scale[:, None] * weight), biases=(*biases, scale * bias))


def _transform_of(layer: nn.Module) -> AffineTransform | SplineTransform:
    kind = COUPLINGS[type(layer)]
    if kind is not PiecewiseRationalQuadraticCouplingTransform:
        return SIGMOID if kind is AffineCouplingTransform else SHIFT
    return _spline_flows.spline_transform(layer)
