"""The compiled plan of a flow, kept between calls."""

from __future__ import annotations

from itertools import chain
from operator import is_

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from genssl_fast._library import native_module
from genssl_fast.ops.flow_plan import FlowPlan

__all__ = ["KeptPlan"]

TABLES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
# What else a layer's description is made of.
OPTIONS = ("transform", "activation", "residual", "context_features")


class KeptPlan:
    """The plan of a flow for as long as its modules, tensors, hooks and options are the same objects.

    So a flow whose parameters are swapped, as ``torch.func.functional_call`` does, or whose layers or
    transforms are replaced, is planned anew. There is no plan for layers that only PyTorch runs, and where
    hooks wait.

    Arguments:
        flow: what is planned.
    """

    def __init__(self, flow: nn.Module):
        modules = list(flow.modules())
        self._attributes = list(map(vars, modules))
        self._num_attributes = sum(map(len, self._attributes))
        self._tables = [getattr(module, name) for module in modules for name in TABLES]
        self._contents = list(chain.from_iterable(map(dict.values, self._tables)))
        self._options = [
            (attributes, name, attributes[name])
            for attributes in self._attributes
            for name in OPTIONS
            if name in attributes
        ]
        self.plan = None if any(map(_has_hooks, modules)) else _plan(flow)

    def is_current(self) -> bool:
        """Whether the flow is made of the same objects."""
        contents = chain.from_iterable(map(dict.values, self._tables))
        return (
            sum(map(len, self._tables)) == len(self._contents)
            and all(map(is_, contents, self._contents))
            and sum(map(len, self._attributes)) == self._num_attributes  # as of a forward of its own
            and all(attributes.get(name) is value for attributes, name, value in self._options)
        )


def _plan(flow: nn.Module) -> FlowPlan | None:
    parameter = next(flow.parameters(), None)
    runs_compiled = (
        native_module is not None
        and parameter is not None
        and parameter.device.type == "cpu"
        and parameter.dtype in (torch.float32, torch.float64)
    )
    return FlowPlan(flow) if runs_compiled and _has_descriptions(flow) else None


def _has_descriptions(flow: nn.Module) -> bool:
    """Whether a plan can run every layer."""
    try:
        flow.plan_layers()
    except TypeError:
        return False
    return True


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or _has_any_global_hook())
