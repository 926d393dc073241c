"""Networks between a backbone and a loss."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genssl_fast._checks import check_count

__all__ = ["MLPHead", "Prototypes"]


class MLPHead(nn.Sequential):
    """A perceptron with batch normalization: projection heads and predictors.

    Arguments:
        features: Of the input [B, features].
        hidden: Width of the hidden layers.
        out: Of the output [B, out].
        layers: Linear layers.
        last_norm: Whether the output is normalized over the batch, too, without a scale of its own.

    Example:
        >>> MLPHead(256, 512, 128)(torch.randn(8, 256)).shape
        torch.Size([8, 128])
    """

    def __init__(self, features: int, hidden: int, out: int, *, layers: int = 2, last_norm: bool = False):
        for name, value in (("features", features), ("hidden", hidden), ("out", out), ("layers", layers)):
            check_count(name, value, 1)
        widths = [features, *[hidden] * (layers - 1)]
        modules = []
        for before, after in itertools.pairwise(widths):
            # Batch normalization takes the mean off: a bias before it would do nothing.
            modules += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        modules.append(nn.Linear(widths[-1], out, bias=not last_norm))
        if last_norm:
            modules.append(nn.BatchNorm1d(out, affine=False))
        super().__init__(*modules)


class Prototypes(nn.Module):
    """Cosines between embeddings and learned directions of unit norm.

    Arguments:
        features: D.
        count: K.

    Example:
        >>> prototypes = Prototypes(32, 100)
        >>> prototypes(torch.randn(4, 32)).abs().max() <= 1
        tensor(True)
    """

    def __init__(self, features: int, count: int):
        super().__init__()
        check_count("count", count, 2)
        self.weight = nn.Parameter(F.normalize(torch.randn(count, features), dim=1))

    def forward(self, z: Tensor, *, frozen: bool = False) -> Tensor:
        """Cosines [B, K] of embeddings [B, D]; frozen prototypes get no gradient."""
        return F.linear(F.normalize(z, dim=1), self.weight.detach() if frozen else self.weight)

    @torch.no_grad()
    def normalize_(self) -> None:
        """Back to unit norm, from which an optimizer's step leads away."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
