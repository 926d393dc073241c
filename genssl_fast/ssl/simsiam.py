"""SimSiam: a predictor foretells the same network's embedding of another view."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genssl_fast.ssl.heads import MLPHead
from genssl_fast.ssl.method import Method, both_views

__all__ = ["SimSiam"]


class SimSiam(Method):
    r"""A predictor of the other view's embedding, through which no gradient goes.

    .. math:: -\tfrac12 \cos(p_1, z_2) - \tfrac12 \cos(p_2, z_1)

    Without stopping the gradient, or without the predictor, it collapses.

    Arguments:
        backbone: See :class:`Method`.
        hidden: Width of the projection head.
        out: D, of the embeddings, which are normalized over the batch.
        bottleneck: Hidden width of the predictor.
        features: See :class:`Method`.

    References:
        | Exploring Simple Siamese Representation Learning (Chen and He, 2021)
        | https://arxiv.org/abs/2011.10566

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> model = SimSiam(ConvBackbone(1, (8, 16)))
        >>> model.training_step([torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16)]).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        hidden: int = 256,
        out: int = 256,
        bottleneck: int = 64,
        features: int | None = None,
    ):
        super().__init__(backbone, features=features)
        self.projector = MLPHead(self.features, hidden, out, last_norm=True)
        self.predictor = MLPHead(out, bottleneck, out)

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        z = self._project(both_views(views))
        first, second = self._target(z).chunk(2)
        return -F.cosine_similarity(self.predictor(z), torch.cat([second, first])).mean()

    def _target(self, z: Tensor) -> Tensor:
        """What the predictor is to foretell: constants."""
        return z.detach()
