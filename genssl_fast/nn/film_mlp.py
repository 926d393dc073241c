"""A residual MLP that is told the time by FiLM."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check, check_choice
from genssl_fast.ops.score import CONVENTIONS, FilmMLPWeights, film_mlp

__all__ = ["FilmMLP"]


class FilmMLP(nn.Module):
    """Score network for vectors or small images: :func:`genssl_fast.film_mlp` with its weights.

    The last layer starts at zero, so that an untrained network outputs zero: the best constant guess
    of noise, and a start from which every parameterisation trains stably. The other matrices start
    with variance 1 / fan-in, which keeps the size of activations; biases start at zero.

    Arguments:
        dim: length of a sample; give it, or ``shape``.
        shape: shape of a sample, as (1, 8, 8), flattened inside.
        hidden: width of the residual blocks.
        blocks: number of residual blocks.
        embed: width of the embedding that all blocks read; ``hidden`` by default.
        time_dim: length of the time embedding; ``hidden`` by default.
        num_classes: number of labels, for class-conditional models.
        convention: of :func:`genssl_fast.time_embedding`.
        time_scale: what times are multiplied by before they are embedded, as 1000 for [0, 1].

    Raises:
        ValueError: a width that is not positive, an unknown convention, both or none of dim and
            shape.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, https://arxiv.org/abs/2006.11239;
        Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer,
        https://arxiv.org/abs/1709.07871

    Example:
        >>> network = genssl_fast.nn.FilmMLP(shape=(1, 8, 8), hidden=64, num_classes=10)
        >>> network(torch.randn(5, 1, 8, 8), torch.rand(5), torch.arange(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        shape: Sequence[int] | None = None,
        hidden: int = 128,
        blocks: int = 3,
        embed: int | None = None,
        time_dim: int | None = None,
        num_classes: int | None = None,
        convention: str = "dit",
        time_scale: float = 1.0,
    ):
        super().__init__()
        check((dim is None) != (shape is None), "dim, shape", "exactly one of them", (dim, shape))
        check_choice("convention", convention, CONVENTIONS)
        self.shape = (dim,) if shape is None else tuple(shape)
        embed = hidden if embed is None else embed
        time_dim = hidden if time_dim is None else time_dim
        sizes = {"hidden": hidden, "blocks": blocks, "embed": embed, "time_dim": time_dim}
        for name, size in {**sizes, "dim, shape": min(self.shape, default=0)}.items():
            check(size >= 1, name, "at least 1", size)
        check(
            num_classes is None or num_classes >= 1,
            "num_classes",
            "at least 1 or None",
            num_classes,
        )
        self.convention, self.time_scale = convention, float(time_scale)
        dim = math.prod(self.shape)
        self.w_in = nn.Parameter(torch.empty(hidden, dim))
        self.b_in = nn.Parameter(torch.empty(hidden))
        self.w = nn.Parameter(torch.empty(blocks, hidden, hidden))
        self.c = nn.Parameter(torch.empty(blocks, hidden))
        self.w_film = nn.Parameter(torch.empty(blocks, 2 * hidden, embed))
        self.w_embed1 = nn.Parameter(torch.empty(embed, time_dim))
        self.w_embed2 = nn.Parameter(torch.empty(embed, embed))
        self.w_out = nn.Parameter(torch.empty(dim, hidden))
        self.b_out = nn.Parameter(torch.empty(dim))
        classes = None if num_classes is None else nn.Parameter(torch.empty(num_classes, embed))
        self.register_parameter("class_embedding", classes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the weights anew from PyTorch's default generator."""
        for parameter in self.parameters():
            parameter.zero_()
        for matrix in (self.w_in, self.w, self.w_film, self.w_embed1, self.w_embed2):
            matrix.normal_(std=matrix.shape[-1] ** -0.5)
        if self.class_embedding is not None:
            self.class_embedding.normal_(std=0.5)  # about the size of the embedding of the time

    def weights(self) -> FilmMLPWeights:
        """The parameters as :func:`genssl_fast.film_mlp` takes them."""
        return FilmMLPWeights(*(getattr(self, name) for name in FilmMLPWeights._fields))

    def forward(self, x: Tensor, t: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """Output like ``x`` [B, *shape] at times ``t``, one or [B], with int64 labels [B]."""
        check(tuple(x.shape[1:]) == self.shape, "x", f"shape [B, *{list(self.shape)}]", list(x.shape))
        time = t * self.time_scale
        y = film_mlp(x.flatten(1), time, self.weights(), labels=labels, convention=self.convention)
        return y.view(x.shape)

    def extra_repr(self) -> str:
        blocks, hidden, embed = self.w_film.shape[0], self.w_in.shape[0], self.w_film.shape[2]
        parts = f"shape={self.shape}, hidden={hidden}, blocks={blocks}, embed={embed}"
        parts += f", time_dim={self.w_embed1.shape[1]}"
        if self.class_embedding is not None:
            parts += f", num_classes={self.class_embedding.shape[0]}"
        return f"{parts}, convention={self.convention!r}, time_scale={self.time_scale}"
