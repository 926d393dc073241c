"""A whole flow as one compiled call."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genssl_fast._autograd import has_tangent
from genssl_fast._checks import check, check_same
from genssl_fast._packing import contiguous, identities
from genssl_fast._random import check_first_sample
from genssl_fast.ops.flow_layers import (
    CouplingLayer,
    ElementwiseLayer,
    Layer,
    LinearLayer,
    MLPWeights,
    PermutationLayer,
    check_layers,
    layer_features,
    layer_tensors,
)
from genssl_fast.ops.flow_runners import (
    LOG_ABS_DET,
    LOG_PROB,
    VALUE,
    CompiledFlow,
    EagerFlow,
    Noise,
    flow_runner,
)

__all__ = [
    "CouplingLayer",
    "ElementwiseLayer",
    "FlowPlan",
    "LinearLayer",
    "MLPWeights",
    "PermutationLayer",
]


class FlowPlan:
    """A flow of couplings with multilayer perceptrons, run whole; no derivatives.

    On the CPU, in fp32 and fp64, every method is one compiled call: blocks of samples stay in cache through
    all layers, weights are kept packed, and a sample has the same bits in every batch and under any number
    of threads. On CUDA the layers are captured once for each batch size as a CUDA graph and replayed.
    Linear layers are inverted by their inverse matrix, computed in fp64 when the weights are packed.

    Weights changed in place are noticed by their data pointer and version and packed anew. A change
    that PyTorch does not count, as through NumPy or by an optimizer with ``fused=True``, and a parameter
    replaced by another object need :meth:`refresh`. Layers run as in evaluation: without dropout, and
    normalized by what they have seen. Splines without tails leave entries outside their box as they are.

    Arguments:
        flow: a module with ``plan_layers()``, such as the coupling flows of :mod:`genssl_fast.flows`, or a
            sequence from data to noise of :class:`genssl_fast.CouplingLayer`,
            :class:`genssl_fast.PermutationLayer`, :class:`genssl_fast.LinearLayer`,
            :class:`genssl_fast.ElementwiseLayer` and modules with ``plan_layer()``. A module's ``base``
            is the density of the noise, its ``shape`` that of a sample; without, they are a standard
            normal and [D].

    Raises:
        TypeError: a layer that a plan cannot run.
        ValueError: layers that do not fit each other, a matrix that is singular; the message names it.

    References:
        Durkan et al., Neural Spline Flows, https://arxiv.org/abs/1906.04032

    Example:
        >>> flow = genssl_fast.flows.NeuralSplineFlow(4, layers=2, hidden=(16, 16))
        >>> plan = genssl_fast.FlowPlan(flow)
        >>> x, log_prob = plan.sample_and_log_prob(5, seed=0)
        >>> torch.allclose(plan.log_prob(x), log_prob, atol=1e-4)
        True
    """

    def __init__(self, flow: nn.Module | Sequence[Layer | nn.Module]):
        self.flow = flow
        self.base = getattr(flow, "base", None)
        self._density_is_compiled = self.base is None or getattr(self.base, "is_standard_normal", False)
        layers = self._checked_layers()
        self._features = layer_features(layers[0])
        self.shape = tuple(getattr(flow, "shape", (self._features,)))
        self.context_features = max(getattr(layer, "context_features", 0) for layer in layers)
        self.refresh()
        self._runner()

    def refresh(self) -> None:
        """Looks for the flow's tensors anew, and packs them at the next call."""
        self._sources = _sources(self.flow)
        self._packed = None

    def __getstate__(self) -> dict:
        """Without the packing, which a copy makes for itself."""
        return {**self.__dict__, "_packed": None}

    def transform(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise.

        Arguments:
            x: data [B, *shape].
            context: [B, context_features], or [context_features] for all.

        Returns:
            noise like ``x``, and the log-determinant [B] of its derivative, in fp32 (fp64 for fp64).
        """
        z, log_abs_det, _ = self._run(False, "x", x, context, VALUE | LOG_ABS_DET)
        return z.view(x.shape), log_abs_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, the inverse of :meth:`transform`, and the log-determinant [B] of its derivative."""
        x, log_abs_det, _ = self._run(True, "z", z, context, VALUE | LOG_ABS_DET)
        return x.view(z.shape), log_abs_det

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density [B] of data ``x`` [B, *shape], in nats."""
        if not self._density_is_compiled:
            z, log_abs_det = self.transform(x, context)
            return self.base.log_prob(z) + log_abs_det
        return self._run(False, "x", x, context, LOG_PROB)[2]

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
        return self._sample(n, seed, first_sample, context, VALUE)[0]

    def sample_and_log_prob(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples [n, *shape] and their log-densities [n], for the price of the samples."""
        return self._sample(n, seed, first_sample, context, VALUE | LOG_PROB)

    def _sample(self, n: int, seed, first_sample: int, context, wanted: int) -> tuple[Tensor, Tensor | None]:
        check(n >= 0, "n", "at least 0", n)
        check_first_sample(first_sample)
        runner = self._runner()
        if not self._density_is_compiled:
            z = self.base.sample(n, seed=seed, first_sample=first_sample, like=runner.like)
            x, log_abs_det = self.inverse(z, context)
            return x, self.base.log_prob(z) - log_abs_det if wanted & LOG_PROB else None
        context = self._checked_context(context, n, runner.like)
        x, _, log_prob = runner(True, Noise(n, seed, first_sample), context, n, wanted)
        return x.view(n, *self.shape), log_prob

    def _run(self, inverse: bool, argument: str, x: Tensor, context: Tensor | None, wanted: int):
        """(result [B, D], log_abs_det [B], log_prob [B]), of which those not wanted may be None."""
        runner = self._runner()
        self._check(argument, x, runner.like)
        context = self._checked_context(context, len(x), runner.like)
        rows = x.detach().reshape(len(x), self._features).contiguous()
        return runner(inverse, rows, context, len(x), wanted)

    def _check(self, argument: str, x: Tensor, like: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{argument}: expected a tensor, got {type(x).__name__}")
        if x.ndim == 0 or x.shape[1:] != self.shape:
            raise ValueError(f"{argument}: expected shape [B, *{list(self.shape)}], got {list(x.shape)}")
        check_same(argument, x, like, "the weights", shape=False)
        if has_tangent((x,)):
            raise RuntimeError("FlowPlan has no derivative: call the flow's own methods")

    def _checked_context(self, context: Tensor | None, batch: int, like: Tensor) -> Tensor | None:
        features = self.context_features
        if context is None:
            check(features == 0, "context", f"shape [B, {features}]", None)
            return None
        shape = list(context.shape)
        check(features > 0, "context", "None, since no layer reads it", shape)
        shapes = [[batch, features], [features]]
        check(shape in shapes, "context", f"shape [B, {features}] or [{features}]", shape)
        check_same("context", context, like, "the weights", shape=False)
        return contiguous(context)

    @torch.no_grad()
    def _layers(self) -> list[Layer]:
        if hasattr(self.flow, "plan_layers"):
            return list(self.flow.plan_layers())
        if isinstance(self.flow, nn.Module) and not isinstance(self.flow, nn.ModuleList | nn.Sequential):
            name = type(self.flow).__name__
            raise TypeError(f"flow: expected a module with plan_layers() or a sequence of layers, got {name}")
        return [layer.plan_layer() if hasattr(layer, "plan_layer") else layer for layer in self.flow]

    def _checked_layers(self) -> list[Layer]:
        layers = self._layers()
        check(len(layers) > 0, "flow", "at least one layer", 0)
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{i}]: expected a layer description, got {type(layer).__name__}")
        check_layers(layers, math.prod(getattr(self.flow, "shape", (layer_features(layers[0]),))))
        return layers

    def _runner(self) -> CompiledFlow | EagerFlow:
        """What runs the weights as they are now."""
        key = identities(self._sources)
        if self._packed is None or self._packed.key != key:
            originals = [tensor.detach() for tensor in self._sources]
            self._packed = _Packed(key, flow_runner(self._layers()), originals)
        return self._packed.runner


class _Packed(NamedTuple):
    """A runner, and the weights it was made from: held, so that no others can take their addresses."""

    key: tuple
    runner: CompiledFlow | EagerFlow
    originals: list[Tensor]


def _sources(flow) -> list[Tensor]:
    """The tensors that the layers are made of."""
    if isinstance(flow, nn.Module):
        return [*flow.parameters(), *flow.buffers()]
    modules = [layer for layer in flow if isinstance(layer, nn.Module)]
    others = [layer for layer in flow if not isinstance(layer, nn.Module)]
    kept = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return kept + [tensor for layer in others for tensor in layer_tensors(layer)]
