"""Losses spread over processes against the loss of the whole batch in one: values and gradients as DDP means.

One launch for each number of processes runs everything; tests look at what it found.
"""

import functools
from unittest import mock

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import genssl_fast
from genssl_fast.ops import decorrelation_group, similarity
from genssl_fast.ops import ring as rings
from tests.processes import in_processes

SHARDS = {1: [16], 2: [11, 5], 4: [5, 3, 7, 1]}
D = 6
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def batch(dtype, shards):
    """The whole batch: what is spread over processes, and what all of them have."""
    generator = torch.Generator().manual_seed(7)
    count = sum(shards)

    def normal(*shape):
        values = torch.randn(*shape, dtype=torch.float64, generator=generator) / D**0.5
        return values.to(dtype).requires_grad_()

    def integers(high):
        return torch.randint(high, (count,), generator=generator)

    def number(value):
        return torch.tensor(value, dtype=dtype, requires_grad=True)

    spread = {"x": normal(count, D), "y": normal(count, D), "negatives": normal(count, D)}
    spread |= {"own_negatives": normal(count, 3, D), "row_bias": normal(count), "column_bias": normal(count)}
    spread["temperatures"] = (0.3 + torch.rand(count, generator=generator)).to(dtype).requires_grad_()
    spread |= {"ids": integers(12), "other_ids": integers(12), "labels": integers(5)}
    spread |= {"wide_x": normal(count, 45), "wide_y": normal(count, 45)}
    spread |= {"x_positions": normal(count, 3, 5), "y_positions": normal(count, 3, 5)}
    shared = {"temperature": number(0.4), "scale": number(3.0), "bias": number(-1.5)}
    shared["queue"] = nn.functional.normalize(normal(20, D).detach())
    return spread, shared


def pairs(t, group):
    arguments = (t["x"], t["y"], t["scale"], t["row_bias"], t["column_bias"], None, None, True)
    if group is None:
        rows, columns = similarity.pair_logsumexp(*arguments)
        return rows.square().sum() + columns.exp().sum()
    ring = rings.Ring(group, {"rows": (t["y"],)}, arguments[:5], {})
    rows, columns = rings.pair_logsumexp(*arguments, ring)
    return ring.total(rows.square().sum() + columns.exp().sum())


def gram(t, group):
    if group is None:
        return similarity.gram_logsumexp(t["x"], t["scale"], t["row_bias"], None).square().sum()
    ring = rings.Ring(group, {"rows": (t["x"],)}, (t["scale"], t["row_bias"]), {})
    ids = ring.offset("rows") + torch.arange(len(t["x"]), dtype=torch.int32)
    return ring.total(rings.gram_logsumexp(t["x"], t["scale"], t["row_bias"], ids, ring).square().sum())


def losses_of_rows(t, group):
    """Without reduction: every process weighs its own losses."""
    losses = genssl_fast.nt_xent(t["x"], t["y"], t["temperature"], reduction="none", group=group)
    total = (losses * torch.cat([t["row_bias"], t["column_bias"]]).detach()).sum()
    if group is None:
        return total
    return rings.Ring(group, {"rows": (t["x"],)}, (), {}).total(total)


def in_small_tiles(t, group):
    with mock.patch.object(decorrelation_group, "TILE", 2):
        losses = [loss(t["x"], t["y"], group=group) for loss in DECORRELATION]
        return sum(losses) + genssl_fast.vicreg(t["x_positions"], t["y_positions"], group=group)


