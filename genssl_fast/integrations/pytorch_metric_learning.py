"""pytorch-metric-learning's NT-Xent and SupCon on kernels of this library; as in version 2.9.

Same signatures, defaults and conventions, without the matrix of pairs: memory is linear in the rows and in
the number of positive pairs (of SupCon: in the rows alone). That holds for its ``CosineSimilarity`` and
``DotProductSimilarity``; other distances are called for the matrix of pairs, which is stored. Reducers and
embedding regularizers are called as there. Losses are in fp32 (fp64 for fp64), whatever the embeddings.

pytorch-metric-learning is not imported. So ``distance`` and ``reducer`` are None where none is given, these
classes are no subclasses of its own, which ``DistributedLossWrapper`` asks for, and nothing is recorded.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from genssl_fast._checks import check, check_dtype
from genssl_fast.ops.contrast_checks import checked_ids, checked_matrix, checked_number
from genssl_fast.ops.contrastive import products_of_rows, with_positive
from genssl_fast.ops.fixed_sums import mean, times, total
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
        """The reduced loss [] of embeddings [N, D], 0 where there are no pairs or no embeddings.

        Arguments:
            labels: [N], of any dtype; not needed with ``indices_tuple``.
            indices_tuple: pairs (anchors, positives, anchors, negatives) or triplets of a miner.
            ref_emb, ref_labels: what embeddings are compared with [M, D]; by default themselves.
        """
        check_dtype("embeddings", embeddings)
        if labels is None and indices_tuple is None:
            raise ValueError("labels and indices_tuple cannot both be None")
        if embeddings.shape[:1] == (0,):
            return self._reduced(None, None, embeddings, labels)
        x, y, labels, ref_labels = self._prepared(embeddings, labels, ref_emb, ref_labels)
        scale = 1 / checked_number("temperature", self.temperature, embeddings)
        of = _Products if _is_product(self.distance) else _Matrix
        logits = of(self.distance, x, y, scale)
        if indices_tuple is None:
            losses, indices = self._of_labels(logits, _LabelPairs(labels, ref_labels))
        else:
            pairs = _as_pairs(indices_tuple)
            nothing = all(len(part) <= 1 for part in pairs)
            losses, indices = (None, None) if nothing else self._of_pairs(logits, *pairs)
        return self._reduced(losses, indices, embeddings, labels)

    def _prepared(self, embeddings, labels, ref_emb, ref_labels):
        """Both sides of the pairs in the precision that they are computed in, and their labels."""
        checked_matrix("embeddings", embeddings)
        if labels is not None:
            labels = labels.to(embeddings.device)
            _check_labels("labels", labels, embeddings)
        x = embeddings.to(compute_dtype(embeddings.dtype))
        if ref_emb is None:
            return x, x, labels, labels
        checked_matrix("ref_emb", ref_emb, embeddings, "embeddings")
        ref_labels = labels if ref_labels is None else ref_labels.to(ref_emb.device)
        if ref_labels is not None:
            _check_labels("ref_labels", ref_labels, ref_emb)
        return x, ref_emb.to(x.dtype), labels, ref_labels

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
        distance: one of pytorch-metric-learning; None for ``CosineSimilarity``. All but it and
            ``DotProductSimilarity``, of power 1, store the matrix of pairs.
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

    def _of_labels(self, logits: "_Products | _Matrix", pairs: "_LabelPairs"):
        anchors, positives = pairs.positives()
        negatives = pairs.num_negatives()
        if len(anchors) == 0 or negatives == 0 or (len(anchors) <= 1 and negatives <= 1):
            return None, None
        return self._losses(logits.log_sum_of_negatives(pairs), logits, anchors, positives)

    def _of_pairs(self, logits, anchors, positives, negative_anchors, negatives):
        if len(anchors) == 0 or len(negative_anchors) == 0:
            return None, None
        of_negatives = logits.of(negative_anchors, negatives)
        log_sum = _logsumexp_by(negative_anchors, of_negatives, logits.num_rows)
        return self._losses(log_sum, logits, anchors, positives)

    def _losses(self, log_sum, logits, anchors, positives):
        """log(1 + Σ e^(s_an − s_ap)) of each positive pair."""
        of_positives = logits.of(anchors, positives)
        return with_positive(log_sum.index_select(0, anchors) - of_positives), (anchors, positives)

    @staticmethod
    def _mean_of(losses: Tensor) -> Tensor:
        return mean(losses)


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

    def _of_labels(self, logits: "_Products | _Matrix", pairs: "_LabelPairs"):
        count = pairs.counts()
        negatives = pairs.num_negatives()
        positives = int(count.sum())
        if positives == 0 or negatives == 0 or (positives <= 1 and negatives <= 1):
            return None, None
        positive = logits.sum_of_positives(pairs) / count.clamp_min(1)
        losses = torch.zeros_like(positive)
        if int(count.max()) > 1:
            losses = torch.where(count > 1, logits.log_sum_of_others(pairs) - positive, losses)
        if bool((count == 1).any()):
            of_one = with_positive(logits.log_sum_of_negatives(pairs) - positive)
            losses = torch.where(count == 1, _rounded(of_one), losses)
        return losses, torch.arange(logits.num_rows, device=losses.device)

    def _of_pairs(self, logits, anchors, positives, negative_anchors, negatives):
        anchors, positives = _distinct(anchors, positives, logits.num_columns)
        negative_anchors, negatives = _distinct(negative_anchors, negatives, logits.num_columns)
        if len(anchors) == 0 or len(negative_anchors) == 0:
            return None, None
        both = torch.cat([anchors, negative_anchors]), torch.cat([positives, negatives])
        disjoint = len(_distinct(*both, logits.num_columns)[0]) == len(both[0])
        check(disjoint, "indices_tuple", "each pair either positive or negative", "pairs that are both")
        found = logits.of(*both)
        log_sum = _logsumexp_by(both[0], found, logits.num_rows)
        count = torch.bincount(anchors, minlength=logits.num_rows)
        sums = found.new_zeros(logits.num_rows).index_add(0, anchors, found[: len(anchors)])
        losses = torch.where(count > 0, log_sum - sums / count.clamp_min(1), 0.0)
        return losses, torch.arange(logits.num_rows, device=losses.device)

    @staticmethod
    def _mean_of(losses: Tensor) -> Tensor:
        """Of those greater than 0."""
        counted = losses > 0
        return total(torch.where(counted, losses, 0.0)) / counted.sum().clamp_min(1)


class _LabelPairs:
    """Pairs of rows [N] and columns [M] by their labels, in vectors alone.

    ``same`` says that row i and column i are no pair, as pytorch-metric-learning has it where both have the
    very same labels.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor):
        self.same = ref_labels is labels
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


