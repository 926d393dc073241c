"""SimCLR: views of one sample attract, views of different samples repel."""

from collections.abc import Sequence

from torch import Tensor, nn

from genssl_fast.ops.contrastive import nt_xent
from genssl_fast.ssl.heads import MLPHead
from genssl_fast.ssl.method import Method, both_views

__all__ = ["SimCLR"]


class SimCLR(Method):
    """A projection head and the NT-Xent loss of two views.

    Arguments:
        backbone: See :class:`Method`.
        hidden: Width of the projection head.
        out: D, of the embeddings.
        temperature: Of the softmax.
        epsilon: Weight of the positive in the denominator; 0 is the decoupled loss.
        features: See :class:`Method`.

    References:
        | A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020)
        | https://arxiv.org/abs/2002.05709

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> model = SimCLR(ConvBackbone(1, (8, 16)))
        >>> model.training_step([torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16)]).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        hidden: int = 256,
        out: int = 128,
        temperature: float = 0.2,
        epsilon: float = 1.0,
        features: int | None = None,
    ):
        super().__init__(backbone, features=features)
        self.temperature, self.epsilon = temperature, epsilon
        self.projector = MLPHead(self.features, hidden, out)

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        z = self._project(both_views(views))
        return nt_xent(*z.chunk(2), self.temperature, epsilon=self.epsilon)
