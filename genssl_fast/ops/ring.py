"""Reductions over all pairs of rows that are spread over processes, in memory linear in the rows of one.

The rows of a process stay; blocks of columns travel a ring, and the next block is on its way while one is
worked on. What other processes add to a block's own numbers (log-sum-exps of its columns, its gradient)
travels one step behind it and goes home at the end, added up in the order of the ring, so that results are
the same in every run.

Each process holds its share of the loss; gradients are those of the sum of all shares. A second derivative
would need every process again at once: it raises an error, as forward mode does.
"""

from collections.abc import Callable, Iterator
from functools import wraps

import torch
from torch import Tensor
from torch import distributed as dist

from genssl_fast._autocast import without_autocast
from genssl_fast._autograd import has_tangent, wants_gradient
from genssl_fast._checks import check
from genssl_fast.ops.similarity import (
    raw_pair_logsumexp,
    raw_pair_logsumexp_backward,
    raw_sigmoid_pairs,
)
from genssl_fast.reference.integrate import compute_dtype

__all__ = [
    "Ring",
    "check_first_derivative",
    "checked_group",
    "class_sums",
    "gram_logsumexp",
    "not_compiled",
    "pair_logsumexp",
    "sigmoid_pairs",
]

ALONE = "call the loss of the whole batch in one process, without group"


def not_compiled(function: Callable) -> Callable:
    """A call that torch.compile leaves to eager PyTorch; it imports its compiler for that, at the first."""
    wrapped = None

    @wraps(function)
    def call(*args, **kwargs):
        nonlocal wrapped
        if wrapped is None:
            wrapped = torch.compiler.disable(function)
        return wrapped(*args, **kwargs)

    return call


