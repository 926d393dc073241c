"""CLIP: images and texts that belong together have embeddings that do."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genssl_fast._checks import check_choice
from genssl_fast.ops.contrastive import clip_loss, siglip_loss
from genssl_fast.ssl.method import Method, backbone_features, check_views

__all__ = ["CLIP"]

LARGEST_SCALE = 100.0


class CLIP(Method):
    """Two backbones with linear projections to one space, trained on pairs.

    Arguments:
        backbone: Of images, or whatever comes first in a pair; see :class:`Method`.
        text_backbone: Of what comes second.
        out: D, of the embeddings.
        loss: `"softmax"`, as in CLIP, or `"sigmoid"`, as in SigLIP.
        features: Of `backbone`, see :class:`Method`.
        text_features: Of `text_backbone`.

    Attributes:
        log_scale: The logarithm of the factor of the cosines, learned and kept at log 100 at most.
        bias: What is added to them; None for softmax, which it would not change.

    References:
        | Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021)
        | https://arxiv.org/abs/2103.00020
        | Sigmoid Loss for Language Image Pre-Training (Zhai et al., 2023), https://arxiv.org/abs/2303.15343

    Example:
        >>> images, texts = torch.nn.Linear(6, 8), torch.nn.EmbeddingBag(100, 8)
        >>> model = CLIP(images, texts, features=8, text_features=8)
        >>> model.training_step([torch.randn(4, 6), torch.randint(100, (4, 5))]).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        *,
        out: int = 128,
        loss: str = "softmax",
        features: int | None = None,
        text_features: int | None = None,
    ):
        super().__init__(backbone, features=features)
        check_choice("loss", loss, ("softmax", "sigmoid"))
        self.text_backbone = text_backbone
        self.projection = nn.Linear(self.features, out, bias=False)
        self.text_projection = nn.Linear(backbone_features(text_backbone, text_features), out, bias=False)
        scale = 10.0 if loss == "sigmoid" else 1 / 0.07
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if loss == "sigmoid" else None

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        """The loss [] of pairs: what the first backbone takes, and what the second does."""
        check_views(views)
        image = F.normalize(self.projection(self.backbone(views[0])), dim=1)
        text = F.normalize(self.text_projection(self.text_backbone(views[1])), dim=1)
        self.embeddings = image.detach()
        if self.bias is None:
            return clip_loss(image, text, self.log_scale.exp())
        return siglip_loss(image, text, self.log_scale.exp(), self.bias)

    @torch.no_grad()
    def after_step(self, progress: float = 0.0) -> None:
        super().after_step(progress)
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    def embed_pairs(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, D] of unit norm in the common space, of both sides."""
        image = self._evaluated(lambda: self.projection(self.backbone(x)))
        other = self._evaluated(lambda: self.text_projection(self.text_backbone(text)))
        return F.normalize(image, dim=1), F.normalize(other, dim=1)
