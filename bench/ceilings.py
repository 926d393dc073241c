"""Limits of the machine, measured in the same rounds as the operations."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.case import Ceiling
from genssl_fast._library import native_module


def stream(reads: Sequence[Tensor], writes: int, shape=None) -> dict[str, Ceiling]:
    """Memory traffic with the operation's streams, size and allocation.

    On a CPU: fp32 streams that are read, and fresh tensors of `shape` (default: that of the reads)
    that are written. On a GPU: a device-to-device copy as large as all of them.
    """
    shape = reads[0].shape if shape is None else shape
    total = 4 * math.prod(shape) * (len(reads) + writes)
    if reads and reads[0].is_cuda:
        return copy(total)
    if native_module is None:
        return {}
    addresses = [tensor.data_ptr() for tensor in reads]

    def run():
        outputs = [torch.empty(shape) for _ in range(writes)]
        native_module.stream(addresses, [out.data_ptr() for out in outputs], math.prod(shape))
        return outputs

    return {f"stream of {len(reads)} reads and {writes} writes": Ceiling(run, total)}


def copy(total: int) -> dict[str, Ceiling]:
    """A device-to-device copy of `total` bytes, half of them read and half written."""
    source = torch.zeros(total // 2, dtype=torch.int8, device="cuda")
    return {"device-to-device copy": Ceiling(source.clone, total)}


def micro_kernel(flops: int, depth: int, device: str) -> dict[str, Ceiling]:
    """As many operations in the matrix micro-kernel alone, on operands that stay in the caches."""
    if device != "cpu" or native_module is None:
        return {}
    tiles = native_module.TileRate(depth)
    items = math.ceil(flops / tiles.flops)
    return {"matrix micro-kernel": Ceiling(lambda: tiles.run(items), items * tiles.flops)}
