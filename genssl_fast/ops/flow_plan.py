"""A whole flow as one compiled call."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genssl_fast._autograd import has_tangent, wants_gradient
from genssl_fast._checks import check, check_count, check_same, check_tensor
from genssl_fast._packing import Watch, contiguous
from genssl_fast._random import check_first_sample
from genssl_fast.ops.flow_checks import check_kinds, check_layers
from genssl_fast.ops.flow_layers import Layer, layer_features, layer_tensors
from genssl_fast.ops.flow_methods import FlowMethods
from genssl_fast.ops.flow_runners import (
    LOG_ABS_DET,
    LOG_PROB,
    VALUE,
    CompiledFlow,
    EagerFlow,
    Noise,
    Results,
    flow_runner,
)

__all__ = ["FlowPlan"]

# From this batch on, comparing all weights with those packed takes less than a fiftieth of a call.
COMPARE_ALL_FROM = 512


class FlowPlan(FlowMethods):
    """A flow of couplings and autoregressive layers, of vectors or images, run whole; no derivatives.

    On the CPU, in fp32 and fp64, every method is one compiled call: blocks of samples stay in cache through
    all layers, weights are kept packed, and a sample has the same bits in every batch and under any number
    of threads. On CUDA the layers are captured once for each batch size as a CUDA graph and replayed.
    Linear layers are inverted by their inverse matrix, computed in fp64 when the weights are packed,
    autoregressive ones as by :func:`genssl_fast.made_inverse`.

    Changed weights are noticed and packed anew: by data pointer and version, at steps of optimizers, and,
    for what PyTorch does not count, by content, on the CPU. Calls of fewer than 512 samples compare some
    entries of every tensor, which shows a change of the whole, as of an average by ``.data``. After single
    entries changed by NumPy or ``.data``, after any such change on CUDA, and when a parameter or an option
    was replaced by another object, call :meth:`refresh`. Layers run as in evaluation: without dropout,
    and normalized by what they have seen. Splines without tails leave entries outside their box.

    Arguments:
        flow: a module with ``plan_layers()``, such as the coupling flows of :mod:`genssl_fast.flows`, or a
            sequence from data to noise of :class:`genssl_fast.CouplingLayer`,
            :class:`genssl_fast.AutoregressiveLayer`, :class:`genssl_fast.PermutationLayer`,
            :class:`genssl_fast.LinearLayer`, :class:`genssl_fast.ChannelLinearLayer`,
            :class:`genssl_fast.ElementwiseLayer`, :class:`genssl_fast.PartialLayer` and modules with
            ``plan_layer()``. A module's ``base`` is the density of the noise, its ``shape`` that of a
            sample; without, they are a standard normal and [D].

    Raises:
        TypeError: a layer that a plan cannot run; the message names it and says why.
        ValueError: layers that do not fit each other, a matrix that is singular; the message names it.
        RuntimeError: a derivative or a transform of ``torch.func`` is asked for.

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
        layers = self._layers()
        check(len(layers) > 0, "flow", "at least one layer", 0)
        check_kinds("layers", layers)
        self.shape = tuple(flow.shape) if hasattr(flow, "shape") else (layer_features(layers),)
        self.refresh()
        self._runner(batch=0)

    def refresh(self) -> None:
        """Looks for the flow's tensors and its base anew, and packs them at the next call."""
        self.base = getattr(self.flow, "base", None)
        # A class derived from the standard normal may have another density.
        self._density_is_compiled = self.base is None or "is_standard_normal" in vars(type(self.base))
        self._sources = _sources(self.flow)
        self._packed = None

    def __getstate__(self) -> dict:
        """Without the packing, which a copy makes for itself."""
        return {**self.__dict__, "_packed": None}

    def _map(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return self._run(inverse, x, context, VALUE | LOG_ABS_DET)[:2]

    def _density(self, x: Tensor, context: Tensor | None) -> Tensor:
        if self._density_is_compiled:
            return self._run(False, x, context, LOG_PROB)[2]
        z, log_abs_det = self._map(x, context, inverse=False)
        with torch.no_grad():
            return self.base.log_prob(z) + log_abs_det

    def _draw(
        self, n: int, seed, first_sample: int, context: Tensor | None, with_log_prob: bool
    ) -> tuple[Tensor, Tensor | None]:
        check_count("n", n)
        check_first_sample(first_sample)
        runner = self._runner(n)
        if not self._density_is_compiled:
            with torch.no_grad():
                z = self.base.sample(n, seed=seed, first_sample=first_sample, like=runner.like)
                x, log_abs_det = self._map(z, context, inverse=True)
                return x, self.base.log_prob(z) - log_abs_det if with_log_prob else None
        if isinstance(context, Tensor):
            context = context.detach()  # samples carry no gradients
        context = self._checked_context(context, n, runner.like)
        wanted = VALUE | LOG_PROB if with_log_prob else VALUE
        x, _, log_prob = runner(True, Noise(n, seed, first_sample), context, n, wanted)
        return x, log_prob

    def _run(self, inverse: bool, x: Tensor, context: Tensor | None, wanted: int) -> Results:
        name = "z" if inverse else "x"
        self._check_shape(name, x)
        batch = x.shape[0]
        runner = self._runner(batch)
        _check_tensor(name, x, runner.like)
        context = self._checked_context(context, batch, runner.like)
        return runner(inverse, contiguous(x), context, batch, wanted)

    def _check_shape(self, argument: str, x: Tensor) -> None:
        check_tensor(argument, x)
        if x.ndim == 0 or x.shape[1:] != self.shape:
            raise ValueError(f"{argument}: expected shape [B, *{list(self.shape)}], got {list(x.shape)}")

    def _checked_context(self, context: Tensor | None, batch: int, like: Tensor) -> Tensor | None:
        features = self.context_features
        if context is None:
            check(features == 0, "context", f"shape [B, {features}]", None)
            return None
        check_tensor("context", context)
        shape = list(context.shape)
        check(features > 0, "context", "None, since no layer reads it", shape)
        shapes = [[batch, features], [features]]
        check(shape in shapes, "context", f"shape [B, {features}] or [{features}]", shape)
        _check_tensor("context", context, like)
        return contiguous(context)

    @torch.no_grad()
    def _layers(self) -> list[Layer]:
        if hasattr(self.flow, "plan_layers"):
            return list(self.flow.plan_layers())
        if isinstance(self.flow, nn.Module) and not isinstance(self.flow, nn.ModuleList | nn.Sequential):
            name = type(self.flow).__name__
            raise TypeError(f"flow: expected a module with plan_layers() or a sequence of layers, got {name}")
        return [layer.plan_layer() if hasattr(layer, "plan_layer") else layer for layer in self.flow]

    def _runner(self, batch: int) -> CompiledFlow | EagerFlow:
        """What runs the weights as they are now, on this many samples."""
        everything = batch >= COMPARE_ALL_FROM
        if self._packed is None or not self._packed.watch.sees_same(self._sources, everything=everything):
            self._packed = self._pack()
        return self._packed.runner

    def _pack(self) -> "_Packed":
        watch = Watch(self._sources)
        with _full_precision(self._sources):
            layers = self._layers()
            check_layers(layers, math.prod(self.shape))
            self.context_features = max(getattr(layer, "context_features", 0) for layer in layers)
            return _Packed(watch, flow_runner(layers, self.shape))


class _Packed(NamedTuple):
    """A runner, and what notices changes of the weights it was made from."""

    watch: Watch
    runner: CompiledFlow | EagerFlow


def _full_precision(tensors: list[Tensor]):
    """Without autocast, which would round matrices that are computed from the weights."""
    device = tensors[0].device.type if tensors else "cpu"
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _check_tensor(argument: str, tensor: Tensor, like: Tensor) -> None:
    """Dtype and device of the weights, and no derivative or transform that would be lost."""
    check_same(argument, tensor, like, "the weights", shape=False)
    is_transformed = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    if is_transformed or wants_gradient((tensor,)) or has_tangent((tensor,)):
        raise RuntimeError(
            f"{argument}: FlowPlan has no derivative and no transforms of torch.func: call the flow itself"
        )


def _sources(flow) -> list[Tensor]:
    """The tensors that the layers are made of."""
    if isinstance(flow, nn.Module):
        return [*flow.parameters(), *flow.buffers()]
    modules = [layer for layer in flow if isinstance(layer, nn.Module)]
    others = [layer for layer in flow if not isinstance(layer, nn.Module)]
    kept = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return kept + [tensor for layer in others for tensor in layer_tensors(layer)]
