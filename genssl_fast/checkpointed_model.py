"""Models that are saved together with the configuration that defines them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from genssl_fast.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint

__all__ = ["CheckpointedModel"]


class CheckpointedModel(nn.Module):
    """A model that a dataclass of options defines, apart from its weights.

    Subclasses name their `KIND`, which checkpoints carry, and their `CONFIG`, the dataclass; `_saved` where
    only a part has weights worth keeping.

    Arguments:
        config: What defines the model apart from its weights.
    """

    KIND: ClassVar[str]
    CONFIG: ClassVar[type]

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config

    @property
    def _saved(self) -> nn.Module:
        """The module whose weights a checkpoint holds."""
        return self

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Reads a checkpoint that :meth:`save` or `genssl-fast train` wrote, ready for use.

        Raises:
            CheckpointError: If the file is not a whole checkpoint of this kind of model.
        """
        return cls.from_checkpoint(load_checkpoint(path), path).to(device).eval()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, path: str | Path) -> Self:
        """The model in a checkpoint that was read from `path`, which errors name."""
        kind = checkpoint.config.get("kind")
        if kind != cls.KIND:
            raise CheckpointError(f"checkpoint: expected a {cls.KIND}, got {kind!r} in {path}")
        try:
            model = cls(cls.CONFIG(**checkpoint.config["model"]))
            model._saved.load_state_dict(checkpoint.tensors)
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint: expected weights that fit their configuration, got {path} ({error})"
            ) from error
        return model

    def save(self, path: str | Path, **facts: Any) -> None:
        """Writes weights and configuration; `facts` are kept beside them, such as how it was trained."""
        config = {"kind": self.KIND, "model": asdict(self.config), **facts}
        save_checkpoint(path, self._saved.state_dict(), config)
