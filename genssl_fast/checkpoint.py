"""Checkpoints: safetensors files that carry their configuration as JSON in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from genssl_fast._files import replacing

__all__ = ["Checkpoint", "CheckpointError", "load_checkpoint", "save_checkpoint"]

FORMAT = "genssl_fast"
VERSION = 1


class CheckpointError(ValueError):
    """A file that is no checkpoint of this library, or not a whole one."""


class Checkpoint(NamedTuple):
    """Tensors by name, and the configuration they were saved with."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes a checkpoint; an interrupted call leaves the file that was there before.

    Arguments:
        path: The file to write or replace. Its folder is created if need be.
        tensors: Tensors by name.
        config: What JSON can hold.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_checkpoint(path, {"weight": torch.ones(2)}, {"kind": "example"})
        >>> load_checkpoint(path).config
        {'kind': 'example'}
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT, "version": str(VERSION), "config": json.dumps(config)}
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata
    )
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_checkpoint(path: str | Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint.

    Arguments:
        path: A file written by :func:`save_checkpoint`.
        device: Where the tensors go.

    Raises:
        CheckpointError: If the file is missing, truncated, or not a checkpoint of this library.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise CheckpointError(f"checkpoint: expected a safetensors file, got {path} ({what})")
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            config = _config(path, file.metadata() or {})
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, config)  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"checkpoint: expected a whole safetensors file, got {path}, "
            f"which is truncated or something else ({error})"
        ) from error


def _config(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint: expected one written by genssl_fast, got {path}, "
            "a safetensors file without its configuration"
        )
    version = metadata.get("version")
    if version != str(VERSION):
        raise CheckpointError(
            f"checkpoint: expected version {VERSION}, got version {version} in {path}; "
            "use the release of genssl_fast that wrote it"
        )
    try:
        return json.loads(metadata["config"])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"checkpoint: expected a configuration in JSON, got {path} ({error})"
        ) from error
