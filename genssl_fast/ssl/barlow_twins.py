"""Barlow Twins: entries of the embedding agree between views and are uncorrelated with each other."""

from collections.abc import Sequence

from torch import Tensor, nn

from genssl_fast.ops.decorrelation import barlow_twins
from genssl_fast.ssl.heads import MLPHead
from genssl_fast.ssl.method import Method, both_views

__all__ = ["BarlowTwins"]


class BarlowTwins(Method):
    """A wide head, and the cross-correlation of two views' embeddings made the identity.

    Arguments:
        backbone: See :class:`Method`.
        hidden: Width of the head.
        out: D, of the embeddings.
        weight: Of the correlations between different entries.
        features: See :class:`Method`.

    References:
        | Barlow Twins: Self-Supervised Learning via Redundancy Reduction (Zbontar et al., 2021)
        | https://arxiv.org/abs/2103.03230

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> model = BarlowTwins(ConvBackbone(1, (8, 16)))
        >>> model.training_step([torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16)]).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        hidden: int = 512,
        out: int = 512,
        weight: float = 5e-3,
        features: int | None = None,
    ):
        super().__init__(backbone, features=features)
        self.weight = weight
        self.projector = MLPHead(self.features, hidden, out)

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        z = self._project(both_views(views))
        return barlow_twins(*z.chunk(2), weight=self.weight)
