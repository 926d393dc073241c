"""Runs a function in several processes that form a gloo group of ``torch.distributed``."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing

__all__ = ["in_processes"]


def in_processes(size: int, function: Callable, *args) -> list:
    """What ``function(rank, *args)`` of a module returns in each of ``size`` processes.

    They fork from a server that has imported PyTorch and done nothing else.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "genssl_fast", "pytest"])
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _run, (size, folder, function, args), nprocs=size, start_method="forkserver"
        )
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(size)]


def _run(rank: int, size: int, folder: str, function: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.save(function(rank, *args), f"{folder}/{rank}")
    dist.destroy_process_group()