DECORRELATION = genssl_fast.barlow_twins, genssl_fast.vicreg
CASES = {
    "nt_xent": lambda t, group: genssl_fast.nt_xent(t["x"], t["y"], t["temperature"], group=group),
    "nt_xent, sum, 0.01": lambda t, group: genssl_fast.nt_xent(
        t["x"], t["y"], t["temperature"] / 40, reduction="sum", group=group
    ),
    "nt_xent, decoupled, ids": lambda t, group: genssl_fast.nt_xent(
        t["x"], t["y"], t["temperature"], epsilon=0.0, ids=t["ids"], group=group
    ),
    "nt_xent, temperatures": lambda t, group: genssl_fast.nt_xent(
        t["x"], t["y"], t["temperatures"], normalize=False, group=group
    ),
    "info_nce": lambda t, group: genssl_fast.info_nce(t["x"], t["y"], t["temperature"], group=group),
    "info_nce, symmetric, ids": lambda t, group: genssl_fast.info_nce(
        t["x"], t["y"], t["temperatures"], symmetric=True, ids=t["ids"], group=group
    ),
    "info_nce, constant keys": lambda t, group: genssl_fast.info_nce(
        t["x"], t["y"].detach(), t["temperature"], group=group
    ),
    "info_nce, negatives": lambda t, group: genssl_fast.info_nce(
        t["x"], t["y"], t["temperature"], negatives=t["negatives"], in_batch=True, group=group
    ),
    "info_nce, negatives alone": lambda t, group: genssl_fast.info_nce(
        t["x"], t["y"], t["temperature"], negatives=t["negatives"], reduction="sum", group=group
    ),
    "info_nce, own negatives": lambda t, group: genssl_fast.info_nce(
        t["x"], t["y"], t["temperature"], negatives=t["own_negatives"], group=group
    ),
    "moco_loss": lambda t, group: genssl_fast.moco_loss(
        t["x"], t["y"], t["queue"], t["temperature"], group=group
    ),
    "clip_loss": lambda t, group: genssl_fast.clip_loss(t["x"], t["y"], t["scale"], t["bias"], group=group),
    "clip_loss, ids": lambda t, group: genssl_fast.clip_loss(
        t["x"], t["y"], t["scale"], normalize=True, ids=t["ids"], group=group
    ),
    "siglip_loss": lambda t, group: genssl_fast.siglip_loss(
        t["x"], t["y"], t["scale"], t["bias"], group=group
    ),
    "siglip_loss, ids": lambda t, group: genssl_fast.siglip_loss(
        t["x"], t["y"], t["scale"], t["bias"], image_ids=t["ids"], text_ids=t["other_ids"], normalize=True,
        group=group,
    ),
    "sup_con": lambda t, group: genssl_fast.sup_con(t["x"], t["labels"], t["temperature"], group=group),
    "sup_con, base temperature": lambda t, group: genssl_fast.sup_con(
        t["x"], t["ids"], t["temperature"], base_temperature=0.07, reduction="sum", group=group
    ),
    "info_nce_distance": lambda t, group: genssl_fast.info_nce_distance(
        t["x"], t["y"], t["temperature"], epsilon=0.5, group=group
    ),
    "generalized_contrastive, linear": lambda t, group: genssl_fast.generalized_contrastive(
        t["x"], t["y"], "log", "linear", temperature=t["temperature"], margin=t["scale"].exp(), group=group
    ),
    "generalized_contrastive, exponential": lambda t, group: genssl_fast.generalized_contrastive(
        t["x"], t["y"], "identity", temperature=t["temperature"], margin=t["bias"], group=group
    ),
    "barlow_twins": lambda t, group: genssl_fast.barlow_twins(t["x"], t["y"], group=group),
    "barlow_twins, lightly": lambda t, group: genssl_fast.barlow_twins(
        t["x"], 3 * t["y"] + 1e5, eps=1e-3, convention="lightly", group=group
    ),
    "barlow_twins, wide, solo-learn": lambda t, group: genssl_fast.barlow_twins(
        t["wide_x"], t["wide_y"], convention="solo-learn", group=group
    ),
    "vicreg": lambda t, group: genssl_fast.vicreg(t["x"], t["y"], gamma=0.4, group=group),
    "vicreg, constant view": lambda t, group: genssl_fast.vicreg(
        t["x"], t["y"].detach(), convention="lightly", group=group
    ),
    "vicreg, wide, paper": lambda t, group: genssl_fast.vicreg(
        t["wide_x"], t["wide_y"], covariance=20.0, convention="paper", group=group
    ),
    "vicreg, positions, solo-learn": lambda t, group: genssl_fast.vicreg(
        t["x_positions"], t["y_positions"], convention="solo-learn", group=group
    ),
    "decorrelation, small tiles": in_small_tiles,
    "losses of rows": losses_of_rows,
    "pair_logsumexp": pairs,
    "gram_logsumexp": gram,
}  # fmt: skip


