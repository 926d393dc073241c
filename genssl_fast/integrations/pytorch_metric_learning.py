"""pytorch-metric-learning's NT-Xent and SupCon on kernels of this library; as in version 2.9.

Same signatures, defaults and conventions, without the matrix of pairs: memory is linear in the rows and in
the number of positive pairs (of SupCon: in the rows alone). Reducers and embedding regularizers are called as
there. Distances are its ``CosineSimilarity`` and ``DotProductSimilarity``; what others measure takes every
pair. pytorch-metric-learning is not imported.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from genssl_fast._checks import check
from genssl_fast.ops.contrast_checks import checked_ids, checked_matrix, checked_number
from genssl_fast.ops.contrastive import products_of_rows, with_positive
from genssl_fast.ops.similarity import gram_logsumexp, pair_logsumexp
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["NTXentLoss", "SupConLoss"]

PRODUCTS_AT_ONCE = 1 << 22


class _PairLoss(nn.Module):
    """What both losses share: distance, reducer, regularizer, and what labels and tuples mean."""

    def __init__(
        self,
        temperature: float | Tensor,
        *,
        distance: nn.Module | None = None,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ):
        super().__init__()
        if collect_stats:
            raise NotImplementedError("collect_stats: statistics of embeddings are not recorded")
        _check_distance(distance)
        self.temperature, self.distance = temperature, distance
        self.embedding_regularizer, self.embedding_reg_weight = embedding_regularizer, embedding_reg_weight
        of_several = _is_a(reducer, "MultipleReducers", "DoNothingReducer")
        self.reducer = reducer if of_several else copy.deepcopy(reducer)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The reduced loss [] of embeddings [N, D].

        Arguments:
            labels: [N], of any dtype; not needed with ``indices_tuple``.
            indices_tuple: pairs (anchors, positives, anchors, negatives) or triplets of a miner.
            ref_emb, ref_labels: what embeddings are compared with [M, D]; by default themselves.
        """
        x, y, labels, ref_labels = self._prepared(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        scale = 1 / checked_number("temperature", self.temperature, embeddings)
        if indices_tuple is None:
            losses, indices = self._of_labels(x, y, scale, _LabelPairs(labels, ref_labels, y is x))
        else:
            pairs = _as_pairs(indices_tuple)
            nothing = all(len(part) <= 1 for part in pairs)
            losses, indices = (None, None) if nothing else self._of_pairs(x, y, scale, *pairs)
        return self._reduced(losses, indices, embeddings, labels)

    def _prepared(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        """Both sides of the pairs in the precision that they are computed in, and their labels."""
        checked_matrix("embeddings", embeddings)
        if labels is None and indices_tuple is None:
            raise ValueError("labels and indices_tuple cannot both be None")
        if labels is not None:
            labels = labels.to(embeddings.device)
            _check_labels("labels", labels, embeddings)
        x = _compared(self.distance, embeddings)
        if ref_emb is None:
            return x, x, labels, labels
        checked_matrix("ref_emb", ref_emb, embeddings, "embeddings")
        ref_labels = labels if ref_labels is None else ref_labels.to(ref_emb.device)
        if ref_labels is not None:
            _check_labels("ref_labels", ref_labels, ref_emb)
        return x, _compared(self.distance, ref_emb), labels, ref_labels

    def _reduced(self, losses: Tensor | None, indices, embeddings: Tensor, labels: Tensor | None):
        """The reducer's result, which is a sum of parts where there is a regularizer."""
        part = {"losses": losses, "indices": indices, "reduction_type": self.reduction_type}
        parts = {"loss": _nothing() if losses is None else part}
        if self.embedding_regularizer is not None:
            found = self.embedding_regularizer(embeddings) * self.embedding_reg_weight
            parts["embedding_reg_loss"] = _nothing() | {"losses": found}
        if _is_a(self.reducer, "MultipleReducers", "DoNothingReducer"):
            return self.reducer(parts, embeddings, labels)
        reduce = self._mean if self.reducer is None else self.reducer
        return sum(reduce({name: part}, embeddings, labels) for name, part in parts.items())

    def _mean(self, parts: dict, embeddings: Tensor, labels) -> Tensor:
        """The default reducer."""
        (part,) = parts.values()
        losses = part["losses"]
        if not isinstance(losses, Tensor):
            return (embeddings * 0).sum()
        return losses if part["reduction_type"] == "already_reduced" else self._mean_of(losses)


class NTXentLoss(_PairLoss):
    """``pytorch_metric_learning.losses.NTXentLoss``: a loss for each positive pair, against negatives alone.

    Each denominator has one positive and the negatives of its anchor; other positives are in none, unlike
    in :func:`genssl_fast.nt_xent`. Losses have no upper bound, where theirs ends at −log of the smallest
    number.

    Arguments:
        temperature: of any sign, not 0.
        distance: a ``CosineSimilarity`` (None) or ``DotProductSimilarity`` of pytorch-metric-learning.
        reducer: one of pytorch-metric-learning; None for the mean. Some, such as ``PerAnchorReducer``, store
            a matrix of pairs themselves.
        embedding_regularizer: called with the embeddings; its result is added to the loss.
        embedding_reg_weight: what it is multiplied by.
        collect_stats: not supported.

    Example:
        >>> from genssl_fast.integrations.pytorch_metric_learning import NTXentLoss
        >>> NTXentLoss(temperature=0.5)(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.0986)
    """

    reduction_type = "pos_pair"

    def __init__(self, temperature: float | Tensor = 0.07, **kwargs):
        super().__init__(temperature, **kwargs)

    def _of_labels(self, x, y, scale, pairs: "_LabelPairs"):
        anchors, positives = pairs.positives()
        negatives = pairs.num_negatives()
        if len(anchors) == 0 or negatives == 0 or (len(anchors) <= 1 and negatives <= 1):
            return None, None
        if y is x:
            log_sum = gram_logsumexp(x, scale, None, pairs.rows)
        else:
            log_sum, _ = pair_logsumexp(x, y, scale, None, None, pairs.rows, pairs.columns, False)
        return self._losses(log_sum, x, y, scale, anchors, positives)

    def _of_pairs(self, x, y, scale, anchors, positives, negative_anchors, negatives):
        if len(anchors) == 0 or len(negative_anchors) == 0:
            return None, None
        logits = scale * _pair_products(x, y, negative_anchors, negatives)
        return self._losses(_logsumexp_by(negative_anchors, logits, len(x)), x, y, scale, anchors, positives)

    def _losses(self, log_sum, x, y, scale, anchors, positives):
        """log(1 + Σ e^(s_an − s_ap)) of each positive pair."""
        logits = scale * _pair_products(x, y, anchors, positives)
        return with_positive(log_sum[anchors] - logits), (anchors, positives)

    @staticmethod
    def _mean_of(losses: Tensor) -> Tensor:
        return losses.mean()


class SupConLoss(_PairLoss):
    """``pytorch_metric_learning.losses.SupConLoss``: each row is to find all of its class.

    By default its mean is over the losses greater than 0, so that rows without positives do not count. See
    :class:`NTXentLoss` for the options.

    Example:
        >>> from genssl_fast.integrations.pytorch_metric_learning import SupConLoss
        >>> SupConLoss(temperature=1.0)(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.0986)
    """

    reduction_type = "element"

    def __init__(self, temperature: float | Tensor = 0.1, **kwargs):
        super().__init__(temperature, **kwargs)

    def _of_labels(self, x, y, scale, pairs: "_LabelPairs"):
        count = pairs.counts()
        negatives = pairs.num_negatives()
        total = int(count.sum())
        if total == 0 or negatives == 0 or (total <= 1 and negatives <= 1):
            return None, None
        if y is x:
            log_sum = gram_logsumexp(x, scale, None, None)
        else:
            apart = checked_ids("ids", None, len(x), x.device) if pairs.same else None
            log_sum, _ = pair_logsumexp(x, y, scale, None, None, apart, apart, False)
        sums = y.new_zeros(pairs.classes, y.shape[1]).index_add(0, pairs.columns.long(), y)[pairs.rows.long()]
        if pairs.same:
            sums = sums - y
        positive = scale * products_of_rows(x, sums) / count.clamp_min(1)
        return torch.where(count > 0, log_sum - positive, 0.0), torch.arange(len(x), device=x.device)

    def _of_pairs(self, x, y, scale, anchors, positives, negative_anchors, negatives):
        anchors, positives = _distinct(anchors, positives, len(y))
        negative_anchors, negatives = _distinct(negative_anchors, negatives, len(y))
        if len(anchors) == 0 or len(negative_anchors) == 0:
            return None, None
        both = torch.cat([anchors, negative_anchors]), torch.cat([positives, negatives])
        disjoint = len(_distinct(*both, len(y))[0]) == len(both[0])
        check(disjoint, "indices_tuple", "each pair either positive or negative", "pairs that are both")
        logits = scale * _pair_products(x, y, *both)
        log_sum = _logsumexp_by(both[0], logits, len(x))
        count = torch.bincount(anchors, minlength=len(x))
        sums = logits.new_zeros(len(x)).index_add(0, anchors, logits[: len(anchors)])
        losses = torch.where(count > 0, log_sum - sums / count.clamp_min(1), 0.0)
        return losses, torch.arange(len(x), device=x.device)

    @staticmethod
    def _mean_of(losses: Tensor) -> Tensor:
        """Of those greater than 0."""
        counted = losses > 0
        return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp_min(1)


class _LabelPairs:
    """Pairs of rows [N] and columns [M] by their labels, in vectors alone.

    ``same`` says that row i and column i are no pair, as pytorch-metric-learning has it where both have the
    very same labels.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, itself: bool):
        self.same = itself or ref_labels is labels
        either = labels if self.same else torch.cat([labels, ref_labels])
        known, numbers = either.unique(return_inverse=True)
        self.classes, numbers = len(known), numbers.to(torch.int32)
        self.rows = numbers[: len(labels)].contiguous()
        self.columns = self.rows if self.same else numbers[len(labels) :].contiguous()
        self.order = self.columns.argsort(stable=True)
        ordered = self.columns[self.order]
        self.begin = torch.searchsorted(ordered, self.rows)
        self.in_class = torch.searchsorted(ordered, self.rows, right=True) - self.begin

    def counts(self) -> Tensor:
        """Number of positives of each row."""
        return self.in_class - 1 if self.same else self.in_class

    def num_negatives(self) -> int:
        """Number of pairs of different classes."""
        return len(self.rows) * len(self.columns) - int(self.in_class.sum())

    def positives(self) -> tuple[Tensor, Tensor]:
        """Anchors and positives, in the order of the matrix of pairs."""
        rows = torch.arange(len(self.rows), device=self.rows.device)
        anchors = rows.repeat_interleave(self.in_class)
        first = (self.in_class.cumsum(0) - self.in_class)[anchors]
        within = torch.arange(len(anchors), device=rows.device) - first
        positives = self.order[self.begin[anchors] + within]
        if not self.same:
            return anchors, positives
        apart = anchors != positives
        return anchors[apart], positives[apart]


def _check_distance(distance) -> None:
    if distance is None:
        return
    if not _is_a(distance, "DotProductSimilarity") or distance.power != 1:
        raise NotImplementedError(
            f"distance: expected CosineSimilarity or DotProductSimilarity of power 1, got {distance}: others "
            "take the N×N matrix of pairs, use pytorch_metric_learning.losses"
        )


def _compared(distance, embeddings: Tensor) -> Tensor:
    """Embeddings as their products are similarities."""
    embeddings = embeddings.to(compute_dtype(embeddings.dtype))
    return functional.normalize(embeddings) if distance is None else distance.maybe_normalize(embeddings)


def _is_a(value, *names: str) -> bool:
    """Whether it is an instance of classes that are not imported here."""
    return any(kind.__name__ in names for kind in type(value).__mro__)


def _check_labels(name: str, labels: Tensor, embeddings: Tensor) -> None:
    check(labels.ndim == 1, name, "a 1D tensor of shape (batch_size,)", list(labels.shape))
    check(len(labels) == len(embeddings), name, f"one for each of {len(embeddings)} embeddings", len(labels))


def _as_pairs(indices_tuple: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Anchors, positives, anchors, negatives, of these or of triplets."""
    check(len(indices_tuple) in (3, 4), "indices_tuple", "3 or 4 tensors", len(indices_tuple))
    if len(indices_tuple) == 4:
        return tuple(indices_tuple)
    anchors, positives, negatives = indices_tuple
    return anchors, positives, anchors, negatives


def _nothing() -> dict:
    """The part of a loss that has no pairs."""
    return {"losses": 0, "indices": None, "reduction_type": "already_reduced"}


def _pair_products(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """⟨x_i, y_j⟩ [P] of pairs of indices; rows [P, D] are gathered in parts, and again for gradients."""

    def products(x, y, rows, columns):
        return (x[rows] * y[columns]).sum(1)

    at_once = max(PRODUCTS_AT_ONCE // x.shape[1], 1)
    if len(rows) <= at_once:
        return products(x, y, rows, columns)
    parts = zip(rows.split(at_once), columns.split(at_once))
    return torch.cat(
        [checkpoint(products, x, y, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    )


def _logsumexp_by(anchors: Tensor, logits: Tensor, count: int) -> Tensor:
    """log Σ e^logit of each anchor [N], −∞ where it has none."""
    largest = logits.new_full((count,), -torch.inf).scatter_reduce(0, anchors, logits.detach(), "amax")
    some = largest > -torch.inf
    largest = torch.where(some, largest, 0.0)
    total = logits.new_zeros(count).index_add(0, anchors, torch.exp(logits - largest[anchors]))
    return torch.where(some, torch.where(some, total, 1.0).log() + largest, -torch.inf)


def _distinct(rows: Tensor, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pairs without repetitions, of ``count`` columns."""
    pairs = (rows * count + columns).unique()
    return pairs // count, pairs % count
