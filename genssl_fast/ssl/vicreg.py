"""VICReg: views agree, every entry varies, and entries are uncorrelated."""

from collections.abc import Sequence

from torch import Tensor, nn

from genssl_fast.ops.decorrelation import vicreg
from genssl_fast.ssl.heads import MLPHead
from genssl_fast.ssl.method import Method, both_views

__all__ = ["VICReg"]


class VICReg(Method):
    """A wide head, and the loss of variance, invariance and covariance.

    Arguments:
        backbone: See :class:`Method`.
        hidden: Width of the head.
        out: D, of the embeddings.
        features: See :class:`Method`.

    References:
        | VICReg: Variance-Invariance-Covariance Regularization (Bardes et al., 2022)
        | https://arxiv.org/abs/2105.04906

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> model = VICReg(ConvBackbone(1, (8, 16)))
        >>> model.training_step([torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16)]).shape
        torch.Size([])
    """

    def __init__(
        self, backbone: nn.Module, *, hidden: int = 512, out: int = 512, features: int | None = None
    ):
        super().__init__(backbone, features=features)
        self.projector = MLPHead(self.features, hidden, out)

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        z = self._project(both_views(views))
        return vicreg(*z.chunk(2))
