"""zuko's transforms and lazy layers, data to base, on kernels of this library; tested with version 1.6."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.nn import functional
from zuko import lazy, transforms
from zuko.distributions import DiagNormal
from zuko.flows import autoregressive, coupling, gaussianization
from zuko.nn import MLP, Linear

from genssl_fast.integrations import _fused_transforms, _masked_mlp
from genssl_fast.integrations._plan import PlannedFlow, check_kind, check_plain, sequential, unplanned
from genssl_fast.integrations._replacement import Replacement, by_class
from genssl_fast.ops.affine_coupling import affine_coupling
from genssl_fast.ops.flow_layers import CouplingLayer, Layer, PermutationLayer
from genssl_fast.ops.flow_plan import FlowPlan
from genssl_fast.ops.made import made_inverse
from genssl_fast.ops.rational_quadratic_spline import rational_quadratic_spline

__all__ = [
    "ElementWiseTransform",
    "GeneralCouplingTransform",
    "MaskedAutoregressiveTransform",
    "MonotonicAffineTransform",
    "MonotonicRQSTransform",
    "plan",
    "replacement",
]


class MonotonicAffineTransform(_fused_transforms.ElementwiseTransform):
    """``zuko.transforms.MonotonicAffineTransform``: x e^s + b with s = a / (1 + |a / log slope|).

    Arguments:
        shift: b [...].
        scale: a [...].
        slope: the least slope.

    Example:
        >>> from genssl_fast.integrations.zuko import MonotonicAffineTransform
        >>> MonotonicAffineTransform(torch.ones(3), torch.zeros(3))(torch.tensor([1.0, 2.0, 3.0]))
        tensor([2., 3., 4.])
    """

    def __init__(self, shift: Tensor, scale: Tensor, slope: float = 1e-3, **kwargs):
        super().__init__(**kwargs)
        self.shift, self.log_scale, self.slope = shift, scale, slope

    def _apply(self, x, inverse):
        x, shift, log_scale = torch.broadcast_tensors(x, self.shift, self.log_scale)
        # A sample for every number: their log-determinants are not summed.
        rows = [tensor.reshape(-1, 1) for tensor in (x, shift, log_scale)]
        y, log_slope = affine_coupling(*rows, clamp="zuko", limit=-math.log(self.slope), inverse=inverse)
        return y.view(x.shape), log_slope.view(x.shape)


class MonotonicRQSTransform(_fused_transforms.ElementwiseTransform):
    """``zuko.transforms.MonotonicRQSTransform``: the rational-quadratic spline with bounded slopes.

    Arguments:
        widths, heights: logits of the bins [..., K].
        derivatives: logarithms of the slopes of inner knots, before they are bounded [..., K - 1].
        bound: the spline is the identity outside [-bound, bound].
        slope: the least slope of a bin.

    Example:
        >>> from genssl_fast.integrations.zuko import MonotonicRQSTransform
        >>> transform = MonotonicRQSTransform(*torch.randn(2, 5, 8), torch.randn(5, 7))
        >>> y, log_slope = transform.call_and_ladj(torch.randn(4, 5))
        >>> y.shape, log_slope.shape
        (torch.Size([4, 5]), torch.Size([4, 5]))
    """

    def __init__(
        self,
        widths: Tensor,
        heights: Tensor,
        derivatives: Tensor,
        bound: float = 5.0,
        slope: float = 1e-3,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.parameters = widths, heights, derivatives
        self.bound, self.slope = bound, slope

    @property
    def bins(self) -> int:
        """Number of bins K."""
        return self.parameters[0].shape[-1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bins={self.bins})"

    def _apply(self, x, inverse):
        shape = torch.broadcast_shapes(x.shape, *(p.shape[:-1] for p in self.parameters))
        parameters = [p.expand(*shape, p.shape[-1]) for p in self.parameters]
        return rational_quadratic_spline(
            x.expand(shape), *parameters, inverse=inverse, tails="linear", bound=self.bound,
            parameterization="zuko", slope=self.slope, elementwise=True,
        )  # fmt: skip


class _Layer(Replacement):
    """A lazy layer with one kernel for all of a vector's features."""

    def _univariate(self) -> _fused_transforms.Univariate | None:
        return _fused_transforms.univariate_of(self.univariate, self.shapes)

    def meta(self, c, x):
        if c is not None:
            batch = torch.broadcast_shapes(x.shape[:-1], c.shape[:-1])
            x = torch.cat([x.expand(*batch, -1), c.expand(*batch, -1)], dim=-1)
        return self._transform(self.hyper(x).unflatten(-1, (-1, self.total)))

    def _transform(self, parameters: Tensor) -> _fused_transforms.VectorTransform:
        """Of parameters [..., D, P]."""
        return _fused_transforms.VectorTransform(self._univariate(), parameters)


class GeneralCouplingTransform(_Layer, coupling.GeneralCouplingTransform):
    """zuko's coupling: transform and log-determinant in one kernel each way."""

    def forward(self, c: Tensor | None = None) -> Transform:
        return _fused_transforms.CouplingTransform(partial(self.meta, c), self.mask)


class ElementWiseTransform(_Layer, gaussianization.ElementWiseTransform):
    """zuko's elementwise transform, learned or of the context, in one kernel each way."""

    def forward(self, c: Tensor | None = None) -> Transform:
        if c is not None:
            return self._transform(self.hyper(c).unflatten(-1, (-1, self.total)))
        features = self.phi[0].shape[0]
        return self._transform(torch.cat([phi.reshape(features, -1) for phi in self.phi], dim=-1))


