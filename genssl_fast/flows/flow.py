"""What every normalizing flow can do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from genssl_fast._checks import check, check_shape
from genssl_fast.flows.base import StandardNormal
from genssl_fast.flows.kept_plan import KeptPlan
from genssl_fast.nn import ActNorm, Compose, InvertibleLinear
from genssl_fast.nn.kept import records_nothing
from genssl_fast.nn.mlp import check_context
from genssl_fast.ops.flow_plan import FlowPlan

__all__ = ["Flow", "FlowDistribution", "constructor_arguments", "event_shape", "mixed"]


class Flow(nn.Module):
    r"""A density by an invertible map f from data to noise, and its sampler.

    .. math:: \log p(x) = \log p_Z(f(x)) + \log \lvert \det \partial f / \partial x \rvert

    The subclasses are the published flows; this class takes any layers.

    Without gradients, flows of couplings with perceptrons run as one compiled :class:`genssl_fast.FlowPlan`
    on the CPU: sampling always, and in evaluation everything. The bits of a sample then depend on its seed
    and number alone. A subclass of a layer that computes something else needs its own ``plan_layer``.

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
        check(context_features >= 0, "context_features", "at least 0", context_features)
        self.context_features = context_features
        self.layers = Compose(layers)
        self.base = StandardNormal(self.shape) if base is None else base
        self.config: dict[str, Any] | None = None
        self._kept_plan: KeptPlan | None = None

    def transform(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise.

        Arguments:
            x: data [B, *shape].
            context: [B, context_features], or [context_features] for all.

        Returns:
            noise like ``x``, and the log-determinant [B] of its derivative.
        """
        plan = None if self.training else self._plan()
        return plan.transform(x, context) if plan else self._run(self.layers.forward, "x", x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, the inverse of :meth:`transform`, and the log-determinant [B] of its derivative."""
        plan = None if self.training else self._plan()
        return plan.inverse(z, context) if plan else self._run(self.layers.inverse, "z", z, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density [B] of data ``x`` [B, *shape], in nats."""
        plan = None if self.training else self._plan()
        if plan:
            return plan.log_prob(x, context)
        z, log_abs_det = self._run(self.layers.forward, "x", x, context)
        return self.base.log_prob(z) + log_abs_det

    def bits_per_dim(self, x: Tensor, num_levels: int, context: Tensor | None = None) -> Tensor:
        """Negative log2-probability per entry [B] of data of ``num_levels`` levels, dequantised to [0, 1)."""
        check(num_levels >= 1, "num_levels", "at least 1", num_levels)
        nats = -self.log_prob(x, context) / math.prod(self.shape)
        return nats / math.log(2) + math.log2(num_levels)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> Tensor:
        """Samples [n, *shape].

        Arguments:
            n: how many.
            seed: of the noise; None draws one from PyTorch's default generator.
            first_sample: number of the first; the noise of a sample depends on seed and number alone.
            context: [n, context_features], or [context_features] for all.
        """
        plan = self._plan()
        draw = plan.sample if plan else self.rsample
        return draw(n, seed=seed, first_sample=first_sample, context=context)

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples [n, *shape] and their log-densities [n], for the price of the samples."""
        plan = self._plan()
        draw = plan.sample_and_log_prob if plan else self.rsample_and_log_prob
        return draw(n, seed=seed, first_sample=first_sample, context=context)

    def rsample(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> Tensor:
        """Samples that carry gradients to the parameters; arguments as for :meth:`sample`."""
        return self.inverse(self._noise(n, seed, first_sample), context)[0]

    def rsample_and_log_prob(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities with gradients, for variational inference."""
        z = self._noise(n, seed, first_sample)
        x, log_abs_det = self.inverse(z, context)
        return x, self.base.log_prob(z) - log_abs_det

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The density as a ``torch.distributions.Distribution``; the context [*batch, C] makes its batch."""
        return FlowDistribution(self, context)

    def plan_layers(self) -> list:
        """The layers as :class:`genssl_fast.FlowPlan` takes them.

        Raises:
            TypeError: a layer that no plan runs.
        """
        for number, layer in enumerate(self.layers):
            if not hasattr(layer, "plan_layer"):
                kind = type(layer).__name__
                raise TypeError(f"layers[{number}]: expected a layer with plan_layer(), got {kind}")
        return [layer.plan_layer() for layer in self.layers]

    def _plan(self) -> FlowPlan | None:
        """The compiled plan, where there is one and nothing needs the layers' own operations."""
        if not records_nothing():
            return None
        if self._kept_plan is None or not self._kept_plan.is_current():
            self._kept_plan = KeptPlan(self)
        return self._kept_plan.plan

    def __getstate__(self) -> dict:
        """Without the plan, which a copy makes for itself."""
        return {**self.__dict__, "_kept_plan": None}

    def _noise(self, n: int, seed: int | Tensor | None, first_sample: int) -> Tensor:
        check(n >= 0, "n", "at least 0", n)
        like = next(self.parameters(), torch.empty(0))
        return self.base.sample(n, seed=seed, first_sample=first_sample, like=like)

    def _run(self, function, argument: str, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        check_shape(argument, x, (*x.shape[:1], *self.shape), f"[B, *{list(self.shape)}]")
        if context is not None and context.ndim == 1:
            context = context.expand(len(x), -1)
        check_context(context, self.context_features)
        y, log_abs_det = function(x.flatten(1) if self.flat else x, context)
        return y.reshape(x.shape), log_abs_det

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
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, torch.Size(flow.shape), validate_args)

    @property
    def support(self):
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape, _instance=None) -> FlowDistribution:
        """The same with a larger batch."""
        batch_shape = torch.Size(batch_shape)
        if self.context is not None:
            return FlowDistribution(self.flow, self.context.expand(*batch_shape, -1))
        expanded = FlowDistribution(self.flow)
        Distribution.__init__(expanded, batch_shape, self.event_shape, validate_args=False)
        return expanded

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Samples with gradients; noise from a seed drawn from PyTorch's default generator."""
        shape = self._extended_shape(sample_shape)
        batch = shape[: len(shape) - len(self.event_shape)]
        samples = self.flow.rsample(batch.numel(), context=self._contexts(batch))
        return samples.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density [*batch] of ``value`` [*batch, *event_shape]."""
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        value = value.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape)
        return self.flow.log_prob(value, self._contexts(batch)).reshape(batch)

    def _contexts(self, batch: torch.Size) -> Tensor | None:
        """One context per sample [batch.numel(), C]."""
        if self.context is None:
            return None
        features = self.context.shape[-1]
        return self.context.expand(*batch, features).reshape(-1, features)


def event_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of a sample, given as such or as the length of a vector."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
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