class Ring:
    """The processes of a group in a circle, and how many rows each of them has.

    Making one is the only exchange that waits for numbers on the host.

    Arguments:
        group: a ``torch.distributed`` group, or True for the default one.
        blocks: by name, tensors of rows of length D that are spread over the processes, several for a block
            that is put together of them. ``"rows"`` are those that have losses.
        others: more tensors that a derivative could be wanted of.
        same: settings by name that all processes must share.
        per_row: whether this process's rows have numbers of their own, such as temperatures; as an attribute,
            whether those of any process have.

    Raises:
        ValueError: on every process, where they disagree; it names on what.
    """

    @not_compiled
    def __init__(
        self,
        group,
        blocks: dict[str, tuple[Tensor, ...]],
        others: tuple,
        same: dict[str, object],
        per_row=False,
    ):
        self.group = checked_group(group)
        tensors = (*(tensor for block in blocks.values() for tensor in block), *others)
        if torch._C._are_functorch_transforms_active() or has_tangent(tensors):
            raise NotImplementedError(f"group: no torch.func transform and no forward mode: {ALONE}")
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        widths = {f"D of {name}": block[0].shape[1] for name, block in blocks.items()}
        same |= widths | {"dtype": blocks["rows"][0].dtype, "need of gradients": wants_gradient(tensors)}
        mine = {name: (sum(map(len, block)), wants_gradient(block)) for name, block in blocks.items()}
        records = self._records(same | {"blocks": sorted(blocks)}, mine | {"per row": per_row})
        self.rows = {name: [record[name][0] for record in records] for name in blocks}
        self.wanted = {name: any(record[name][1] for record in records) for name in blocks}
        self.per_row = any(record["per row"] for record in records)

    def _records(self, same: dict[str, object], mine: dict) -> list[dict]:
        """What every process says of its own blocks, once all agree on the rest."""
        found = [None] * self.size
        dist.all_gather_object(found, (same, mine), group=self.group)
        for name in same:
            values = [theirs.get(name) for theirs, _ in found]
            if any(value != values[0] for value in values):
                raise ValueError(f"group: expected the same {name} on every process, got {values}")
        return [record for _, record in found]

    def offset(self, name: str) -> int:
        """Number of the rows of a block that are held by processes before this one."""
        return sum(self.rows[name][: self.rank])

    def visits(self, name: str, *columns: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
        """Every process's tensors of as many rows as its block has, beginning with those of this one."""
        for step in range(self.size):
            last = step + 1 == self.size
            arriving = None if last else self.send_on(columns, self.rows[name][self.rank - step - 1])
            yield columns
            columns = None if last else arriving.wait()

    def send_on(self, tensors: tuple[Tensor | None, ...], rows: int) -> "_Arriving":
        """Sends tensors to the next process and receives such of ``rows`` rows from the one before."""
        leaving = [tensor if tensor is None else tensor.contiguous() for tensor in tensors]
        if self.size == 1:
            return _Arriving([], leaving, leaving)
        coming = [t if t is None else t.new_empty(rows, *t.shape[1:]) for t in leaving]
        transfers = []
        for tag, (out, into) in enumerate(zip(leaving, coming)):
            if out is not None:
                transfers += [
                    dist.P2POp(dist.isend, out, group=self.group, tag=tag, group_peer=self.neighbour(1)),
                    dist.P2POp(dist.irecv, into, group=self.group, tag=tag, group_peer=self.neighbour(-1)),
                ]
        return _Arriving(dist.batch_isend_irecv(transfers), leaving, coming)

    def neighbour(self, distance: int) -> int:
        return (self.rank + distance) % self.size

    @property
    def count(self) -> int:
        """Number of all processes' rows that have losses."""
        return sum(self.rows["rows"])

    @not_compiled
    def total(self, share: Tensor) -> Tensor:
        """Sum [] of all shares, on every process; its gradient is that of one share, times W."""
        return _Total.apply(share, self)


class _Arriving:
    """Tensors on their way; those that leave are kept until they have left."""

    def __init__(self, works, leaving, coming):
        self.works, self.leaving, self.coming = works, leaving, coming

    def wait(self) -> tuple[Tensor | None, ...]:
        for work in self.works:
            work.wait()
        return tuple(self.coming)


class _Collected:
    """What all processes make of each block, one step behind the block itself."""

    def __init__(self, ring: Ring, name: str, merge: Callable[[Tensor, Tensor], Tensor]):
        self.ring, self.rows, self.merge = ring, ring.rows[name], merge
        self.visited, self.arriving = 0, None

    def add(self, *parts: Tensor) -> None:
        """Merges this process's part of the visiting block, and sends the result on."""
        if self.arriving is not None:
            parts = tuple(self.merge(*pair) for pair in zip(self.arriving.wait(), parts))
        self.visited += 1
        self.arriving = self.ring.send_on(parts, self.rows[self.ring.rank - self.visited])

    def home(self) -> tuple[Tensor, ...]:
        """The parts of all processes for one's own block."""
        return self.arriving.wait()


def checked_group(group) -> "dist.ProcessGroup":
    """The group that a ``group=`` means, True being the default one.

    Raises:
        RuntimeError, TypeError, ValueError: no process group, something else, one without this process.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("group: expected torch.distributed to be initialised (init_process_group)")
    if group is True:
        return dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group: expected a group of torch.distributed, True or None, got {group!r}")
    check(dist.get_rank(group) >= 0, "group", "one that this process belongs to", group)
    return group


class _Total(torch.autograd.Function):
    """The sum of a number over all processes, in their order."""

    @staticmethod
    def forward(ctx, share, ring):
        ctx.size = ring.size
        shares = [torch.empty_like(share) for _ in range(ring.size)]
        dist.all_gather(shares, share.contiguous(), group=ring.group)
        return torch.stack(shares).sum(0)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.size, None


def check_first_derivative() -> None:
    """In a backward pass, which records itself only for a second derivative."""
    if torch.is_grad_enabled():
        raise NotImplementedError(f"group: no second derivatives (create_graph=True): {ALONE}")


class _PairLogSumExp(torch.autograd.Function):
    """Log-sum-exps of the rows here and, collected for their owners, of columns."""

    @staticmethod
    def forward(ctx, ring, name, of_columns, x, y, scale, row_bias, column_bias, row_ids, column_ids):
        rows, columns = None, _Collected(ring, name, torch.logaddexp)
        for y_there, bias, ids in ring.visits(name, y, column_bias, column_ids):
            found, found_columns, _ = raw_pair_logsumexp(
                x, y_there, scale, row_bias, bias, row_ids, ids, of_columns, False
            )
            rows = found if rows is None else torch.logaddexp(rows, found)
            if of_columns:
                columns.add(found_columns)
        columns = columns.home()[0] if of_columns else rows.new_zeros(0)
        ctx.ring, ctx.name, ctx.of_columns = ring, name, of_columns
        ctx.save_for_backward(x, y, scale, row_bias, column_bias, row_ids, column_ids, rows, columns)
        return rows, columns

    @staticmethod
    def backward(ctx, grad_rows, grad_columns):
        check_first_derivative()
        x, y, scale, row_bias, column_bias, row_ids, column_ids, rows, columns = ctx.saved_tensors
        ring, name, nothing = ctx.ring, ctx.name, rows.new_zeros(0)
        travelling = (columns, grad_columns) if ctx.of_columns else (None, None)
        here, to_columns = None, _Collected(ring, name, torch.add)
        for y_there, bias, ids, sums, grads in ring.visits(name, y, column_bias, column_ids, *travelling):
            sums, grads = (sums, grads) if ctx.of_columns else (nothing, nothing)
            to_x, to_y, to_scale, to_row_bias, to_bias = raw_pair_logsumexp_backward(
                grad_rows, grads, rows, sums, nothing, x, y_there, scale, row_bias, bias, row_ids, ids,
                True, ring.wanted[name],
            )  # fmt: skip
            here = _added(here, to_x, to_scale, to_row_bias)
            if ring.wanted[name]:
                to_columns.add(*_wide(to_y, *(() if bias is None else (to_bias,))))
        to_x, to_scale, to_row_bias = here
        to_y, to_column_bias = (*(to_columns.home() if ring.wanted[name] else ()), None, None)[:2]
        return (
            *(None, None, None, to_x.to(x.dtype)),
            None if to_y is None else to_y.to(y.dtype),
            to_scale,
            None if row_bias is None else to_row_bias,
            to_column_bias,
            *(None, None),
        )


class _GramLogSumExp(torch.autograd.Function):
    """Log-sum-exps of the rows here over all rows.

    The logits are symmetric, so that a process that is visited by the log-sum-exps of rows too finds the
    whole gradient of its own rows, and none has to travel.
    """

    @staticmethod
    def forward(ctx, ring, name, z, scale, bias, ids):
        rows = None
        for there, bias_there, ids_there in ring.visits(name, z, bias, ids):
            found, *_ = raw_pair_logsumexp(z, there, scale, bias, bias_there, ids, ids_there, False, False)
            rows = found if rows is None else torch.logaddexp(rows, found)
        ctx.ring, ctx.name = ring, name
        ctx.save_for_backward(z, scale, bias, ids, rows)
        return rows

    @staticmethod
    def backward(ctx, grad):
        check_first_derivative()
        z, scale, bias, ids, rows = ctx.saved_tensors
        here, nothing = None, rows.new_zeros(0)
        for there, bias_there, ids_there, sums, grads in ctx.ring.visits(ctx.name, z, bias, ids, rows, grad):
            to_z, _, to_scale, to_bias, _ = raw_pair_logsumexp_backward(
                grad,
                grads,
                rows,
                sums,
                nothing,
                z,
                there,
                scale,
                bias,
                bias_there,
                ids,
                ids_there,
                True,
                False,
            )
            here = _added(here, to_z, to_scale, to_bias)
        to_z, to_scale, to_bias = here
        # Every pair was seen by both its rows.
        return None, None, to_z.to(z.dtype), to_scale / 2, None if bias is None else to_bias, None


class _SigmoidPairs(torch.autograd.Function):
    """The sum of the rows here over all columns.

    Gradients are found in the backward pass, when each process knows what its own loss is multiplied by:
    those of columns add up over processes.
    """

    @staticmethod
    def forward(ctx, ring, name, x, y, scale, bias, row_ids, column_ids):
        loss = 0
        for there, ids in ring.visits(name, y, column_ids):
            loss = loss + raw_sigmoid_pairs(x, there, scale, bias, row_ids, ids, False)[0]
        ctx.ring, ctx.name = ring, name
        ctx.save_for_backward(x, y, scale, bias, row_ids, column_ids)
        return loss

    @staticmethod
    def backward(ctx, grad):
        check_first_derivative()
        x, y, scale, bias, row_ids, column_ids = ctx.saved_tensors
        here, to_columns = None, _Collected(ctx.ring, ctx.name, torch.add)
        for there, ids in ctx.ring.visits(ctx.name, y, column_ids):
            _, to_x, to_y, to_scale, to_bias = raw_sigmoid_pairs(x, there, scale, bias, row_ids, ids, True)
            here = _added(here, to_x, to_scale, to_bias)
            to_columns.add(grad * _wide(to_y)[0])
        to_x, to_scale, to_bias = (grad * found for found in here)
        to_y = to_columns.home()[0]
        return None, None, to_x.to(x.dtype), to_y.to(y.dtype), to_scale, to_bias, None, None


class _ClassSums(torch.autograd.Function):
    """For every row the sum of the rows of its class, which is the transpose of itself."""

    @staticmethod
    def forward(ctx, ring, name, z, labels):
        ctx.ring, ctx.name = ring, name
        ctx.save_for_backward(labels)
        known = labels.sort().values
        sums = z.new_zeros(len(z) + 1, z.shape[1])
        for there, labels_there in ring.visits(name, z, labels):
            place = torch.searchsorted(known, labels_there).clamp_max(len(z) - 1)
            found = known[place] == labels_there
            sums.index_add_(0, torch.where(found, place, len(z)), there)
        return sums[torch.searchsorted(known, labels)]

    @staticmethod
    def backward(ctx, grad):
        return None, None, _ClassSums.apply(ctx.ring, ctx.name, grad, *ctx.saved_tensors), None


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the precision that sums over processes are kept in."""
    return tuple(tensor.to(compute_dtype(tensor.dtype)) for tensor in tensors)


def _added(total: tuple[Tensor, ...] | None, *found: Tensor) -> tuple[Tensor, ...]:
    found = _wide(*found)
    return found if total is None else tuple(map(torch.add, total, found))


@not_compiled
@without_autocast
def pair_logsumexp(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    row_bias: Tensor | None,
    column_bias: Tensor | None,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    columns: bool,
    ring: Ring,
    name: str = "rows",
) -> tuple[Tensor, Tensor]:
    """:func:`genssl_fast.ops.similarity.pair_logsumexp` of all processes' rows, for those here.

    ``y`` is this process's part of the block ``name``, and the second result belongs to it, empty unless
    ``columns``. ``y`` and ``column_bias`` have gradients where some process wants one of the block.
    """
    return _PairLogSumExp.apply(ring, name, columns, x, y, scale, row_bias, column_bias, row_ids, column_ids)


@not_compiled
@without_autocast
def gram_logsumexp(
    z: Tensor, scale: Tensor, bias: Tensor | None, ids: Tensor, ring: Ring, name: str = "rows"
) -> Tensor:
    """:func:`genssl_fast.ops.similarity.gram_logsumexp` of all processes' rows, for those here.

    Rows of different processes have different ids but where they are no pair.
    """
    return _GramLogSumExp.apply(ring, name, z, scale, bias, ids)


@not_compiled
@without_autocast
def sigmoid_pairs(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    ring: Ring,
    name: str = "rows",
) -> Tensor:
    """:func:`genssl_fast.ops.similarity.sigmoid_pairs` of the rows here and all processes' columns."""
    return _SigmoidPairs.apply(ring, name, x, y, scale, bias, row_ids, column_ids)


@not_compiled
@without_autocast
def class_sums(z: Tensor, labels: Tensor, ring: Ring, name: str = "rows") -> Tensor:
    """For every row here the sum [N, D] of all processes' rows of its class, itself among them."""
    return _ClassSums.apply(ring, name, z, labels)
