"""BYOL: a predictor foretells what an averaged network makes of another view."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genssl_fast.ssl.heads import MLPHead
from genssl_fast.ssl.method import Method, both_views
from genssl_fast.ssl.teacher import Teacher

__all__ = ["BYOL"]


class BYOL(Method):
    r"""A predictor of the averaged network's embedding of the other view, without negatives.

    .. math:: 2 - 2 \cos(p_1, z'_2) + 2 - 2 \cos(p_2, z'_1)

    with no gradient through z', the averaged network's. Without the predictor it collapses.

    Arguments:
        backbone: See :class:`Method`.
        hidden: Width of the projection head and of the predictor.
        out: D, of the embeddings.
        decay: Of the averaged weights at the beginning; it rises to 1 along half a cosine.
        last_norm: Whether embeddings are normalized over the batch, so that they cannot become one point
            before views agree on anything.
        features: See :class:`Method`.

    References:
        | Bootstrap your own latent (Grill et al., 2020)
        | https://arxiv.org/abs/2006.07733

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> model = BYOL(ConvBackbone(1, (8, 16)))
        >>> model.training_step([torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16)]).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        hidden: int = 256,
        out: int = 128,
        decay: float = 0.99,
        last_norm: bool = False,
        features: int | None = None,
    ):
        super().__init__(backbone, features=features)
        self.projector = MLPHead(self.features, hidden, out, last_norm=last_norm)
        self.predictor = MLPHead(out, hidden, out)
        self.teacher = Teacher(self.backbone, self.projector, decay=decay)

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        both = both_views(views)
        z = self._project(both)
        first, second = self.teacher(both).chunk(2)
        cosines = F.cosine_similarity(self.predictor(z), torch.cat([second, first]))
        return 2 * (2 - 2 * cosines.mean())

    def after_step(self, progress: float = 0.0) -> None:
        super().after_step(progress)
        self.teacher.update(self.backbone, self.projector, progress=progress)