class MaskedAutoregressiveTransform(_Layer, autoregressive.MaskedAutoregressiveTransform):
    """zuko's autoregressive layer: one kernel forward, and an inverse that takes one pass of work."""

    def forward(self, c: Tensor | None = None) -> Transform:
        meta, solve = partial(self.meta, c), partial(self._solve, c)
        return _fused_transforms.AutoregressiveTransform(meta, self.passes, solve)

    def remaining(self):
        reason = self.passes > 1 and self._why_not_one_pass()
        return f"the inverse takes {self.passes} passes: {reason}" if reason else None

    def forget(self):
        vars(self).pop("_masks", None)

    def _solve(self, c, y):
        """The inverse at y [..., D] and its log-determinant [...]; None where it takes passes."""
        if self._why_not_one_pass():
            return None
        batch = torch.broadcast_shapes(y.shape[:-1], () if c is None else c.shape[:-1])
        rows = y.expand(*batch, -1).reshape(-1, y.shape[-1])
        kept = vars(self).get("_masks")
        network, masks = _masked_mlp.masked_network(self.hyper, self.order, kept)
        self._masks = masks
        terms = None
        if c is not None:
            (first, *others), context = network.weights, c.expand(*batch, -1).reshape(len(rows), -1)
            terms = [functional.linear(context, first[:, y.shape[-1] :]).to(y.dtype)]
            network = network._replace(weights=(first[:, : y.shape[-1]], *others))
        transform = self._univariate().transform
        x, log_abs_det = made_inverse(rows, network, masks.degrees, transform=transform, context=terms)
        return x.view(*batch, -1), log_abs_det.view(batch)

    def _why_not_one_pass(self) -> str | None:
        if self.passes == 1:
            return "one pass is all"
        if self.order is None:
            return "its features depend on each other by a graph"
        if self._univariate().circular_bound is not None:
            return "its transform is circular"
        return _masked_mlp.why_not_one_pass(self.hyper)


REPLACEMENTS = {
    coupling.GeneralCouplingTransform: GeneralCouplingTransform,
    gaussianization.ElementWiseTransform: ElementWiseTransform,
    autoregressive.MaskedAutoregressiveTransform: MaskedAutoregressiveTransform,
}
WITHOUT_WORK = (lazy.LazyComposedTransform, lazy.LazyInverse)
PLANNED = {
    coupling.GeneralCouplingTransform,
    GeneralCouplingTransform,
    lazy.LazyComposedTransform,
    lazy.UnconditionalDistribution,
    lazy.UnconditionalTransform,
    Linear,
    MLP,
    nn.ModuleList,
}


def replacement(layer: nn.Module) -> type | str | None:
    """The class that :func:`genssl_fast.accelerate` gives this layer, why there is none, or None."""
    found = by_class(layer, REPLACEMENTS, lazy.LazyTransform, WITHOUT_WORK)
    if not isinstance(found, type):
        return found
    univariate = _fused_transforms.univariate_of(layer.univariate, layer.shapes)
    return found if univariate else "no kernel for its univariate transform"


def plan(flow: lazy.Flow) -> FlowPlan:
    """A flow of couplings as one compiled call for densities and one for samples; no derivatives.

    Couplings are ``GeneralCouplingTransform`` with affine, additive or rational-quadratic transforms, as
    those of ``NICE`` and ``RealNVP``; between them come permutations. The context goes to the methods.
    Later changes of the flow's weights are noticed as :class:`genssl_fast.FlowPlan` says, other changes, such
    as hooks, are not.

    Arguments:
        flow: with a standard normal base; accelerated or not.

    Raises:
        TypeError: a part that a plan cannot run; the message names it.

    Example:
        >>> import zuko
        >>> from genssl_fast.integrations import zuko as integration
        >>> flow = zuko.flows.RealNVP(4, transforms=2)
        >>> plan = integration.plan(flow)
        >>> x = plan.sample(5, seed=0)
        >>> torch.allclose(plan.log_prob(x), flow().log_prob(x), atol=1e-4)
        True
    """
    check_kind("flow", flow, lazy.Flow)
    base = flow.base()
    is_standard = isinstance(base, DiagNormal) and bool(((base.mean == 0) & (base.stddev == 1)).all())
    if not is_standard:
        raise unplanned(flow.base, "its base is not a standard normal")
    return FlowPlan(PlannedFlow(flow, _flow_layers))


def _flow_layers(flow: lazy.Flow) -> list[Layer]:
    check_plain(flow, lazy.Flow, [flow.transform, flow.base], PLANNED)
    return _layers(flow.transform)


def _layers(layer: nn.Module) -> list[Layer]:
    """A lazy transform of vectors, from data to base."""
    if isinstance(layer, lazy.LazyComposedTransform):
        return [description for part in layer.transforms for description in _layers(part)]
    if isinstance(layer, coupling.GeneralCouplingTransform):
        return [_coupling_layer(layer)]
    if isinstance(layer, lazy.UnconditionalTransform) and layer.f is transforms.PermutationTransform:
        return [PermutationLayer(layer().order)]
    raise unplanned(layer, "no plan for this class")


def _coupling_layer(layer: coupling.GeneralCouplingTransform) -> CouplingLayer:
    univariate, net = _fused_transforms.univariate_of(layer.univariate, layer.shapes), layer.hyper
    if univariate is None or univariate.circular_bound is not None:
        raise unplanned(layer, "no plan for its univariate transform")
    if type(net) is not MLP:
        raise unplanned(net, "its network is not an MLP")
    given, moved = layer.mask.nonzero().flatten(), (~layer.mask).nonzero().flatten()
    context_features = net.in_features - len(given)
    network = sequential(net, net, Linear)
    return CouplingLayer(given, moved, network, univariate.transform, context_features=context_features)
