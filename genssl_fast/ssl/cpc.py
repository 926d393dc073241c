"""CPC: what comes later in a sequence is foretold from what came before."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check, check_count
from genssl_fast.ops.contrastive import info_nce
from genssl_fast.ssl.method import Method, check_views

__all__ = ["CPC", "stripes"]


class CPC(Method):
    r"""Contrastive predictive coding.

    A backbone makes :math:`z_t` of every element of a sequence, a recurrent network :math:`c_t` of those up
    to t. For every distance k there is a matrix :math:`W_k`, and

    .. math:: -\log \frac{\exp(z_{t+k} \cdot W_k c_t)}{\sum_j \exp(z_j \cdot W_k c_t)}

    is averaged over samples, t and k; j runs over all samples and all elements that are k or later.

    Arguments:
        backbone: From elements of sequences to features, see :class:`Method`.
        context: Width of the recurrent network.
        distances: How far ahead, 1 to so many elements.
        stripe: Of images [B, C, H, W], the height of the stripes, each half over the one before, that make
            them sequences; None for inputs [B, T, ...] that are sequences already.
        features: See :class:`Method`.

    References:
        | Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018)
        | https://arxiv.org/abs/1807.03748

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> model = CPC(ConvBackbone(1, (8, 16)), stripe=4)
        >>> model.training_step([torch.randn(4, 1, 16, 16)]).shape
        torch.Size([])
        >>> model.embed(torch.randn(4, 1, 16, 16)).shape
        torch.Size([4, 128])
    """

    num_views = 1

    def __init__(
        self,
        backbone: nn.Module,
        *,
        context: int = 128,
        distances: int = 3,
        stripe: int | None = None,
        features: int | None = None,
    ):
        super().__init__(backbone, features=features)
        check_count("context", context, 1)
        check_count("distances", distances, 1)
        self.distances, self.stripe = distances, stripe
        self.recurrent = nn.GRU(self.features, context, batch_first=True)
        self.predictors = nn.ModuleList(
            nn.Linear(context, self.features, bias=False) for _ in range(distances)
        )

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        check_views(views, least=1, most=1)
        z, c = self._encode(views[0])
        length = z.shape[1]
        expected = f"sequences of more than {self.distances} elements, the largest distance"
        check(length > self.distances, "views", expected, length)
        self.embeddings = c.mean(1).detach()
        terms = []
        for distance, predictor in enumerate(self.predictors, start=1):
            predicted = predictor(c[:, : length - distance]).flatten(0, 1)
            terms.append(info_nce(predicted, z[:, distance:].flatten(0, 1), 1.0, normalize=False))
        return torch.stack(terms).mean()

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, T, F] of the elements and contexts c [B, T, C]."""
        sequences = x if self.stripe is None else stripes(x, self.stripe)
        z = self.backbone(sequences.flatten(0, 1)).unflatten(0, sequences.shape[:2])
        return z, self.recurrent(z)[0]

    def _features(self, x: Tensor) -> Tensor:
        return self._encode(x)[1].mean(1)


def stripes(x: Tensor, height: int) -> Tensor:
    """Images [B, C, H, W] as sequences [B, T, C, height, W] from top to bottom, each half over the last.

    Example:
        >>> stripes(torch.zeros(2, 1, 16, 16), 4).shape
        torch.Size([2, 7, 1, 4, 16])
    """
    check(x.ndim == 4, "x", "images [B, C, H, W]", list(x.shape))
    fits = height % 2 == 0 and 2 <= height <= x.shape[2]
    check(fits, "stripe", f"an even height of at most {x.shape[2]}", height)
    return x.unfold(2, height, height // 2).permute(0, 2, 1, 4, 3)
