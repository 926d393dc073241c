"""The device and the threads that a subcommand runs with."""

import argparse
import os

import torch

__all__ = ["use_device"]


def use_device(arguments: argparse.Namespace) -> torch.device:
    """Applies `--threads` and returns the device of `--device`; each process of a run has its own GPU."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    available = torch.cuda.is_available()
    name = arguments.device or ("cuda" if available else "cpu")
    if not name.startswith("cuda"):
        return torch.device(name)
    if not available:
        raise ValueError(f"device: expected cpu, since PyTorch finds no usable GPU, got {name}")
    if ":" not in name:
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    if int(name.partition(":")[2]) >= torch.cuda.device_count():
        raise ValueError(f"device: expected one of {torch.cuda.device_count()} GPUs, got {name}")
    return torch.device(name)
