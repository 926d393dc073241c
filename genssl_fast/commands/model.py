"""The model in a checkpoint, whatever its kind."""

from pathlib import Path

import torch

from genssl_fast.checkpoint import CheckpointError, load_checkpoint
from genssl_fast.flow_model import FlowModel
from genssl_fast.score_model import ScoreModel

__all__ = ["load_model"]

KINDS = {model.KIND: model for model in (ScoreModel, FlowModel)}


def load_model(path: Path, device: torch.device) -> ScoreModel | FlowModel:
    checkpoint = load_checkpoint(path)
    kind = checkpoint.config.get("kind")
    if kind not in KINDS:
        raise CheckpointError(f"checkpoint: expected a {' or '.join(KINDS)}, got {kind!r} in {path}")
    return KINDS[kind].from_checkpoint(checkpoint, path).to(device).eval()
