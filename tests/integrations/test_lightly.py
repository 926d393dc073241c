"""lightly's losses against ours: values, gradients, memory banks and errors."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.peers import import_past_init
from genssl_fast.integrations import lightly as ours
from tests.integrations.losses import drawn, drawn_examples, same_loss, seeds
from tests.integrations.parity import agree

try:
    ntx_ent = import_past_init("lightly.loss.ntx_ent_loss", "lightly.models.utils")
    dcl = import_past_init("lightly.loss.dcl_loss", "lightly.models.utils")
    barlow = import_past_init("lightly.loss.barlow_twins_loss")
    vicreg = import_past_init("lightly.loss.vicreg_loss")
    swav = import_past_init("lightly.loss.swav_loss")
except ModuleNotFoundError:
    pytest.skip("lightly is not installed", allow_module_level=True)

sizes = st.integers(2, 9)
temperatures = st.floats(0.03, 3.0) | st.floats(-3.0, -0.1)


def views(count, length, seed):
    return drawn(count, length, seed=seed), drawn(count, length, seed=seed + 1)


@drawn_examples
@given(count=st.integers(1, 9), length=sizes, seed=seeds(), temperature=temperatures)
def test_nt_xent(count, length, seed, temperature):
    losses = [module.NTXentLoss(temperature) for module in (ours, ntx_ent)]
    same_loss(*losses, *views(count, length, seed))


@drawn_examples
@given(count=sizes, length=sizes, seed=seeds(), temperature=temperatures, sigma=st.floats(0.1, 2.0))
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_dcl(count, length, seed, temperature, sigma):
    def distances(out0, out1):
        return (out0 - out1).square().sum(1)

    pair = views(count, length, seed)
    for options in ({}, {"weight_fn": distances}):
        same_loss(*(module.DCLLoss(temperature, **options) for module in (ours, dcl)), *pair)
    same_loss(*(module.DCLWLoss(temperature, sigma) for module in (ours, dcl)), *pair)


@pytest.mark.parametrize("size", [1, 3, 8, 17])
def test_memory_bank(size):
    pair = []
    for module in (ours, ntx_ent):
        torch.manual_seed(0)
        pair.append(module.NTXentLoss(0.2, memory_bank_size=(size, 5)))
    agree(pair[0].memory_bank.bank, pair[1].memory_bank.bank, 0)
    for step in range(7):
        out0, out1 = (x.float() for x in views(4, 5, step))
        same_loss(*pair, out0, out1, tolerance=3e-6)
        agree(*(loss(out0, out1) for loss in pair), 3e-6)  # without a gradient: the bank stays
        agree(pair[0].memory_bank.bank, pair[1].memory_bank.bank, 1e-6)
        assert torch.equal(pair[0].memory_bank.bank_ptr, pair[1].memory_bank.bank_ptr)
    assert pair[0].state_dict().keys() == pair[1].state_dict().keys()


@drawn_examples
@given(count=sizes, length=st.integers(1, 24), seed=seeds(), weight=st.floats(0.0, 2.0))
def test_barlow_twins(count, length, seed, weight):
    losses = [module.BarlowTwinsLoss(weight) for module in (ours, barlow)]
    same_loss(*losses, *views(count, length, seed), tolerance=1e-8)


@drawn_examples
@given(
    count=sizes, positions=st.none() | st.integers(1, 3), length=st.integers(1, 24), seed=seeds(),
    weights=st.tuples(*[st.floats(0.0, 30.0)] * 3), eps=st.floats(1e-6, 1e-2), scale=st.floats(0.1, 3.0),
)  # fmt: skip
def test_vicreg(count, positions, length, seed, weights, eps, scale):
    shape = (count, length) if positions is None else (count, positions, length)
    pair = [drawn(*shape, seed=seed + i, scale=scale) for i in range(2)]
    same_loss(*(module.VICRegLoss(*weights, eps=eps) for module in (ours, vicreg)), *pair, tolerance=1e-8)


@pytest.mark.parametrize("shapes", [((1, 3), (1, 3)), ((4, 3), (4, 2)), ((4, 3), (5, 3))])
def test_shapes_of_vicreg(shapes):
    for module in (ours, vicreg):
        with pytest.raises(AssertionError, match="z_a and z_b"):
            module.VICRegLoss()(*map(torch.ones, shapes))


@drawn_examples
@given(
    count=st.integers(1, 9), prototypes=st.integers(1, 9), high=st.integers(1, 3), low=st.integers(0, 2),
    queue=st.integers(0, 4), seed=seeds(), temperature=st.floats(0.05, 2), iterations=st.integers(0, 5),
    epsilon=st.floats(0.03, 1),
)  # fmt: skip
def test_swav(count, prototypes, high, low, queue, seed, temperature, iterations, epsilon):
    low = max(low, 2 - high)
    crops = drawn(high + low, count, prototypes, seed=seed)
    queues = drawn(high, queue, prototypes, seed=seed + 1) if queue else None

    def call(module):
        loss = module.SwaVLoss(temperature, iterations, epsilon)
        return lambda *crops: loss(list(crops[:high]), list(crops[high:]), queues)

    same_loss(call(ours), call(swav), *crops, tolerance=1e-8)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (1, 0)])
def test_swav_of_too_few_crops(counts):
    crops = ([torch.zeros(2, 3)] * count for count in counts)
    with pytest.raises(
        ValueError, match="high_resolution_outputs: expected at least one, and two crops in all"
    ):
        ours.SwaVLoss()(*crops)


def test_swav_of_large_similarities():
    crops = list(10 * drawn(2, 6, 4, seed=0).float())
    assert ours.SwaVLoss(sinkhorn_epsilon=0.04)(crops, []).isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 1e-9, -1e-9])
def test_temperatures_near_zero(temperature):
    for module in (ours, ntx_ent):
        with pytest.raises(ValueError, match="temperature"):
            module.NTXentLoss(temperature)


@pytest.mark.parametrize("size", [4, -1, (4, -1), (4, 5, 6)])
def test_sizes_of_banks(size):
    for module in (ours, ntx_ent):
        with pytest.raises(ValueError, match="size"):
            module.NTXentLoss(memory_bank_size=size)


@pytest.mark.parametrize("size", [-1, (4, -1)])
def test_negative_sizes_have_the_words_of_lightly(size):
    for module in (ours, ntx_ent):
        with pytest.raises(
            ValueError, match=re.escape(f"Illegal memory bank size {size}, all entries must be")
        ):
            module.MemoryBankModule(size)


def test_shapes_of_views():
    with pytest.raises(ValueError, match="out1"):
        ours.NTXentLoss()(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="out0: expected D = 5"):
        ours.NTXentLoss(memory_bank_size=(8, 5))(torch.ones(3, 2), torch.ones(3, 2))


def test_rows_of_zeros():
    x, y = views(4, 3, 0)
    x[1] = 0
    same_loss(ours.NTXentLoss(), ntx_ent.NTXentLoss(), x, y)


def test_a_learnable_temperature():
    def loss(module, x, y, temperature):
        made = module.NTXentLoss(0.3)
        made.temperature = temperature
        return made(x, y)

    inputs = (*views(5, 4, 1), torch.tensor(0.3, dtype=torch.float64))
    same_loss(*(lambda *a, m=m: loss(m, *a) for m in (ours, ntx_ent)), *inputs)
