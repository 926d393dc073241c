"""What all ways to train a backbone without labels have in common."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check

__all__ = ["Method", "backbone_features", "both_views", "check_views", "encode_views"]


class Method(nn.Module):
    """A backbone, what sits on it in training, and the loss.

    A step of training is::

        loss = method.training_step(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(progress)

    Arguments:
        backbone: Any module from inputs to features [B, F].
        features: F; by default the backbone's attribute `features`.

    Attributes:
        num_views: How many views a step takes; where there can be more, the small ones come after.
        progress: The part of training that is done, in [0, 1], on which schedules depend.
        embeddings: [B, D] of the latest step, detached: what collapses where a method fails.
    """

    num_views = 2

    def __init__(self, backbone: nn.Module, *, features: int | None = None):
        super().__init__()
        self.backbone = backbone
        self.features = backbone_features(backbone, features)
        self.progress = 0.0
        self.embeddings: Tensor | None = None

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        """The loss [] of a batch, given views [B, ...] of its samples."""
        raise NotImplementedError

    def after_step(self, progress: float = 0.0) -> None:
        """What follows the optimizer's step, when a part `progress` of training, in [0, 1], is done."""
        self.progress = progress

    def _project(self, x: Tensor) -> Tensor:
        """Embeddings [B, D] of inputs by the head `projector`, which are the latest of the step."""
        z = self.projector(self.backbone(x))
        self.embeddings = z.detach()
        return z

    def embed(self, x: Tensor) -> Tensor:
        """Features [B, F] of inputs, with the statistics of training and without gradients."""
        return self._evaluated(lambda: self._features(x))

    @torch.no_grad()
    def _evaluated(self, function: Callable[[], Tensor]) -> Tensor:
        """What a function gives in evaluation mode."""
        training = self.training
        self.eval()
        try:
            return function()
        finally:
            self.train(training)

    def _features(self, x: Tensor) -> Tensor:
        return self.backbone(x)


def backbone_features(backbone: nn.Module, features: int | None) -> int:
    """How many features a backbone has: what is said, or else its attribute."""
    found = getattr(backbone, "features", None) if features is None else features
    is_count = isinstance(found, int) and not isinstance(found, bool) and found >= 1
    expected = "how many features the backbone gives, as an argument or as its attribute"
    check(is_count, "features", expected, found)
    return found


def both_views(views: Sequence[Tensor]) -> Tensor:
    """Two views as one batch [2 B, ...], the first before the second."""
    check_views(views)
    return torch.cat(list(views))


def encode_views(backbone: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Features of all views, one after the other; neighbours of one size go through together."""
    groups = itertools.groupby(views, key=lambda view: view.shape[1:])
    return torch.cat([backbone(torch.cat(list(group))) for _, group in groups])


def check_views(views: Sequence[Tensor], *, least: int = 2, most: int | None = 2) -> None:
    """Views of one batch: at least so many, of one length, which is not 0."""
    expected = f"{least} views" if most == least else f"at least {least} views"
    fits = len(views) >= least and (most is None or len(views) <= most)
    check(fits, "views", f"{expected} [B, ...]", f"{len(views)}")
    lengths = [len(view) for view in views]
    check(len(set(lengths)) == 1, "views", "batches of one length", lengths)
    check(lengths[0] >= 1, "views", "at least one sample", lengths)
