"""The dispatcher library: schemas, fakes and implementations of every operation.

An operation is defined once, in ``genssl_fast.ops``, with its reference from ``genssl_fast.reference``.
The compiled libraries register kernels for the CPU and CUDA keys; what they lack runs the reference.
"""

import ctypes
import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = [
    "define",
    "implement_triton",
    "implementations",
    "instruction_set",
    "native_module",
]

PACKAGE = Path(__file__).parent
LIBRARY = torch.library.Library("genssl_fast", "DEF")
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")

_python_kernels: dict[tuple[str, str], str] = {}
_operations: list[str] = []
_left_to_pytorch: set[str] = set()


def _check_requested_isa() -> None:
    wanted = os.environ.get("GENSSL_ISA")
    if wanted is not None and wanted not in INSTRUCTION_SETS:
        raise ValueError(f"GENSSL_ISA: expected one of {', '.join(INSTRUCTION_SETS)}, got {wanted!r}")


def _load_compiled() -> None:
    """Loads the compiled libraries that exist; loading starts no CUDA context."""
    for name in ("_cpu.so", "_cuda.so"):
        if (PACKAGE / name).is_file():
            torch.ops.load_library(PACKAGE / name)


def _load_native():
    try:
        module = importlib.import_module("genssl_fast._native")
    except ImportError:
        return None
    libtorch = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    module.set_parallel_for(ctypes.cast(libtorch.torch_parallel_for, ctypes.c_void_p).value)
    return module


_check_requested_isa()
_load_compiled()
native_module = _load_native()


def instruction_set() -> str | None:
    """The instruction set of the CPU kernels in use; None where they are not built."""
    return native_module.isa() if native_module else None


def define(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    tags=(torch.Tag.pt2_compliant_tag,),
    has_kernels: bool = True,
) -> Callable:
    """Defines a private operation and returns its overload.

    Arguments:
        schema: as for ``torch.library``; the name starts with an underscore.
        reference: runs wherever no kernel is registered.
        fake: shapes and dtypes of the outputs.
        has_kernels: False where PyTorch's own are all that it needs, and the reference is what runs.
    """
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=tags)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"genssl_fast::{name}", fake, lib=LIBRARY)
    _operations.append(name)
    if not has_kernels:
        _left_to_pytorch.add(name)
    return getattr(torch.ops.genssl_fast, name).default


def implement_triton(name: str, module: str, function: str) -> None:
    """Registers ``genssl_fast.kernels.<module>.<function>`` for CUDA; it is imported at the first call."""
    if importlib.util.find_spec("triton") is None:
        return

    def launch(*args):
        return getattr(importlib.import_module(f"genssl_fast.kernels.{module}"), function)(*args)

    LIBRARY.impl(name, launch, "CUDA")
    _python_kernels[name, "CUDA"] = "Triton"


def implementations() -> dict[str, dict[str, str]]:
    """For every public operation, which implementation runs on each device.

    `"reference"` is one that lacks its kernel, `"PyTorch"` one that needs none.

    Example:
        >>> import genssl_fast
        >>> sorted(genssl_fast._library.implementations()["random"])
        ['CPU', 'CUDA']
    """
    return {
        name.strip("_"): {device: _implementation(name, device) for device in ("CPU", "CUDA")}
        for name in _operations
    }


def _implementation(name: str, device: str) -> str:
    if name in _left_to_pytorch:
        return "PyTorch"
    if (name, device) in _python_kernels:
        return _python_kernels[name, device]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    if has_kernel(f"genssl_fast::{name}", device):
        return f"C++ ({instruction_set()})" if device == "CPU" else "CUDA C++"
    return "reference"
