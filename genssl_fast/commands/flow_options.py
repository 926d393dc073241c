"""What the command line can choose of a flow and of its training."""

import argparse
import inspect
from collections.abc import Iterable
from typing import Any

from genssl_fast.commands.arguments import fraction, positive, positive_int
from genssl_fast.flow_model import FlowModelConfig
from genssl_fast.flows import FLOWS
from genssl_fast.training import FlowTrainingConfig

__all__ = ["FLOW_OPTIONS", "add_flow_arguments", "flow_arguments", "flow_defaults", "flow_options", "given"]

TRAINING, MODEL = FlowTrainingConfig(), FlowModelConfig(shape=())
# Arguments of flows by the name of their option.
FLOW_OPTIONS = {
    name: name for name in ("layers", "hidden", "bins", "bound", "dropout", "actnorm", "linear", "scales")
}
FLOW_OPTIONS["steps_per_scale"] = "steps"
OWN = "(default: each flow's own)"


def add_flow_arguments(group: argparse._ArgumentGroup) -> None:
    for name, what in (
        ("layers", "transforms"),
        ("depth", "hidden layers of a network"),
        ("bins", "bins of a spline"),
        ("scales", "scales of Glow"),
        ("steps_per_scale", "steps of Glow at each scale"),
    ):
        group.add_argument(f"--{name.replace('_', '-')}", type=positive_int, help=f"{what} {OWN}")
    for name, what in (("actnorm", "normalization"), ("linear", "a learned rotation")):
        group.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, help=f"{what} before every transform {OWN}"
        )
    group.add_argument("--dropout", type=fraction, help=f"of hidden units {OWN}")
    group.add_argument("--bound", type=positive, help=f"splines act between -BOUND and BOUND {OWN}")
    group.add_argument(
        "--alpha", type=positive, help=f"of the logit of 8-bit images and digits (default: {MODEL.alpha})"
    )
    for name, kind, what in (
        ("weight_decay", fraction, "of AdamW"),
        (
            "held_out",
            fraction,
            "part of the data to validate with, rounded to every second, third, ... sample; 0 for none",
        ),
        ("validate_every", positive_int, "steps between validations"),
        ("patience", positive_int, "validations without a new best after which training stops"),
    ):
        default = f"(default: {getattr(TRAINING, name)})"
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{what} {default}")


def flow_options(arguments: argparse.Namespace, defaults: dict[str, Any]) -> dict[str, Any]:
    """What the command line sets of a flow; a width and a depth make its hidden layers."""
    options = given(arguments, defaults)
    hidden = defaults.get("hidden")
    if isinstance(hidden, list) and (arguments.hidden or arguments.depth):
        options["hidden"] = [arguments.hidden or hidden[0]] * (arguments.depth or len(hidden))
    return options


def flow_defaults(flow: str) -> dict[str, Any]:
    """A flow's own arguments by the name of their option, as JSON holds them."""
    parameters = inspect.signature(FLOWS[flow]).parameters
    defaults = {
        option: parameters[name].default for option, name in FLOW_OPTIONS.items() if name in parameters
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def flow_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the constructor names them."""
    return {FLOW_OPTIONS[name]: value for name, value in options.items()}


def given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """What the command line sets of these."""
    values = {name: getattr(arguments, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}
