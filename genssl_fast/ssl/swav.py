"""SwAV: the prototypes of one view are foretold from another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check
from genssl_fast.ops.sinkhorn import sinkhorn
from genssl_fast.ssl.heads import MLPHead, Prototypes
from genssl_fast.ssl.method import Method, check_views, encode_views

__all__ = ["SwAV"]


class SwAV(Method):
    """Assignments of global views to prototypes, balanced by Sinkhorn, foretold from all other views.

    Arguments:
        backbone: See :class:`Method`; it must take small views as well.
        hidden: Width of the projection head.
        out: D, of the embeddings.
        prototypes: K.
        temperature: Of the softmax that foretells.
        epsilon: Of Sinkhorn: the lower, the harder the assignments.
        iterations: Of Sinkhorn.
        frozen: The part of training, from its begin, in which prototypes stay as they are.
        last_norm: Whether embeddings are normalized over the batch, so that they cannot become one point
            before views agree on anything.
        features: See :class:`Method`.

    References:
        | Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (Caron et al., 2020)
        | https://arxiv.org/abs/2006.09882

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> model = SwAV(ConvBackbone(1, (8, 16)), prototypes=10)
        >>> views = [torch.randn(4, 1, size, size) for size in (16, 16, 8)]  # two global views first
        >>> model.training_step(views).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        hidden: int = 256,
        out: int = 128,
        prototypes: int = 100,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        frozen: float = 0.0,
        last_norm: bool = False,
        features: int | None = None,
    ):
        super().__init__(backbone, features=features)
        check(temperature > 0, "temperature", "a positive number", temperature)
        check(0 <= frozen <= 1, "frozen", "a number in [0, 1]", frozen)
        self.temperature, self.epsilon, self.iterations, self.frozen = (
            temperature,
            epsilon,
            iterations,
            frozen,
        )
        self.projector = MLPHead(self.features, hidden, out, last_norm=last_norm)
        self.prototypes = Prototypes(out, prototypes)

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        check_views(views, most=None)
        z = self.projector(encode_views(self.backbone, views))
        self.embeddings = z[: 2 * len(views[0])].detach()
        scores = self.prototypes(z, frozen=self.progress < self.frozen).chunk(len(views))
        log_probs = [(score / self.temperature).log_softmax(1) for score in scores]
        terms = []
        for number in range(2):
            assignments = self._assign(scores[number])
            terms += [
                -(assignments * log_prob).sum(1).mean()
                for other, log_prob in enumerate(log_probs)
                if other != number
            ]
        return torch.stack(terms).mean()

    @torch.no_grad()
    def _assign(self, scores: Tensor) -> Tensor:
        """Q [B, K] whose rows are distributions, and whose columns share the batch evenly."""
        return sinkhorn(scores, epsilon=self.epsilon, iterations=self.iterations)

    def after_step(self, progress: float = 0.0) -> None:
        super().after_step(progress)
        self.prototypes.normalize_()
