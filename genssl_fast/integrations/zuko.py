"""zuko's transforms and lazy layers, data to base, on kernels of this library; tested with version 1.6."""

import math
import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.distributions.transforms import _InverseTransform
from zuko import lazy, transforms
from zuko.distributions import DiagNormal
from zuko.flows import autoregressive, coupling, gaussianization
from zuko.flows.spline import CircularRQSTransform
from zuko.nn import MLP, Linear, MaskedLinear, MaskedMLP, Residual

from genssl_fast._packing import identities
from genssl_fast.integrations._activations import activation_name
from genssl_fast.integrations._plan import PlannedFlow, perceptron, unplanned
from genssl_fast.integrations._replacement import by_class
from genssl_fast.ops.affine_coupling import affine_coupling
from genssl_fast.ops.flow_layers import CouplingLayer, Layer, PermutationLayer
from genssl_fast.ops.flow_plan import FlowPlan
from genssl_fast.ops.made import MADEWeights, made_inverse
from genssl_fast.ops.rational_quadratic_spline import MAX_BINS, rational_quadratic_spline
from genssl_fast.ops.transforms import AffineTransform, SplineTransform, apply_transform

__all__ = [
    "ElementWiseTransform",
    "GeneralCouplingTransform",
    "MaskedAutoregressiveTransform",
    "MonotonicAffineTransform",
    "MonotonicRQSTransform",
    "plan",
    "replacement",
]


class _FusedTransform(Transform):
    """A transform whose value and log-determinant come together, those of the inverse, too."""

    bijective = True

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and log|det f'(x)|."""
        raise NotImplementedError

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse at y and its log|det|."""
        raise NotImplementedError

    def _call(self, x):
        return self.call_and_ladj(x)[0]

    def _inverse(self, y):
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x, y):
        return self.call_and_ladj(x)[1]

    @property
    def inv(self):
        return _FusedInverse(self)


class _FusedInverse(_InverseTransform):
    """zuko computes an inverse and its log-determinant by a pass each; this takes both from one."""

    def call_and_ladj(self, y):
        return self._inv.inverse_and_ladj(y)


class _ElementwiseTransform(_FusedTransform):
    """One kernel for numbers [...] whose parameters are tensors that broadcast with them."""

    domain = constraints.real
    codomain = constraints.real
    sign = +1

    def call_and_ladj(self, x):
        return self._apply(x, inverse=False)

    def inverse_and_ladj(self, y):
        return self._apply(y, inverse=True)


class MonotonicAffineTransform(_ElementwiseTransform):
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


class MonotonicRQSTransform(_ElementwiseTransform):
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


class _Univariate(NamedTuple):
    """What a layer does with each feature; circular shifts come before the transform."""

    transform: AffineTransform | SplineTransform
    circular_bound: float | None = None


def _describe(univariate: Callable[..., Transform], shapes) -> _Univariate | None:
    """The kernel's description of zuko's constructor of a transform, if there is one."""
    return _describe_once(univariate, tuple(map(tuple, shapes)))


@lru_cache(maxsize=128)
def _describe_once(univariate, shapes) -> _Univariate | None:
    known = univariate.func if isinstance(univariate, partial) else univariate
    options = univariate.keywords if isinstance(univariate, partial) else {}
    if isinstance(univariate, partial) and univariate.args:
        return None
    if max((shape[0] for shape in shapes if shape), default=0) > MAX_BINS:
        return None
    slope = options.get("slope", 1e-3)
    if known is transforms.MonotonicAffineTransform and options.keys() <= {"slope"}:
        return _Univariate(AffineTransform("zuko", limit=-math.log(slope), layout="interleaved"))
    if known is transforms.AdditiveTransform and not options:
        return _Univariate(AffineTransform(layout="shift"))
    spline = partial(SplineTransform, parameterization="zuko", slope=slope)
    if known is transforms.MonotonicRQSTransform and options.keys() <= {"slope", "bound"}:
        return _Univariate(spline(shapes[0][0], bound=float(options.get("bound", 5.0))))
    if known is CircularRQSTransform and options.keys() <= {"slope"}:
        return _Univariate(spline(shapes[0][0], bound=math.pi), circular_bound=math.pi)
    return None


class _VectorTransform(_FusedTransform):
    """Every feature of a vector through a kernel, log-determinants summed there.

    Arguments:
        univariate: what the kernel computes.
        parameters: [..., D, P], to be broadcast with vectors [..., D].
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, univariate: _Univariate, parameters: Tensor):
        super().__init__()
        self.univariate, self.parameters = univariate, parameters

    def call_and_ladj(self, x):
        return self._apply(self._shifted(x), inverse=False)

    def inverse_and_ladj(self, y):
        x, log_abs_det = self._apply(y, inverse=True)
        return self._shifted(x), log_abs_det

    def _shifted(self, x):
        bound = self.univariate.circular_bound
        return x if bound is None else torch.remainder(x, 2 * bound) - bound

    def _apply(self, x, inverse):
        parameters = self.parameters.to(x.dtype)
        if x.shape[:-1] != parameters.shape[:-2]:
            batch = torch.broadcast_shapes(x.shape[:-1], parameters.shape[:-2])
            x, parameters = x.expand(*batch, -1), parameters.expand(*batch, -1, -1)
        rows, parameters = x.reshape(-1, x.shape[-1]), parameters.reshape(-1, *parameters.shape[-2:])
        y, log_abs_det = apply_transform(self.univariate.transform, rows, parameters, inverse=inverse)
        return y.view(x.shape), log_abs_det.view(x.shape[:-1])


