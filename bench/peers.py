"""Modules of peers whose packages import torchvision, which a CPU build of PyTorch cannot load."""

import importlib
import importlib.util
import sys
from types import ModuleType

__all__ = ["import_past_init"]


def import_past_init(name: str, *packages: str) -> ModuleType:
    """The module ``name`` of an installed package, with the ``__init__`` of no package above it run.

    Arguments:
        name: the module, dotted.
        packages: others that the module imports from; empty ones stand in for them.

    Example:
        >>> from bench.peers import import_past_init
        >>> import_past_init("open_clip.loss").ClipLoss.__name__
        'ClipLoss'
    """
    for module in (*packages, name):
        parts = module.split(".")
        for depth in range(1, len(parts) + (module != name)):
            _stand_in(".".join(parts[:depth]))
    return importlib.import_module(name)


def _stand_in(package: str) -> None:
    """Puts an empty package, or module, in the place of one that is not imported yet."""
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    module = ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[package] = module
