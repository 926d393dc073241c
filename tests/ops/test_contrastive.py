"""Contrastive losses: the battery, closed forms, peers, masks, extreme temperatures, memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import genssl_fast
from bench.peers import import_past_init
from genssl_fast.ops import similarity
from genssl_fast.ops.similarity import (
    raw_gram_logsumexp,
    raw_gram_logsumexp_backward,
    raw_pair_logsumexp,
    raw_pair_logsumexp_backward,
    raw_sigmoid_pairs,
)
from genssl_fast.reference.contrast import losses as plain
from tests.battery import Case
from tests.ops.composite_battery import CompositeBattery

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
DIM = 5
LOOSE = {"epsilon": 0.4, "normalize": False}


def drawn(*shape, generator):
    return torch.randn(shape, generator=generator)


def rows(*counts, scalars=(), dim=DIM):
    """inputs: matrices [size + count, D] and scalars, normals and given numbers."""

    def inputs(dtype, size, generator):
        matrices = [drawn(size + count, dim, generator=generator).to(dtype) for count in counts]
        return *matrices, *(torch.tensor(s, dtype=torch.float64).to(dtype) for s in scalars)

    return inputs


def labels_for(z):
    """Classes of three, and a row on its own."""
    labels = torch.arange(len(z), device=z.device) // 3
    labels[-1] = -7
    return labels


def twin_ids(x):
    return torch.arange(len(x), device=x.device) // 2


def raw_gram(z1, z2, temperature):
    z = torch.cat([z1, z2])
    ids = torch.arange(len(z1), dtype=torch.int32).repeat(2)
    return raw_gram_logsumexp, (z, 1 / temperature, z[:, 0].contiguous(), ids, True)


def raw_gram_backward(z, temperature):
    _, arguments = raw_gram(z, z, temperature)
    log_sum, scores = raw_gram_logsumexp(*arguments)
    return raw_gram_logsumexp_backward, (torch.cos(log_sum), log_sum, scores, *arguments[:-1])


def raw_pair(image, text, scale):
    ids = torch.arange(len(image), dtype=torch.int32)
    return raw_pair_logsumexp, (image, text, scale, image[:, 0].contiguous(), None, ids, ids, True, True)


def raw_pair_backward(query, key, negatives, temperature):
    arguments = query, negatives, 1 / temperature, None, negatives[:, 0].contiguous(), None, None
    sums = raw_pair_logsumexp(*arguments, False, False)
    grads = (torch.cos(sums[0]), sums[1])
    return raw_pair_logsumexp_backward, (*grads, *sums, *arguments, True, False)


def raw_sigmoid(image, text, scale, bias):
    ids = torch.arange(len(image), dtype=torch.int32)
    return raw_sigmoid_pairs, (image, text, scale, bias, ids, ids, True)


class TestContrastive(CompositeBattery):
    cases = {
        "nt_xent": Case(
            genssl_fast.nt_xent, lambda a, b, t: plain.nt_xent(a, b, t).mean(),
            rows(2, 2, scalars=[0.3]), (0, 1, 2), raw_gram, DTYPES,
        ),
        "nt_xent_ids": Case(
            lambda a, b, t: genssl_fast.nt_xent(a, b, t, ids=twin_ids(a), **LOOSE),
            lambda a, b, t: plain.nt_xent(a, b, t, ids=twin_ids(a), **LOOSE).mean(),
            rows(3, 3, scalars=[0.9]), (0, 1, 2), None, DTYPES,
        ),
        "info_nce": Case(
            lambda q, k, n, t: genssl_fast.info_nce(q, k, t, negatives=n, in_batch=True),
            lambda q, k, n, t: plain.info_nce(q, k, t, negatives=n).mean(),
            rows(2, 2, 4, scalars=[0.5]), (0, 1, 2, 3), raw_pair_backward, DTYPES,
        ),
        "clip_loss": Case(
            genssl_fast.clip_loss, plain.clip_loss, rows(2, 2, scalars=[3.0]), (0, 1, 2), raw_pair, DTYPES
        ),
        "siglip_loss": Case(
            genssl_fast.siglip_loss, plain.siglip_loss, rows(1, 1, scalars=[2.0, -3.0]), (0, 1, 2, 3),
            raw_sigmoid, DTYPES,
        ),
        "sup_con": Case(
            lambda z, t: genssl_fast.sup_con(z, labels_for(z), t),
            lambda z, t: plain.sup_con(z, labels_for(z), t).mean(),
            rows(5, scalars=[0.3]), (0, 1), raw_gram_backward, DTYPES,
        ),
    }  # fmt: skip
    errors = {
        "z1 shape": (
            lambda: genssl_fast.nt_xent(torch.zeros(3), torch.zeros(3)),
            ValueError,
            r"z1: expected shape \[N, D\], at least \[1, 1\], got \[3\]",
        ),
        "z2 shape": (
            lambda: genssl_fast.nt_xent(torch.ones(3, 2), torch.ones(4, 2)),
            ValueError,
            r"z2: expected shape that of z1 = \[3, 2\], got \[4, 2\]",
        ),
        "dtype": (
            lambda: genssl_fast.nt_xent(torch.ones(3, 2), torch.ones(3, 2).double()),
            TypeError,
            "z2: expected the dtype of z1",
        ),
        "temperature": (
            lambda: genssl_fast.nt_xent(torch.ones(3, 2), torch.ones(3, 2), 0.0),
            ValueError,
            "temperature: expected more than 0, got 0.0",
        ),
        "temperature tensor": (
            lambda: genssl_fast.sup_con(torch.ones(3, 2), torch.zeros(3).int(), torch.tensor(-1.0)),
            ValueError,
            "temperature: expected more than 0, got -1.0",
        ),
        "temperature nan": (
            lambda: genssl_fast.info_nce(torch.ones(3, 2), torch.ones(3, 2), math.nan),
            ValueError,
            "temperature: expected a finite number, got nan",
        ),
        "zero rows": (
            lambda: genssl_fast.nt_xent(torch.ones(3, 2), torch.eye(3, 2)),
            ValueError,
            "z2: expected rows that are not zero with normalize=True, got zeros in row 2",
        ),
        "labels": (
            lambda: genssl_fast.sup_con(torch.ones(3, 2), torch.zeros(4).int()),
            ValueError,
            r"labels: expected shape \[N\] = \[3\], got \[4\]",
        ),
        "float labels": (
            lambda: genssl_fast.sup_con(torch.ones(3, 2), torch.zeros(3)),
            TypeError,
            "labels: expected integers, got torch.float32",
        ),
        "wide ids": (
            lambda: genssl_fast.nt_xent(torch.ones(1, 2), torch.ones(1, 2), ids=torch.tensor([2**40])),
            ValueError,
            "ids: expected integers of 32 bits, got 1099511627776",
        ),
        "epsilon": (
            lambda: genssl_fast.nt_xent(torch.ones(1, 2), torch.ones(1, 2), epsilon=-1.0),
            ValueError,
            "epsilon: expected a finite number, at least 0, got -1.0",
        ),
        "reduction": (
            lambda: genssl_fast.nt_xent(torch.ones(1, 2), torch.ones(1, 2), reduction="avg"),
            ValueError,
            "reduction: expected one of 'mean', 'sum', 'none', got 'avg'",
        ),
        "queue": (
            lambda: genssl_fast.moco_loss(torch.ones(3, 2), torch.ones(3, 2), torch.ones(2, 2)),
            ValueError,
            "queue: expected at least the 3 rows of a batch, got 2",
        ),
        "queue dim": (
            lambda: genssl_fast.moco_loss(torch.ones(3, 2), torch.ones(3, 2), torch.ones(4, 3)),
            ValueError,
            "queue: expected D = 2 as in query, got 3",
        ),
        "negatives": (
            lambda: genssl_fast.info_nce(torch.ones(3, 2), torch.ones(3, 2), negatives=torch.ones(4, 1, 2)),
            ValueError,
            r"negatives: expected shape \[M, D\] or \[N, M, D\] = \[3, 1, 2\], got \[4, 1, 2\]",
        ),
        "texts": (
            lambda: genssl_fast.siglip_loss(torch.ones(3, 2), torch.ones(4, 2), 1.0, 0.0),
            ValueError,
            "text: expected the 3 rows of image without text_ids, got 4",
        ),
    }


def both_gradients(function, *tensors):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*tensors)
    return value, *torch.autograd.grad(value, tensors)


def assert_same(ours, theirs, tolerance=1e-10):
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


VIEWS = st.tuples(
    st.integers(2, 9), st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([0.05, 0.3, 2.0])
)


def views(count, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, dim, dtype=torch.float64, generator=generator).unbind(0)


@settings(max_examples=25, deadline=None)
@given(VIEWS)
def test_nt_xent_is_lightly(drawn):
    count, dim, seed, temperature = drawn
    theirs = import_past_init("lightly.loss.ntx_ent_loss", "lightly.models.utils").NTXentLoss(temperature)
    pair = views(count, dim, seed)
    ours = both_gradients(lambda a, b: genssl_fast.nt_xent(a, b, temperature), *pair)
    assert_same(ours, both_gradients(theirs, *pair))


@settings(max_examples=25, deadline=None)
@given(VIEWS)
def test_decoupled_loss_is_lightly(drawn):
    count, dim, seed, temperature = drawn
    theirs = import_past_init("lightly.loss.dcl_loss").DCLLoss(temperature)
    pair = views(count, dim, seed)
    ours = both_gradients(lambda a, b: genssl_fast.nt_xent(a, b, temperature, epsilon=0), *pair)
    assert_same(ours, both_gradients(theirs, *pair))


@settings(max_examples=25, deadline=None)
@given(VIEWS)
def test_clip_and_siglip_are_open_clip(drawn):
    count, dim, seed, temperature = drawn
    peers = import_past_init("open_clip.loss")
    scale, bias = torch.tensor(1 / temperature).double(), torch.tensor(-1.5).double()
    pair = views(count, dim, seed)
    assert_same(
        both_gradients(genssl_fast.clip_loss, *pair, scale), both_gradients(peers.ClipLoss(), *pair, scale)
    )
    arguments = *pair, scale, bias
    theirs = both_gradients(peers.SigLipLoss(), *arguments)
    assert_same(both_gradients(genssl_fast.siglip_loss, *arguments), theirs)


@settings(max_examples=25, deadline=None)
@given(VIEWS, st.integers(1, 4))
def test_sup_con_is_pytorch_metric_learning(drawn, classes):
    from pytorch_metric_learning.losses import SupConLoss

    count, dim, seed, temperature = drawn
    z = torch.cat(views(count, dim, seed))
    labels = torch.arange(len(z)) % classes
    labels[0] = 99  # alone
    theirs = both_gradients(lambda z: SupConLoss(temperature)(z, labels), z)

    def ours(z):
        losses = genssl_fast.sup_con(z, labels, temperature, reduction="none")
        return losses.sum() / (losses > 0).sum().clamp_min(1)  # its reducer's mean of what is above 0

    assert_same(both_gradients(ours, z), theirs)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 100.0])
def test_any_temperature_is_finite(temperature, epsilon):
    z = torch.randn(70, 8)
    z[10:20] = z[10]  # duplicated rows
    found = both_gradients(lambda a, b: genssl_fast.nt_xent(a, b, temperature, epsilon=epsilon), z, z.flip(1))
    assert all(torch.isfinite(f).all() for f in found)


def test_small_losses_keep_their_digits():
    """A loss of 1e-20, which log-sum-exp minus positive rounds to 0."""
    x = torch.eye(4)
    loss = genssl_fast.info_nce(x, x, 1 / 47.0)
    torch.testing.assert_close(loss, torch.tensor(math.log1p(3 * math.exp(-47.0))), rtol=1e-5, atol=0)


def test_a_single_pair():
    x = torch.randn(1, 4)
    for loss in (genssl_fast.nt_xent, genssl_fast.info_nce, lambda a, b: genssl_fast.clip_loss(a, b, 9.0)):
        value, *grads = both_gradients(loss, x, x + 1)
        assert value == (math.log(1) if loss is not genssl_fast.nt_xent else 0)
        assert all((g == 0).all() for g in grads)


def test_learnable_temperature_with_masked_negatives():
    z = torch.randn(6, 4)
    ids = torch.zeros(6, dtype=torch.int64)  # every negative is left out
    value, *grads = both_gradients(
        lambda a, b, t: genssl_fast.nt_xent(a, b, t, ids=ids), z, -z, torch.tensor(0.1)
    )
    assert value == 0
    assert all((g == 0).all() for g in grads)


def test_rows_without_positives():
    z = torch.randn(5, 4)
    labels = torch.tensor([0, 1, 2, 3, 4])
    value, grad = both_gradients(lambda z: genssl_fast.sup_con(z, labels), z)
    assert value == 0
    assert (grad == 0).all()


def test_temperature_of_each_sample():
    a, b = views(7, 4, 3)
    temperature = torch.linspace(0.1, 0.9, 7).double()
    ours = both_gradients(lambda a, b, t: genssl_fast.nt_xent(a, b, t), a, b, temperature)
    assert_same(ours, both_gradients(lambda a, b, t: plain.nt_xent(a, b, t).mean(), a, b, temperature))
    ours = both_gradients(lambda a, b, t: genssl_fast.info_nce(a, b, t), a, b, temperature)
    assert_same(ours, both_gradients(lambda a, b, t: plain.info_nce(a, b, t).mean(), a, b, temperature))


def test_symmetric_info_nce_is_clip():
    a, b = views(6, 4, 0)
    found = genssl_fast.info_nce(a, b, 0.2, symmetric=True, normalize=False)
    torch.testing.assert_close(found, genssl_fast.clip_loss(a, b, 5.0))


def test_negatives_of_each_query():
    a, b = views(6, 4, 0)
    negatives = torch.randn(6, 3, 4, dtype=torch.float64)
    ours = both_gradients(lambda a, b, n: genssl_fast.info_nce(a, b, 0.2, negatives=n), a, b, negatives)

    def formula(a, b, n):
        """info-nce-pytorch 0.1.4, negative_mode="paired", transcribed."""
        a, b, n = (functional.normalize(t, dim=-1) for t in (a, b, n))
        positive, negative = (a * b).sum(1, keepdim=True), (a[:, None] @ n.mT)[:, 0]
        logits = torch.cat([positive, negative], 1) / 0.2
        return functional.cross_entropy(logits, torch.zeros(len(a), dtype=torch.int64))

    assert_same(ours, both_gradients(formula, a, b, negatives))


def test_queue_has_no_gradient_and_any_order():
    query, key = (functional.normalize(t) for t in views(4, 3, 1))
    queue = functional.normalize(torch.randn(9, 3, dtype=torch.float64)).requires_grad_()
    query, key = query.requires_grad_(), key.requires_grad_()
    loss = genssl_fast.moco_loss(query, key, queue)
    loss.backward()
    assert query.grad is not None
    assert key.grad is None
    assert queue.grad is None
    torch.testing.assert_close(genssl_fast.moco_loss(query, key, queue.roll(4, 0)), loss)
    expected = plain.info_nce(query, key, 0.07, negatives=queue, in_batch=False).mean()
    torch.testing.assert_close(loss, expected)


def test_several_positives_of_siglip():
    image, text = views(6, 4, 5)
    image_ids, text_ids = torch.tensor([0, 0, 1, 2, 3, 9]), torch.tensor([0, 1, 1, 2, 7])
    scale, bias = torch.tensor(3.0).double(), torch.tensor(-1.0).double()
    arguments = image, text[:5], scale, bias
    ids = {"image_ids": image_ids, "text_ids": text_ids}
    ours = both_gradients(lambda *a: genssl_fast.siglip_loss(*a, **ids), *arguments)
    assert_same(ours, both_gradients(lambda *a: plain.siglip_loss(*a, **ids), *arguments))


def test_bias_of_clip_has_no_gradient():
    a, b = views(4, 3, 0)
    bias = torch.tensor(-3.0, requires_grad=True)
    loss = genssl_fast.clip_loss(a, b, 5.0, bias)
    loss.backward()
    assert bias.grad == 0
    torch.testing.assert_close(loss, genssl_fast.clip_loss(a, b, 5.0))


def saved_bytes(function, *tensors) -> int:
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(*(t.requires_grad_() for t in tensors))
    return sum(sizes.values())


USER_PSI = genssl_fast.Psi(lambda u: torch.log1p(u * u))
LOSSES = {
    "nt_xent": lambda a, b: genssl_fast.nt_xent(a, b),
    "info_nce": lambda a, b: genssl_fast.info_nce(a, b, symmetric=True),
    "clip_loss": lambda a, b: genssl_fast.clip_loss(a, b, 10.0),
    "siglip_loss": lambda a, b: genssl_fast.siglip_loss(a, b, 10.0, -10.0),
    "sup_con": lambda a, b: genssl_fast.sup_con(a, torch.arange(len(a)) % 7) + b.sum(),
    "hinge": lambda a, b: genssl_fast.generalized_contrastive(a, b, "identity", "hinge"),
    "soft triplet": lambda a, b: genssl_fast.generalized_contrastive(a, b, margin=0.1),
    "user's": lambda a, b: genssl_fast.generalized_contrastive(a, b, "log", USER_PSI),
}


@pytest.mark.parametrize("name", LOSSES)
def test_saved_memory_is_linear(name):
    half, whole = (saved_bytes(LOSSES[name], torch.randn(n, 8), torch.randn(n, 8)) for n in (500, 1000))
    assert whole < 2.1 * half
    assert whole < 1000 * 1000 * 4 / 4  # a quarter of the matrix


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "clip_loss", "sup_con", "soft triplet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_scores_change_no_bit(monkeypatch, name, dtype):
    """Computed again or read where the forward pass kept them, scores and so gradients are the same."""
    z1, z2 = (torch.randn(217, 20, dtype=dtype, requires_grad=True) for _ in range(2))
    found = []
    for number in (0, 10**6):
        monkeypatch.setattr(similarity, "SCORES_PER_NUMBER", number)
        kept = saved_bytes(LOSSES[name], z1, z2)
        found.append((kept, *torch.autograd.grad(LOSSES[name](z1, z2), (z1, z2))))
    (without, *computed), (with_scores, *read) = found
    assert with_scores - without > 216 * 217 * z1.element_size()
    assert all(torch.equal(a, b) for a, b in zip(computed, read))


@pytest.mark.parametrize("name", LOSSES)
def test_blocks_of_every_shape(name):
    """Sizes around those of blocks and panels, against fp64."""
    for count, dim in ((31, 33), (97, 16), (200, 64), (1600, 3)):
        a, b = views(count, dim, 7)
        a, b = functional.normalize(a), functional.normalize(b)
        exact = both_gradients(LOSSES[name], a, b)
        found = both_gradients(LOSSES[name], a.float(), b.float())
        for ours, true in zip(found, exact):
            assert (ours - true).abs().max() <= 2e-5 * true.abs().max()


MANY = 40_000  # rows whose sum PyTorch splits among threads
OF_MANY_ROWS = {
    "rows": ((MANY, 2), lambda a, b, t: genssl_fast.info_nce(a, b, t, negatives=a[:9], in_batch=False)),
    "own negatives": (
        (MANY // 8, 2),
        lambda a, b, t: genssl_fast.info_nce(a, b, t, negatives=b.view(-1, 1, 2).expand(-1, 9, -1)),
    ),
    "classes": (
        (1000, 64),
        lambda a, b, t: genssl_fast.sup_con(a + b, torch.arange(len(a)) % 7, t, base_temperature=0.07),
    ),
    "hinge": (
        (600, 64),
        lambda a, b, t: genssl_fast.generalized_contrastive(a, b, "identity", "hinge", temperature=t),
    ),
    "distances": ((600, 64), lambda a, b, t: genssl_fast.info_nce_distance(a, b, t)),
}


@pytest.mark.parametrize("name", OF_MANY_ROWS)
def test_same_bits_for_any_number_of_threads(name):
    """Also the gradients of numbers; and in every run, where atomics would add up those of an index."""
    (shape, loss), found = OF_MANY_ROWS[name], []
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 3, 3, 3):
            torch.set_num_threads(count)
            found.append(both_gradients(loss, a, b, torch.tensor(0.7)))
    finally:
        torch.set_num_threads(threads)
    for again in found[1:]:
        assert all(map(torch.equal, found[0], again))


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b, t: genssl_fast.nt_xent(a, b, t),
        lambda a, b, t: genssl_fast.generalized_contrastive(a, b, "identity", "hinge", margin=t),
        lambda a, b, t: genssl_fast.barlow_twins(a, b, weight=t),
        lambda a, b, t: genssl_fast.vicreg(a, b, variance=t),
    ],
)
def test_compiled_with_a_number_that_changes(loss):
    """From the second value on torch.compile takes it for a symbol."""
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    a, b = views(5, 4, 0)
    for number in (0.5, 0.4, 0.3):
        torch.testing.assert_close(compiled(a, b, number), loss(a, b, number))


def test_negatives_of_each_query_keep_their_digits_under_autocast():
    query, key, negatives = torch.randn(6, 16), torch.randn(6, 16), torch.randn(6, 5, 16)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(genssl_fast.info_nce(query, key, negatives=negatives))
    assert torch.equal(*found)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_bound_on_mutual_information(correlation):
    """log N − InfoNCE is at most log N and, in expectation, the mutual information."""
    generator, dim, count = torch.Generator().manual_seed(0), 2, 2048
    x, noise = torch.randn(2, count, dim, generator=generator, dtype=torch.float64).unbind(0)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    # The optimal critic, log p(y | x) / p(y) up to a function of x, is a product of features.
    variance = 1 - correlation**2
    queries = torch.cat([x * correlation / variance, torch.ones(count, 1).double()], 1)
    keys = torch.cat([y, -0.5 * correlation**2 / variance * (y * y).sum(1, keepdim=True)], 1)
    loss = genssl_fast.info_nce(queries, keys, 1.0, normalize=False)
    information = -0.5 * dim * math.log(1 - correlation**2) if correlation else 0.0
    bound = math.log(count) - loss
    assert bound <= min(math.log(count), information + 0.1)
    assert bound >= information - 0.2
