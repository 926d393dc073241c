"""Vector quantisation with a codebook kept by moving averages."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from genssl_fast._checks import check, check_count, check_dtype, check_shape
from genssl_fast.ops.nearest_code import code_sums, nearest_code
from genssl_fast.ops.random import random_uniform

__all__ = ["Quantized", "VectorQuantizer"]


class Quantized(NamedTuple):
    """What :class:`VectorQuantizer` returns, in the order of vector-quantize-pytorch."""

    quantized: Tensor
    indices: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    r"""Replaces every vector by its nearest code; gradients pass straight through.

    In training the codebook follows its rows: counts :math:`n_k` and sums :math:`s_k` of every batch enter
    moving averages, and the codes become

    .. math::
        c_k = \bar{s}_k / \tilde{n}_k, \qquad
        \tilde{n}_k = \frac{\bar{n}_k + \epsilon}{\sum_j \bar{n}_j + K \epsilon} \sum_j \bar{n}_j

    after the batch has been quantised. The buffers ``embed``, ``cluster_size`` and ``embed_avg`` hold
    codes and averages, as in vector-quantize-pytorch.

    Arguments:
        dim: D of x [..., D].
        codebook_size: K.
        decay: of the moving averages; 0.99 in the paper.
        epsilon: Laplace smoothing of the counts.
        commitment_weight: β of the loss.
        cosine: rows and codes are scaled to unit length first, and quantised vectors have unit length.
        dead_code_threshold: after an update, a code whose average count is below it is replaced by
            a row of the batch, drawn at random; 0 replaces none.

    Raises:
        ValueError, TypeError: an argument out of range; the message names it.

    References:
        van den Oord et al., Neural Discrete Representation Learning, https://arxiv.org/abs/1711.00937,
        appendix A.1; https://github.com/lucidrains/vector-quantize-pytorch

    Example:
        >>> quantizer = genssl_fast.nn.VectorQuantizer(8, 16)
        >>> quantized, indices, loss = quantizer(torch.randn(2, 5, 8))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 5]), torch.Size([]))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        decay: float = 0.8,
        epsilon: float = 1e-5,
        commitment_weight: float = 1.0,
        cosine: bool = False,
        dead_code_threshold: float = 0.0,
    ):
        super().__init__()
        check_count("dim", dim, 1)
        check_count("codebook_size", codebook_size, 1)
        check(0 <= decay <= 1, "decay", "a number from 0 to 1", decay)
        check(epsilon >= 0, "epsilon", "at least 0", epsilon)
        check(commitment_weight >= 0, "commitment_weight", "at least 0", commitment_weight)
        check(dead_code_threshold >= 0, "dead_code_threshold", "at least 0", dead_code_threshold)
        self.decay, self.epsilon, self.commitment_weight = decay, epsilon, commitment_weight
        self.cosine, self.dead_code_threshold = cosine, dead_code_threshold
        codes = nn.init.kaiming_uniform_(torch.empty(codebook_size, dim))
        self.register_buffer("embed", normalize(codes, dim=-1) if cosine else codes)
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("embed_avg", self.embed.clone())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Codes for x [..., D]; where ``mask`` [...] is False, zeros of index −1 that count nowhere.

        Returns:
            quantized: like ``x``, its gradient with respect to ``x`` the identity.
            indices: int64 [...].
            loss: β times the mean of (x − code)² in training, which pulls ``x`` to its code; 0 otherwise.
        """
        rows, kept = self._rows(x, mask)
        codebook = self.embed.clone() if self.training else self.embed  # the update is in place
        indices, distances, _, _ = nearest_code(rows, codebook)
        codes = codebook[indices]
        if kept is not None:
            codes, indices = torch.where(kept[:, None], codes, 0), torch.where(kept, indices, -1)
            distances = torch.where(kept, distances, 0)
        loss = distances.new_zeros(())
        if self.training:
            count = rows.numel() if kept is None else kept.sum() * rows.shape[1]
            loss = self.commitment_weight * distances.sum() / count
            self.update(rows.detach(), indices)
        quantized = rows + (codes - rows).detach() if self.training else codes
        return Quantized(quantized.to(x.dtype).reshape(x.shape), indices.reshape(x.shape[:-1]), loss)

    @torch.no_grad()
    def update(self, rows: Tensor, indices: Tensor) -> None:
        """One step of the moving averages with rows [N, D] and their codes [N], and the codes after it."""
        counts, sums = code_sums(rows, indices, len(self.embed))
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.embed_avg.lerp_(sums, 1 - self.decay)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.epsilon) / (total + len(self.embed) * self.epsilon) * total
        codes = self.embed_avg / smoothed[:, None]
        self.embed.copy_(normalize(codes, dim=-1) if self.cosine else codes)
        if self.dead_code_threshold > 0 and len(rows):
            self._replace_dead_codes(rows, indices >= 0)

    def _rows(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x as rows [N, D] in the type of the codes, zeros where they are masked; and the mask [N]."""
        check_dtype("x", x)
        dim = self.embed.shape[1]
        check(x.ndim >= 1 and x.shape[-1] == dim, "x", f"shape [..., {dim}]", list(x.shape))
        rows = x.reshape(-1, dim).to(self.embed.dtype)
        if mask is not None:
            check_dtype("mask", mask, (torch.bool,))
            check_shape("mask", mask, x.shape[:-1], "that of x without its last dimension")
            mask = mask.reshape(-1)
            rows = torch.where(mask[:, None], rows, 0)
        return (normalize(rows, dim=-1) if self.cosine else rows), mask

    def _replace_dead_codes(self, rows: Tensor, kept: Tensor) -> None:
        """The d-th dead code becomes the d-th of the rows in a random order, masked ones last."""
        arrival = random_uniform((len(rows),), device=rows.device)
        order = torch.where(kept, arrival, 2).argsort()
        is_dead = (self.cluster_size < self.dead_code_threshold) & kept.any()
        rank = (is_dead.cumsum(0) - 1).clamp(min=0) % kept.sum().clamp(min=1)
        fresh = rows[order[rank]]
        self.embed.copy_(torch.where(is_dead[:, None], fresh, self.embed))
        self.embed_avg.copy_(torch.where(is_dead[:, None], fresh * self.dead_code_threshold, self.embed_avg))
        self.cluster_size.masked_fill_(is_dead, self.dead_code_threshold)

    def extra_repr(self) -> str:
        size, dim = self.embed.shape
        return f"dim={dim}, codebook_size={size}, decay={self.decay}, cosine={self.cosine}"