class _Products:
    """Logits of pairs that are products of rows: nothing is stored of each pair."""

    def __init__(self, distance, x: Tensor, y: Tensor, scale: Tensor):
        normalize = functional.normalize if distance is None else distance.maybe_normalize
        self.x, self.scale = normalize(x), scale
        self.y = self.x if y is x else normalize(y)
        self.num_rows, self.num_columns = len(x), len(y)

    def of(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The logit [P] of each pair."""
        return times(self.scale, _pair_products(self.x, self.y, rows, columns))

    def log_sum_of_negatives(self, pairs: _LabelPairs) -> Tensor:
        """log Σ e^logit [N] over the columns of other classes."""
        if pairs.same and self.y is self.x:
            return gram_logsumexp(self.x, self.scale, None, pairs.rows)
        return self._log_sum(pairs.rows, pairs.columns)

    def log_sum_of_others(self, pairs: _LabelPairs) -> Tensor:
        """The same [N] over all columns, without the row itself."""
        if pairs.same and self.y is self.x:
            return gram_logsumexp(self.x, self.scale, None, None)
        apart = checked_ids("ids", None, self.num_rows, self.x.device) if pairs.same else None
        return self._log_sum(apart, apart)

    def sum_of_positives(self, pairs: _LabelPairs) -> Tensor:
        """The sum [N] over the columns of the row's class, by the sum of each class."""
        y, rows, columns = self.y, pairs.rows.long(), pairs.columns.long()
        sums = y.new_zeros(pairs.classes, y.shape[1]).index_add(0, columns, y).index_select(0, rows)
        return times(self.scale, products_of_rows(self.x, sums - y if pairs.same else sums))

    def _log_sum(self, rows, columns) -> Tensor:
        return pair_logsumexp(self.x, self.y, self.scale, None, None, rows, columns, False)[0]


class _Matrix:
    """The same of any other distance, which is called for the matrix of pairs."""

    def __init__(self, distance, x: Tensor, y: Tensor, scale: Tensor):
        self.logits = distance(x, y) * (scale if distance.is_inverted else -scale)
        self.num_rows, self.num_columns = self.logits.shape

    def of(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.logits[rows, columns]

    def log_sum_of_negatives(self, pairs: _LabelPairs) -> Tensor:
        return self.logits.masked_fill(_of_one_class(pairs), -torch.inf).logsumexp(1)

    def log_sum_of_others(self, pairs: _LabelPairs) -> Tensor:
        others = self.logits.masked_fill(self._itself(), -torch.inf) if pairs.same else self.logits
        return others.logsumexp(1)

    def sum_of_positives(self, pairs: _LabelPairs) -> Tensor:
        positive = _of_one_class(pairs)
        if pairs.same:
            positive = positive & ~self._itself()
        return self.logits.masked_fill(~positive, 0.0).sum(1)

    def _itself(self) -> Tensor:
        return torch.eye(self.num_rows, dtype=torch.bool, device=self.logits.device)


def _rounded(losses: Tensor) -> Tensor:
    """0 where log(1 + x) is of a sum that rounds to 1: whether it is decides what the default mean counts."""
    return torch.where(losses <= torch.finfo(losses.dtype).eps / 2, 0.0, losses)


def _of_one_class(pairs: _LabelPairs) -> Tensor:
    return pairs.rows[:, None] == pairs.columns


def _is_product(distance) -> bool:
    """Whether a distance is a product of rows."""
    return distance is None or (_is_a(distance, "DotProductSimilarity") and distance.power == 1)


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
        # Their gradients are added up in order, unlike those of x[rows].
        return (x.index_select(0, rows) * y.index_select(0, columns)).sum(1)

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