class _CouplingTransform(transforms.CouplingTransform, _FusedTransform):
    """zuko's coupling with an inverse that keeps its log-determinant."""

    def inverse_and_ladj(self, y):
        given, moved = self.split(y)
        moved, log_abs_det = self.meta(given).inverse_and_ladj(moved)
        return self.merge(given, moved, y.shape), log_abs_det


class _AutoregressiveTransform(transforms.AutoregressiveTransform, _FusedTransform):
    """zuko's autoregressive transform with an inverse in one pass of work, where ``solve`` has one."""

    def __init__(self, meta, passes: int, solve: Callable | None):
        super().__init__(meta, passes)
        self.solve = solve

    def _inverse(self, y):
        return self.inverse_and_ladj(y)[0]

    def inverse_and_ladj(self, y):
        if self.solve is not None:
            return self.solve(y)
        x, log_abs_det = torch.zeros_like(y), None
        for _ in range(self.passes):  # the last one has every parameter right
            x, log_abs_det = self.meta(x).inverse_and_ladj(y)
        return x, log_abs_det


class _Replacement:
    """A lazy layer with one kernel for all of a vector's features."""

    def remaining(self) -> str | None:
        """What :func:`genssl_fast.accelerate` reports as still being what it was."""
        return None

    def meta(self, c, x):
        if c is not None:
            batch = torch.broadcast_shapes(x.shape[:-1], c.shape[:-1])
            x = torch.cat([x.expand(*batch, -1), c.expand(*batch, -1)], dim=-1)
        parameters = self.hyper(x).unflatten(-1, (-1, self.total))
        return _VectorTransform(_describe(self.univariate, self.shapes), parameters)


class GeneralCouplingTransform(_Replacement, coupling.GeneralCouplingTransform):
    """zuko's coupling: transform and log-determinant in one kernel each way."""

    def forward(self, c: Tensor | None = None) -> Transform:
        return _CouplingTransform(partial(self.meta, c), self.mask)


class ElementWiseTransform(_Replacement, gaussianization.ElementWiseTransform):
    """zuko's elementwise transform, learned or of the context, in one kernel each way."""

    def forward(self, c: Tensor | None = None) -> Transform:
        if c is None:
            features = self.phi[0].shape[0]
            parameters = torch.cat([phi.reshape(features, -1) for phi in self.phi], dim=-1)
        else:
            parameters = self.hyper(c).unflatten(-1, (-1, self.total))
        return _VectorTransform(_describe(self.univariate, self.shapes), parameters)


class MaskedAutoregressiveTransform(_Replacement, autoregressive.MaskedAutoregressiveTransform):
    """zuko's autoregressive layer: one kernel forward, and an inverse that takes one pass of work."""

    def forward(self, c: Tensor | None = None) -> Transform:
        can_solve = self.passes > 1 and not _why_not_one_pass(self)
        return _AutoregressiveTransform(
            partial(self.meta, c), self.passes, partial(self._solve, c) if can_solve else None
        )

    def remaining(self):
        reason = _why_not_one_pass(self) if self.passes > 1 else None
        return reason and f"the inverse takes {self.passes} passes: {reason}"

    def _solve(self, c, y):
        """The inverse at y [..., D] and its log-determinant [...]."""
        batch = torch.broadcast_shapes(y.shape[:-1], () if c is None else c.shape[:-1])
        rows = y.expand(*batch, -1).reshape(-1, y.shape[-1])
        network, degrees, masks = _masked_network(self)
        weights = [mask * weight for mask, weight in zip(masks, network.weights)]
        terms = None
        if c is not None:
            context = c.expand(*batch, -1).reshape(len(rows), -1)
            terms = [nn.functional.linear(context, weights[0][:, y.shape[-1] :]).to(y.dtype)]
            weights[0] = weights[0][:, : y.shape[-1]]
        x, log_abs_det = made_inverse(
            rows, network._replace(weights=tuple(weights)), degrees,
            transform=_describe(self.univariate, self.shapes).transform, context=terms,
        )  # fmt: skip
        return x.view(*batch, -1), log_abs_det.view(batch)


def _why_not_one_pass(layer: MaskedAutoregressiveTransform) -> str | None:
    """What keeps this layer from being inverted in one pass of work."""
    if layer.order is None:
        return "its features depend on each other by a graph"
    if _describe(layer.univariate, layer.shapes).circular_bound is not None:
        return "its transform is circular"
    if type(layer.hyper) is not MaskedMLP:
        return f"its network is a {type(layer.hyper).__name__}"
    if _activation(layer.hyper) is None:
        return "its network's activation has no compiled form"
    return None