def compared(case, dtype, shards, rank) -> dict[str, float]:
    """Relative errors of value and gradients of one case, seen by a process."""
    spread, shared = batch(dtype, shards)
    expected = case(spread | shared, None)
    expected.backward()
    begin = sum(shards[:rank])
    mine = slice(begin, begin + shards[rank])
    part = {name: leaf(tensor[mine]) for name, tensor in spread.items()}
    own = {name: leaf(tensor) for name, tensor in shared.items()}
    found = case(part | own, True)
    found.backward()
    errors = {"value": relative_error(found.detach(), expected.detach())}
    for name, tensor in (spread | shared).items():
        if tensor.grad is None:
            continue
        if name in spread:
            got, wanted, of = part[name].grad / len(shards), tensor.grad[mine], tensor.grad
        else:
            dist.all_reduce(own[name].grad)
            got = own[name].grad / len(shards)
            wanted = of = tensor.grad
        errors[name] = relative_error(got, wanted, of)
    return errors


def leaf(tensor):
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def relative_error(found, expected, of=None):
    """Of the largest number in the whole tensor."""
    largest = (expected if of is None else of).abs().max().item()
    difference = (found - expected).abs().max().item()
    return difference / largest if largest else difference


class Towers(nn.Module):
    """Two linear towers with CLIP's scale."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(5, D), nn.Linear(5, D)
        self.log_scale = nn.Parameter(torch.tensor(1.2))

    def forward(self, images, texts):
        return self.image(images), self.text(texts), self.log_scale.exp()


def trained_loss(images, texts, scale, group=None):
    apart = sum(loss(images, texts, group=group) for loss in DECORRELATION)
    return genssl_fast.clip_loss(images, texts, scale, group=group) + apart


def trained(shards, rank) -> float:
    """The largest relative error of DistributedDataParallel's gradients."""
    torch.manual_seed(3)
    alone, inputs = Towers(), torch.randn(2, sum(shards), 5)
    spread = Towers()
    spread.load_state_dict(alone.state_dict())
    mine = inputs.split(shards, 1)[rank]
    trained_loss(*alone(*inputs)).backward()
    model = DistributedDataParallel(spread)
    trained_loss(*model(*mine), group=dist.group.WORLD).backward()
    return max(relative_error(p.grad, q.grad) for p, q in zip(spread.parameters(), alone.parameters()))


def repeated(shards, rank) -> bool:
    """Whether two runs are bitwise equal."""

    def run():
        spread, shared = batch(torch.float32, [len(shards) * 40])
        part = {name: leaf(tensor.chunk(len(shards))[rank]) for name, tensor in spread.items()}
        loss = genssl_fast.info_nce(part["x"], part["y"], shared["temperature"], symmetric=True, group=True)
        loss = loss + sum(apart(part["x"], part["y"], group=True) for apart in DECORRELATION)
        loss.backward()
        return loss.detach(), part["x"].grad, part["y"].grad, shared["temperature"].grad

    return all(map(torch.equal, run(), run()))


def saved_bytes(count) -> int:
    """What a backward pass keeps of ``count`` rows of each process."""
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, y = torch.randn(2, count, D).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = genssl_fast.clip_loss(x, y, torch.tensor(2.0, requires_grad=True), group=True)
    loss.backward()
    return sum(sizes.values())


def values(shards, rank) -> list[float]:
    """Losses that are to be the same number on every process."""
    spread, _ = batch(torch.float32, shards)
    x, y = (spread[name].split(shards)[rank] for name in ("wide_x", "wide_y"))
    return [loss(x, y, group=True).item() for loss in DECORRELATION]


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor))
        self.elements = max(self.elements, *sizes, 0)
        return found


