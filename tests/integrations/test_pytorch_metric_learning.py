"""pytorch-metric-learning's NT-Xent and SupCon against ours: values and gradients over options."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genssl_fast.integrations import pytorch_metric_learning as ours
from tests.integrations.losses import drawn, drawn_examples, same_loss, seeds

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

over_losses = pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
sizes = st.integers(1, 9)
temperatures = st.floats(0.05, 3.0) | st.floats(-3.0, -0.1)

REDUCERS = {
    "default": None,
    "mean": reducers.MeanReducer(),
    "sum": reducers.SumReducer(),
    "threshold": reducers.ThresholdReducer(low=0.5, high=4.0),
    "average of those above 0": reducers.AvgNonZeroReducer(),
    "weighted": reducers.ClassWeightedReducer(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)),
    "of anchors": reducers.PerAnchorReducer(),
    "several": reducers.MultipleReducers({"loss": reducers.SumReducer()}),
}


def labels_of(count, seed, classes=3):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def same(name, options, x, *arguments, temperature=0.2, **keywords):
    """Both libraries' losses of embeddings, with gradients of all that has some."""
    made = [getattr(module, name)(temperature, **options) for module in (ours, losses)]
    reference = keywords.pop("ref_emb", None)
    if reference is None:
        same_loss(*(lambda x, loss=loss: loss(x, *arguments, **keywords) for loss in made), x)
    else:
        same_loss(
            *(lambda x, y, loss=loss: loss(x, *arguments, ref_emb=y, **keywords) for loss in made),
            x, reference,
        )  # fmt: skip


@drawn_examples
@given(count=sizes, length=sizes, classes=st.integers(1, 6), seed=seeds(), temperature=temperatures)
@over_losses
def test_labels(name, count, length, classes, seed, temperature):
    x, labels = drawn(count, length, seed=seed), labels_of(count, seed, classes)
    same(name, {}, x, labels, temperature=temperature)


@drawn_examples
@given(
    count=sizes, others=sizes, length=sizes, classes=st.integers(1, 6), seed=seeds(), temperature=temperatures
)
@over_losses
def test_references(name, count, others, length, classes, seed, temperature):
    x, y = drawn(count, length, seed=seed), drawn(others, length, seed=seed + 1)
    labels, of_others = labels_of(count, seed, classes), labels_of(others, seed + 1, classes)
    same(name, {}, x, labels, ref_emb=y, ref_labels=of_others, temperature=temperature)
    if count == others:
        same(name, {}, x, labels, ref_emb=y, ref_labels=labels, temperature=temperature)
        same(name, {}, x, labels, ref_emb=y, temperature=temperature)


@drawn_examples
@given(count=st.integers(2, 9), length=sizes, seed=seeds(), number=st.integers(0, 12), tuples=st.booleans())
@over_losses
def test_given_pairs(name, count, length, seed, number, tuples):
    x, labels = drawn(count, length, seed=seed), labels_of(count, seed)
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(count, (4, number), generator=generator)
    if name == "SupConLoss":  # which asserts that no pair is positive and negative
        alike = labels[pairs[0]] == labels[pairs[1]]
        differ = labels[pairs[2]] != labels[pairs[3]]
        pairs = (*pairs[:2, alike], *pairs[2:, differ])
    given_tuple = tuple(pairs)
    if tuples and name == "NTXentLoss":
        given_tuple = given_tuple[:3]
    same(name, {}, x, labels, given_tuple)
    same(name, {}, x, None, given_tuple)
    same(name, {}, x, labels, given_tuple, ref_emb=x.flip(1))


@pytest.mark.parametrize("miner", [miners.MultiSimilarityMiner(), miners.TripletMarginMiner(margin=0.4)])
@over_losses
def test_miners(name, miner):
    x, labels = drawn(12, 4, seed=0), labels_of(12, 0)
    same(name, {}, x, labels, miner(x, labels))


@pytest.mark.parametrize("reducer", REDUCERS)
@over_losses
def test_reducers(name, reducer):
    x, labels = drawn(10, 4, seed=1), labels_of(10, 1)
    same(name, {"reducer": REDUCERS[reducer]}, x, labels)
    same(name, {"reducer": REDUCERS[reducer]}, x[:2], labels[:2])


@over_losses
def test_a_reducer_that_does_nothing(name):
    x, labels = drawn(10, 4, seed=1), labels_of(10, 1)
    made = [getattr(module, name)(reducer=reducers.DoNothingReducer()) for module in (ours, losses)]
    mine, others = (loss(x, labels)["loss"] for loss in made)
    assert mine["reduction_type"] == others["reduction_type"]
    torch.testing.assert_close(mine["losses"], others["losses"])
    torch.testing.assert_close(mine["indices"], others["indices"])


@pytest.mark.parametrize("reducer", ["default", "sum", "several"])
@over_losses
def test_regularizers(name, reducer):
    options = {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3}
    x, labels = drawn(10, 4, seed=2), labels_of(10, 2)
    same(name, {"reducer": REDUCERS[reducer], **options}, x, labels)
    same(name, {"reducer": REDUCERS[reducer], **options}, x[:1], labels[:1])