def _linears(network: MaskedMLP) -> list[tuple[MaskedLinear, bool, bool]]:
    """The masked matrices, whether an activation comes before each, and whether it ends a residual block."""
    found, activated = [], False
    for module in network:
        if isinstance(module, MaskedLinear):
            found.append((module, activated, False))
            activated = False
        elif isinstance(module, Residual):
            found += [(module[0], activated, False), (module[2], True, True)]
            activated = False
        else:
            activated = True
    return found


def _activation(network: MaskedMLP) -> str | None:
    """The one activation of the network; any name will do where there is none."""
    used = [m for m in network.modules() if not isinstance(m, MaskedLinear | Residual | MaskedMLP)]
    names = {activation_name(module) for module in used} or {"relu"}
    return names.pop() if len(names) == 1 else None


# Of every network, as reading its masks takes a while.
_degrees = weakref.WeakKeyDictionary()


def _masked_network(layer) -> tuple[MADEWeights, list[Tensor], list[Tensor]]:
    """Layers without masks, degrees of inputs and hidden units, and masks [out, in]."""
    linears = _linears(layer.hyper)
    masks = [linear.mask for linear, _, _ in linears]
    key = identities([layer.order, *masks])
    kept = _degrees.get(layer.hyper)
    if kept is None or kept[0] != key:
        _degrees[layer.hyper] = kept = key, _degrees_of(layer.order + 1, masks)
    weights = MADEWeights(
        tuple(linear.weight for linear, _, _ in linears),
        tuple(linear.bias for linear, _, _ in linears),
        _activation(layer.hyper),
        tuple(activated for _, activated, _ in linears),
        tuple(skip for _, _, skip in linears),
    )
    return weights, kept[1], masks


def _degrees_of(order: Tensor, masks: list[Tensor]) -> list[Tensor]:
    """A unit's degree is the highest that it sees; columns of the context have none."""
    degrees = [order]
    for mask in masks[:-1]:
        seen = mask[:, : len(degrees[-1])] * degrees[-1]
        degrees.append(seen.amax(1))
    return degrees


REPLACEMENTS = {
    coupling.GeneralCouplingTransform: GeneralCouplingTransform,
    gaussianization.ElementWiseTransform: ElementWiseTransform,
    autoregressive.MaskedAutoregressiveTransform: MaskedAutoregressiveTransform,
}
WITHOUT_WORK = (lazy.LazyComposedTransform, lazy.LazyInverse)


def replacement(layer: nn.Module) -> type | str | None:
    """The class that :func:`genssl_fast.accelerate` gives this layer, why there is none, or None."""
    found = by_class(layer, REPLACEMENTS, lazy.LazyTransform, WITHOUT_WORK)
    if isinstance(found, type) and _describe(layer.univariate, layer.shapes) is None:
        return "no kernel for its univariate transform"
    return found


def plan(flow: lazy.Flow) -> FlowPlan:
    """A flow of couplings as one compiled call for densities and one for samples; no derivatives.

    Couplings are ``GeneralCouplingTransform`` with affine, additive or rational-quadratic transforms, as
    those of ``NICE`` and ``RealNVP``; between them come permutations. The context goes to the methods.
    Later changes of the flow's weights are noticed as :class:`genssl_fast.FlowPlan` says.

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
    base = flow.base()
    is_standard = isinstance(base, DiagNormal) and bool(((base.mean == 0) & (base.stddev == 1)).all())
    if not is_standard:
        raise unplanned(flow.base, "its base is not a standard normal")
    return FlowPlan(PlannedFlow(flow, _flow_layers))


def _flow_layers(flow: lazy.Flow) -> list[Layer]:
    return _layers(flow.transform)


def _layers(layer: nn.Module) -> list[Layer]:
    """A lazy transform of vectors, from data to base."""
    if isinstance(layer, lazy.LazyComposedTransform):
        return [description for part in layer.transforms for description in _layers(part)]
    if type(layer) in (coupling.GeneralCouplingTransform, GeneralCouplingTransform):
        return [_coupling_layer(layer)]
    if isinstance(layer, lazy.UnconditionalTransform) and layer.f is transforms.PermutationTransform:
        return [PermutationLayer(layer().order)]
    raise unplanned(layer, "no plan for this class")


def _coupling_layer(layer: coupling.GeneralCouplingTransform) -> CouplingLayer:
    described, net = _describe(layer.univariate, layer.shapes), layer.hyper
    if described is None or described.circular_bound is not None:
        raise unplanned(layer, "no plan for its univariate transform")
    if type(net) is not MLP:
        raise unplanned(net, "its network is not an MLP")
    linears = [module for module in net if isinstance(module, Linear)]
    network = perceptron(net, linears, [module for module in net if not isinstance(module, Linear)])
    given, moved = layer.mask.nonzero().flatten(), (~layer.mask).nonzero().flatten()
    context_features = net.in_features - len(given)
    return CouplingLayer(given, moved, network, described.transform, context_features=context_features)