def largest_tensor(rows, features) -> int:
    """In the forward and backward passes of what decorrelates features."""
    x, y = (torch.randn(rows, features, requires_grad=True) for _ in range(2))
    with Largest() as largest:
        for loss in DECORRELATION:
            loss(x, y, group=True).backward()
    return largest.elements


def message(kind, call) -> str:
    """Of the error that a call must raise."""
    with pytest.raises(kind) as raised:
        call()
    return str(raised.value)


def errors(rank, size) -> dict[str, str]:
    """Messages of what must fail on every process."""
    x = torch.randn(4, D, requires_grad=True)
    wide = torch.randn(4, D + rank)
    found = {
        "second": message(
            NotImplementedError,
            lambda: torch.autograd.grad(genssl_fast.info_nce(x, x, group=True), x, create_graph=True),
        ),
        "grad": message(
            NotImplementedError,
            lambda: torch.func.grad(lambda x: genssl_fast.clip_loss(x, x, 1.0, group=True))(x),
        ),
        "jvp": message(NotImplementedError, lambda: forward_mode(x.detach())),
        "psi": message(
            NotImplementedError, lambda: genssl_fast.generalized_contrastive(x, x, psi="hinge", group=True)
        ),
        "kind": message(TypeError, lambda: genssl_fast.nt_xent(x, x, group="all")),
        "form": message(ValueError, lambda: genssl_fast.vicreg(x, x, form="tiles", group=True)),
    }
    for loss in DECORRELATION:
        found |= {f"{loss.__name__}, {name}": text for name, text in derivatives(loss, x).items()}
    if size == 1:
        one = message(ValueError, lambda: genssl_fast.barlow_twins(x[:1], x[:1], group=True))
        return found | {"one row": one}
    calls = {
        "D": lambda: genssl_fast.nt_xent(wide, wide, group=True),
        "dtype": lambda: genssl_fast.sup_con(
            x.detach().to((torch.float32, torch.float64)[rank % 2]), torch.arange(4), group=True
        ),
        "normalize": lambda: genssl_fast.siglip_loss(x, x, 1.0, 0.0, normalize=rank == 0, group=True),
        "gradients": lambda: genssl_fast.info_nce(*[x if rank else x.detach()] * 2, group=True),
        "ids": lambda: genssl_fast.clip_loss(
            x, x, 1.0, ids=torch.arange(4) if rank else None, group=True
        ),
        "D of barlow_twins": lambda: genssl_fast.barlow_twins(wide, wide, group=True),
        "dtype of vicreg": lambda: genssl_fast.vicreg(
            *[x.detach().to((torch.float32, torch.float64)[rank % 2])] * 2, group=True
        ),
        "gradients of vicreg": lambda: genssl_fast.vicreg(*[x if rank else x.detach()] * 2, group=True),
        "weight of barlow_twins": lambda: genssl_fast.barlow_twins(x, x, weight=1.0 + rank, group=True),
        "convention of barlow_twins": lambda: genssl_fast.barlow_twins(
            x, x, convention="lightly" if rank else "original", group=True
        ),
        "gamma of vicreg": lambda: genssl_fast.vicreg(x, x, gamma=1.0 + rank, group=True),
        "eps of vicreg": lambda: genssl_fast.vicreg(x, x, eps=1.0 + rank, group=True),
        "convention of vicreg": lambda: genssl_fast.vicreg(
            x, x, convention="solo-learn" if rank else "paper", group=True
        ),
        "positions of vicreg": lambda: genssl_fast.vicreg(
            *[x[:, None].expand(-1, 1 + rank, -1)] * 2, group=True
        ),
        "loss of both": lambda: DECORRELATION[rank % 2](x, x, group=True),
    }  # fmt: skip
    return found | {name: message(ValueError, call) for name, call in calls.items()}


