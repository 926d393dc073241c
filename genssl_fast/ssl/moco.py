"""MoCo: a query finds its key among those of earlier batches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genssl_fast.ops.contrastive import moco_loss
from genssl_fast.ssl.heads import MLPHead
from genssl_fast.ssl.method import Method, both_views
from genssl_fast.ssl.queue import EmbeddingQueue
from genssl_fast.ssl.teacher import Teacher

__all__ = ["MoCo"]


class MoCo(Method):
    """A query of one view, its key of the other by an averaged encoder, and a queue of older keys.

    Each view is the query once. Keys enter the queue after the optimizer's step.

    Arguments:
        backbone: See :class:`Method`.
        hidden: Width of the projection head.
        out: D, of queries and keys.
        queue_size: K, at least the keys of a batch, two for each sample.
        decay: Of the averaged weights.
        temperature: Of the softmax.
        features: See :class:`Method`.

    References:
        | Momentum Contrast for Unsupervised Visual Representation Learning (He et al., 2020)
        | https://arxiv.org/abs/1911.05722

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> model = MoCo(ConvBackbone(1, (8, 16)), queue_size=32)
        >>> model.training_step([torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16)]).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        hidden: int = 256,
        out: int = 128,
        queue_size: int = 4096,
        decay: float = 0.99,
        temperature: float = 0.2,
        features: int | None = None,
    ):
        super().__init__(backbone, features=features)
        self.temperature = temperature
        self.projector = MLPHead(self.features, hidden, out)
        self.teacher = Teacher(self.backbone, self.projector, decay=decay, final_decay=decay)
        self.queue = EmbeddingQueue(queue_size, out)
        self._keys: Tensor | None = None

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        both = both_views(views)
        self.queue.check_fits(len(both))
        query, self._keys = self._project(both), self.teacher(both)
        swapped = torch.cat(self._keys.chunk(2)[::-1])
        rows = self.queue.rows  # in fp32 under autocast, too
        return moco_loss(query.to(rows.dtype), swapped.to(rows.dtype), rows, self.temperature)

    def after_step(self, progress: float = 0.0) -> None:
        super().after_step(progress)
        self.teacher.update(self.backbone, self.projector, progress=progress)
        if self._keys is not None:
            self.queue.push(self._keys)
            self._keys = None
