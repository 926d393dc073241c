"""What every normalizing flow can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from genssl_fast._checks import check, check_count, check_same, check_shape, check_tensor
from genssl_fast.flows.base import StandardNormal
from genssl_fast.flows.kept_plan import KeptPlan
from genssl_fast.nn import (
    MLP,
    ActNorm,
    AffineCoupling,
    Compose,
    ConvNet,
    Coupling,
    GlowScale,
    GlowStep,
    Inverse,
    InvertibleLinear,
    MaskedAutoregressive,
    Permutation,
    SplineCoupling,
)
from genssl_fast.nn.kept import records_nothing
from genssl_fast.nn.mlp import check_context
from genssl_fast.ops.flow_layers import Layer
from genssl_fast.ops.flow_methods import FlowMethods
from genssl_fast.ops.flow_plan import FlowPlan

__all__ = ["Flow", "FlowDistribution", "constructor_arguments", "event_shape", "mixed"]

# Modules that a plan stands for; a class derived from one of them may compute something else.
PLANNED = {
    ActNorm, AffineCoupling, Compose, ConvNet, Coupling, GlowScale, GlowStep, Inverse, InvertibleLinear, MLP,
    MaskedAutoregressive, Permutation, SplineCoupling, nn.Conv2d, nn.Linear, nn.ModuleList,
}  # fmt: skip


class Flow(FlowMethods, nn.Module):
    r"""A density by an invertible map f from data to noise, and its sampler.

    .. math:: \log p(x) = \log p_Z(f(x)) + \log \lvert \det \partial f / \partial x \rvert

    The subclasses are the published flows; this class takes any layers.

    Without gradients, flows of layers with perceptrons, or of images with :class:`genssl_fast.nn.ConvNet`,
    run as one compiled :class:`genssl_fast.FlowPlan` on the CPU: sampling always, and in evaluation
    everything. The bits of a sample then depend on its seed and number alone. Layers and networks of other
    classes, and those with hooks, run as they are, unless their class has its own ``plan_layer``, or for
    images ``plan_layers``.

    What a flow keeps of its weights is made anew when they change, also by an optimizer with ``fused=True``
    or through ``.data`` on the CPU, and by :meth:`train` and :meth:`eval`. After single entries of a weight
    changed through ``.data`` or NumPy, or on CUDA any, call :meth:`refresh`.

    Arguments:
        shape: of a sample, as 2 or (1, 8, 8).
        layers: from data to noise; each has ``forward(x, context)`` and ``inverse(y, context)``, which
            return ``(result, log_abs_det [B])`` of their own direction. If ``flat``, they are given
            [B, D] with D the number of entries of a sample, else [B, *shape].
        base: the density of the noise, standard normal by default.
        context_features: length of the context, 0 for none.
        flat: whether layers see samples as vectors.

    Attributes:
        config: the arguments of a subclass, as JSON can hold them: ``type(flow)(**flow.config)``
            builds the flow anew.

    Raises:
        ValueError: an argument out of range; a context where none is expected, or none where one is.
        TypeError: data or context of another dtype than the parameters, unless under autocast.

    References:
        Papamakarios et al., Normalizing Flows for Probabilistic Modeling and Inference,
        https://arxiv.org/abs/1912.02762

    Example:
        >>> from genssl_fast.nn import ActNorm, InvertibleLinear
        >>> flow = genssl_fast.flows.Flow(3, [ActNorm(3), InvertibleLinear(3)])
        >>> x, log_prob = flow.sample_and_log_prob(5, seed=0)
        >>> torch.allclose(flow.eval().log_prob(x), log_prob, atol=1e-5)
        True
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        layers: Iterable[nn.Module],
        *,
        base: nn.Module | None = None,
        context_features: int = 0,
        flat: bool = True,
    ):
        super().__init__()
        self.shape, self.flat = event_shape(shape), flat
        check_count("context_features", context_features)
        self.context_features = context_features
        self.layers = Compose(layers)
        check(len(self.layers) > 0, "layers", "at least one layer", 0)
        self.base = StandardNormal(self.shape) if base is None else base
        noise = tuple(getattr(self.base, "shape", self.shape))
        check(noise == self.shape, "base", f"a density of shape {list(self.shape)}", f"one of {list(noise)}")
        self.config: dict[str, Any] | None = None
        self._kept_plan: KeptPlan | None = None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`, so that wrappers of modules, as for data parallelism, train a flow."""
        return self.log_prob(x, context)

    def train(self, mode: bool = True) -> Flow:
        """Training or evaluation; see :meth:`refresh`."""
        self.refresh()
        return super().train(mode)

    def refresh(self) -> None:
        """Forgets what is kept of the weights, as after changes that cannot be noticed."""
        self._kept_plan = None
        for module in self.layers.modules():
            if hasattr(module, "refresh"):
                module.refresh()

    def _map(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        plan = None if self.training else self._plan()
        return plan._map(x, context, inverse) if plan else self._run(x, context, inverse)

    def _density(self, x: Tensor, context: Tensor | None) -> Tensor:
        plan = None if self.training else self._plan()
        if plan:
            return plan.log_prob(x, context)
        z, log_abs_det = self.transform(x, context)
        return self.base.log_prob(z) + log_abs_det

    @torch.no_grad()
    def _draw(
        self, n: int, seed, first_sample: int, context: Tensor | None, with_log_prob: bool
    ) -> tuple[Tensor, Tensor | None]:
        plan = self._plan()
        draw = plan._draw if plan else self._reparameterize
        return draw(n, seed, first_sample, context, with_log_prob)

    def rsample(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> Tensor:
        """Samples that carry gradients to the parameters; arguments as for :meth:`sample`."""
        return self._reparameterize(n, seed, first_sample, context, with_log_prob=False)[0]

    def rsample_and_log_prob(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities with gradients, for variational inference."""
        return self._reparameterize(n, seed, first_sample, context, with_log_prob=True)

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The density as a ``torch.distributions.Distribution``; the context [*batch, C] makes its batch."""
        return FlowDistribution(self, context)

    def plan_layers(self) -> list[Layer]:
        """The layers as :class:`genssl_fast.FlowPlan` takes them.

        Raises:
            TypeError: a layer that no plan runs, or a flow that changes what its layers do.
        """
        for name in ("transform", "inverse", "_map", "_run"):
            if getattr(type(self), name) is not getattr(Flow, name):
                raise TypeError(f"flow: expected Flow's own {name}, got that of {type(self).__name__}")
        described = (self._described(number, layer) for number, layer in enumerate(self.layers))
        return [layer for layers in described for layer in layers]

    def _described(self, number: int, layer: nn.Module) -> list[Layer]:
        name = "plan_layer" if self.flat else "plan_layers"
        if not hasattr(layer, name):
            kind = type(layer).__name__
            raise TypeError(f"layers[{number}]: expected a layer with {name}(), got {kind}")
        unplanned = next(_unplanned(layer, name), None)
        if unplanned is not None:
            raise TypeError(f"layers[{number}]: expected modules that a plan runs, got {unplanned}")
        try:
            return [layer.plan_layer()] if self.flat else layer.plan_layers(self.shape)
        except TypeError as error:
            raise TypeError(f"layers[{number}]: {error}") from None

    def _plan(self) -> FlowPlan | None:
        """The compiled plan, where there is one and nothing needs the layers' own operations."""
        if not records_nothing():
            return None
        kept = self._kept_plan  # which another thread may forget
        if kept is None or not kept.is_current():
            kept = self._kept_plan = KeptPlan(self)
        return kept.plan

    def __getstate__(self) -> dict:
        """Without the plan, which a copy makes for itself."""
        return {**self.__dict__, "_kept_plan": None}

    def _reparameterize(
        self, n: int, seed, first_sample: int, context: Tensor | None, with_log_prob: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Samples as a function of the parameters, and their log-densities."""
        check_count("n", n)
        like = next(self.parameters(), torch.empty(0))
        z = self.base.sample(n, seed=seed, first_sample=first_sample, like=like)
        x, log_abs_det = self.inverse(z, context)
        return x, self.base.log_prob(z) - log_abs_det if with_log_prob else None

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """The layers' own operations."""
        name = "z" if inverse else "x"
        check_tensor(name, x)
        fits = x.ndim > 0 and x.shape[1:] == self.shape
        check(fits, name, f"shape [B, *{list(self.shape)}]", list(x.shape))
        self._check_like_parameters(name, x)
        if context is not None:
            check_tensor("context", context)
            context = context.expand(len(x), -1) if context.ndim == 1 else context
        check_context(context, self.context_features)
        if context is not None:
            check_shape("context", context, (len(x), self.context_features), "[B, C]")
            self._check_like_parameters("context", context)
        run = self.layers.inverse if inverse else self.layers.forward
        y, log_abs_det = run(x.flatten(1) if self.flat else x, context)
        return y.reshape(x.shape), log_abs_det

    def _check_like_parameters(self, name: str, tensor: Tensor) -> None:
        parameter = next(self.parameters(), None)
        if parameter is None:
            return
        device = parameter.device
        check(tensor.device == device, name, f"the device of the parameters, {device}", tensor.device)
        if not torch.is_autocast_enabled(device.type):
            check_same(name, tensor, parameter, "the parameters", shape=False)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, context_features={self.context_features}"


class FlowDistribution(Distribution):
    """A flow at a context as a PyTorch distribution; :meth:`Flow.distribution` makes it.

    Example:
        >>> density = genssl_fast.flows.RealNVP(2, layers=2, hidden=(8,)).distribution()
        >>> density.log_prob(density.sample((4, 3))).shape
        torch.Size([4, 3])
    """

    arg_constraints = {}
    has_rsample = True

    def __init__(self, flow: Flow, context: Tensor | None = None, validate_args: bool | None = None):
        self.flow, self.context = flow, context
        if context is not None:
            check_tensor("context", context)
            fits = flow.context_features > 0 and context.shape[-1:] == (flow.context_features,)
            check(fits, "context", f"shape [*batch, {flow.context_features}]", list(context.shape))
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, torch.Size(flow.shape), validate_args)

    @property
    def support(self):
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape, _instance=None) -> FlowDistribution:
        """The same with a larger batch."""
        batch_shape = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*batch_shape, -1)
        expanded = FlowDistribution(self.flow, context, validate_args=self._validate_args)
        expanded._batch_shape = batch_shape
        return expanded

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Samples with gradients; noise from a seed drawn from PyTorch's default generator."""
        shape = self._extended_shape(sample_shape)
        batch = shape[: len(shape) - len(self.event_shape)]
        samples = self.flow.rsample(batch.numel(), context=self._contexts(batch))
        return samples.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density [*batch] of ``value`` [*batch, *event_shape]."""
        if self._validate_args and value.numel() > 0:  # PyTorch's check fails where there is nothing
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        value = value.expand(*batch, *self.event_shape).reshape(batch.numel(), *self.event_shape)
        return self.flow.log_prob(value, self._contexts(batch)).reshape(batch)

    def _contexts(self, batch: torch.Size) -> Tensor | None:
        """One context per sample [batch.numel(), C]."""
        if self.context is None:
            return None
        features = self.context.shape[-1]
        return self.context.expand(*batch, features).reshape(batch.numel(), features)

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self).__name__}({type(self.flow).__name__}, {shapes})"


def _unplanned(module: nn.Module, name: str) -> Iterator[str]:
    """What within a layer computes something that no plan knows of, unless its class has ``name``."""
    kind = type(module)
    if module._forward_hooks or module._forward_pre_hooks:
        yield f"{kind.__name__} with hooks"
    if {"forward", "inverse", "plan_layer", "plan_layers"} & vars(module).keys():
        yield f"{kind.__name__} with methods of its own"
    if name in vars(kind) and kind not in PLANNED:
        return  # its author says what it computes
    if kind not in PLANNED:
        yield kind.__name__
    for child in module.children():
        yield from _unplanned(child, name)


def event_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of a sample, given as such or as the length of a vector."""
    shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not all(isinstance(size, int) for size in shape):
        raise TypeError(f"shape: expected an int or a sequence of ints, got {shape}")
    check(len(shape) >= 1 and min(shape) >= 1, "shape", "sizes of at least 1", shape)
    return shape


def constructor_arguments(variables: dict[str, Any]) -> dict[str, Any]:
    """A constructor's ``locals()`` as JSON can hold them."""
    arguments = {name: value for name, value in variables.items() if name not in ("self", "__class__")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


def mixed(layers: Iterable[nn.Module], actnorm: bool, linear: bool) -> Iterator[nn.Module]:
    """Normalization and a learned rotation, where asked for, before each layer."""
    for layer in layers:
        if actnorm:
            yield ActNorm(layer.features)
        if linear:
            yield InvertibleLinear(layer.features, bias=True)
        yield layer