def derivatives(loss, x) -> dict[str, str]:
    """Messages of the derivatives that no group has."""

    def loss_of(x):
        return loss(x, x.cos(), group=True)

    calls = {
        "second": lambda: torch.autograd.grad(loss_of(x), x, create_graph=True),
        "grad": lambda: torch.func.grad(loss_of)(x),
        "jvp": lambda: forward_mode(x.detach(), loss),
    }
    return {name: message(NotImplementedError, call) for name, call in calls.items()}


def forward_mode(x, loss=genssl_fast.nt_xent):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        loss(dual, dual, group=True)


def in_a_part(rank) -> float:
    """The error of the loss of two processes out of four; a process outside cannot call it."""
    members = [1, 3]
    group = dist.new_group(members)
    x = torch.arange(4 * 3 * D).view(4, 3, D).sin()
    if rank not in members:
        message(TypeError, lambda: genssl_fast.nt_xent(x[rank], x[rank].cos(), group=group))
        return 0.0
    both = x[members].flatten(0, 1)
    found = genssl_fast.nt_xent(x[rank], x[rank].cos(), group=group)
    return relative_error(found, genssl_fast.nt_xent(both, both.cos()))


def process(rank, shards) -> dict:
    """Everything, in one of the processes."""
    found = {
        (name, dtype): compared(case, dtype, shards, rank)
        for name, case in CASES.items()
        for dtype in TOLERANCE
    }
    found |= {"trained": trained(shards, rank), "repeated": repeated(shards, rank)}
    found |= {"saved": [saved_bytes(count) for count in (64, 128)], "errors": errors(rank, len(shards))}
    found |= {"values": values(shards, rank), "largest": largest_tensor(16, 512)}
    return found | {"in a part": in_a_part(rank) if len(shards) == 4 else 0.0}


@functools.cache
def outcomes(size) -> list[dict]:
    """What each of ``size`` processes found."""
    return in_processes(size, process, SHARDS[size])


over_sizes = pytest.mark.parametrize("size", SHARDS)


@over_sizes
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_loss_of_the_whole_batch(name, dtype, size):
    for rank, found in enumerate(outcomes(size)):
        for of, error in found[name, dtype].items():
            assert error <= TOLERANCE[dtype], (rank, of)


@over_sizes
def test_gradients_of_data_parallel_training(size):
    assert max(found["trained"] for found in outcomes(size)) <= 1e-6


@over_sizes
def test_two_runs_are_equal(size):
    assert all(found["repeated"] for found in outcomes(size))


@over_sizes
def test_memory_is_that_of_the_rows_at_hand(size):
    for found in outcomes(size):
        small, large = found["saved"]
        assert large <= 2.1 * small
        assert large <= 128 * 4 * (4 * D + 16)


@over_sizes
def test_every_process_has_the_same_value(size):
    first, *others = (found["values"] for found in outcomes(size))
    assert all(values == first for values in others)


@over_sizes
def test_decorrelation_holds_rows_of_one_process_alone(size):
    assert max(found["largest"] for found in outcomes(size)) == 16 * 512


def test_a_part_of_the_processes():
    assert max(found["in a part"] for found in outcomes(4)) <= 1e-6


@over_sizes
def test_errors(size):
    for found in outcomes(size):
        messages = found["errors"]
        for name in ("second", "grad", "jvp", "psi"):
            assert "without group" in messages[name]
        for loss in DECORRELATION:
            for derivative in ("second", "grad", "jvp"):
                assert "without group" in messages[f"{loss.__name__}, {derivative}"]
        assert "group" in messages["kind"]
        assert "form: expected one of 'gram'" in messages["form"]
        if size == 1:
            assert "z1: expected at least 2 rows over all processes" in messages["one row"]
            continue
        for name in ("D", "dtype", "normalize", "gradients", "ids"):
            assert "group" in messages[name]
            assert name in messages[name]
        for name in (name for name in messages if " of " in name):
            assert "group" in messages[name]
            assert name.split()[0] in messages[name]


def test_without_processes():
    with pytest.raises(RuntimeError, match=r"group: expected .* initialised"):
        genssl_fast.nt_xent(torch.ones(2, 2), torch.ones(2, 2), group=True)