@pytest.mark.parametrize(
    "distance",
    [
        distances.CosineSimilarity(),
        distances.DotProductSimilarity(),
        distances.DotProductSimilarity(normalize_embeddings=False),
        distances.DotProductSimilarity(p=1),
    ],
)
@over_losses
def test_distances(name, distance):
    same(name, {"distance": distance}, drawn(10, 4, seed=3), labels_of(10, 3), temperature=0.7)


@pytest.mark.parametrize(
    "distance",
    [
        distances.LpDistance(),
        distances.LpDistance(normalize_embeddings=False, power=2),
        distances.CosineSimilarity(power=2),
        distances.SNRDistance(),
    ],
)
@over_losses
def test_distances_of_all_pairs(name, distance):
    options, x, y, labels = {"distance": distance}, *drawn(2, 10, 4, seed=3), labels_of(10, 3)
    same(name, options, x, labels, temperature=0.7)
    same(name, options, x, labels_of(10, 5, classes=9))  # some rows without positives
    same(name, options, x, labels, ref_emb=y, ref_labels=labels_of(10, 4))
    same(name, options, x, labels, ref_emb=y)
    same(name, options, x, None, miners.TripletMarginMiner(margin=0.4)(x, labels))
    for one_class in (labels.new_zeros(10), torch.arange(10)):
        same(name, options, x, one_class)


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.01])
def test_solved_rows_count_as_there(temperature, copies):
    """The mean is over losses above 0; of a row that finds its one positive it is 0 in fp32, not noise."""
    centers = drawn(20, 64, seed=0).repeat_interleave(copies, 0)
    x = (centers + 0.05 * drawn(20 * copies, 64, seed=1)).float()
    x[:8] = drawn(8, 64, seed=2).float()  # have not found theirs
    labels = torch.arange(20).repeat_interleave(copies)
    found = []
    for module in (ours, losses):
        z = x.clone().requires_grad_()
        loss = module.SupConLoss(temperature)(z, labels)
        found.append((loss, *torch.autograd.grad(loss, z)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distance", [None, distances.LpDistance()])
@over_losses
def test_embeddings_that_are_their_own_references(name, distance):
    """Rows are their own positives, unless the labels are the very same tensor as well."""
    x, labels = drawn(8, 4, seed=9), labels_of(8, 9)
    made = [getattr(module, name)(0.3, distance=distance) for module in (ours, losses)]
    for others in (labels, labels.clone(), labels_of(8, 10)):
        same_loss(
            *(
                lambda x, loss=loss, others=others: loss(x, labels, ref_emb=x, ref_labels=others)
                for loss in made
            ),
            x,
        )


@pytest.mark.parametrize("labels", [torch.tensor([2**40, 2**40, 5, -1]), torch.tensor([0.5, 0.5, 1.5, 1.5])])
@over_losses
def test_labels_of_any_dtype(name, labels):
    same(name, {}, drawn(4, 3, seed=4), labels)


@over_losses
def test_wrappers(name):
    x, y = drawn(6, 4, seed=5), drawn(6, 4, seed=6)
    for symmetric in (True, False):
        made = [losses.SelfSupervisedLoss(getattr(m, name)(), symmetric=symmetric) for m in (ours, losses)]
        same_loss(*made, x, y)
    made = [losses.CrossBatchMemory(getattr(m, name)(), 4, memory_size=9) for m in (ours, losses)]
    for step in range(4):
        labels = labels_of(6, step)
        same_loss(
            *(lambda x, loss=loss, labels=labels: loss(x, labels) for loss in made),
            drawn(6, 4, seed=step), tolerance=1e-6,
        )  # fmt: skip


def test_pairs_in_parts(monkeypatch):
    monkeypatch.setattr(ours, "PRODUCTS_AT_ONCE", 20)
    same("NTXentLoss", {}, drawn(12, 4, seed=7), labels_of(12, 7))


def test_memory_is_linear():
    """As in issue 547 of pytorch-metric-learning, whose own loss takes N³ numbers."""
    x = torch.randn(1200, 32, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        ours.SupConLoss()(x, torch.arange(1200) % 10).backward()
    assert max(sizes) <= 1200 * 33
    ours.NTXentLoss()(x, torch.arange(1200) % 10).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("reducer", ["default", "sum", "several"])
@over_losses
def test_no_embeddings(name, reducer):
    options = {"reducer": REDUCERS[reducer]}
    same(name, options, drawn(0, 4, seed=0), labels_of(0, 0))
    same(
        name,
        options,
        drawn(0, 4, seed=0),
        labels_of(0, 0),
        ref_emb=drawn(3, 4, seed=0),
        ref_labels=labels_of(3, 0),
    )


@over_losses
def test_errors(name):
    loss, x = getattr(ours, name)(), torch.eye(3)
    with pytest.raises(ValueError, match="labels and indices_tuple cannot both be None"):
        loss(x)
    with pytest.raises(ValueError, match="labels: expected one for each of 3 embeddings"):
        loss(x, torch.arange(2))
    with pytest.raises(ValueError, match="labels: expected a 1D tensor"):
        loss(x, torch.ones(3, 3))
    with pytest.raises(ValueError, match="ref_labels"):
        loss(x, torch.arange(3), ref_emb=torch.ones(2, 3))
    with pytest.raises(NotImplementedError, match="collect_stats"):
        getattr(ours, name)(collect_stats=True)
    with pytest.raises(TypeError, match="unknown"):
        getattr(ours, name)(unknown=1)
