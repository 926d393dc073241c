"""Random numbers: published vectors, addresses, agreement with the reference, moments, bad input."""

import math

import pytest
import torch

import genssl_fast
from genssl_fast import Stream, step_counter
from genssl_fast.ops.random import fill_random
from genssl_fast.reference.random import philox4x32, random_values
from tests.battery import DEVICES

FUNCTIONS = {
    0: genssl_fast.random_uniform,
    1: genssl_fast.random_normal,
    2: genssl_fast.random_rademacher,
}
# kat_vectors of Random123: counter, key, words.
KNOWN = [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_reference_known_answers(counter, key, words):
    found = philox4x32(tuple(torch.tensor(c) for c in counter), tuple(key))
    assert " ".join(f"{int(word):08x}" for word in found) == words


@pytest.mark.parametrize("device", DEVICES)
def test_operation_known_answer(device):
    """The uniforms of block 0, step 0, sample 0 under seed 0 are the published words."""
    words = torch.tensor([int(word, 16) for word in KNOWN[0][2].split()])
    found = genssl_fast.random_uniform((1, 4), seed=0, device=device)
    assert torch.equal(found[0].cpu(), (words.float() + 0.5) * 2.0**-32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distribution", FUNCTIONS)
@pytest.mark.parametrize(
    "shape", [(1,), (7,), (100, 1), (33, 2), (5, 3), (3, 4, 5), (2, 1000), (0, 3), (3, 0), (1, 4099)]
)
def test_equals_reference(distribution, shape, device):
    address = dict(seed=2**63 + 17, step=step_counter(Stream.PROBE, 9), first_sample=2**32 - 2)
    found = FUNCTIONS[distribution](shape, **address, device=device).cpu()
    expected = random_values(distribution, shape, -(2**63) + 17, address["step"], 2**32 - 2)
    if distribution == 1:
        assert_within_ulp(found, expected, 4)
    else:
        assert torch.equal(found, expected)


def assert_within_ulp(found, expected, ulps):
    spacing = torch.nextafter(expected.abs(), torch.tensor(math.inf)) - expected.abs()
    assert found.shape == expected.shape
    if found.numel():
        assert ((found - expected).abs() / spacing).max() <= ulps


def test_batch_split_and_threads_change_nothing():
    whole = genssl_fast.random_normal((1000, 37), seed=5)
    parts = [genssl_fast.random_normal((n, 37), seed=5, first_sample=s) for n, s in ((1, 0), (999, 1))]
    assert torch.equal(whole, torch.cat(parts))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(whole, genssl_fast.random_normal((1000, 37), seed=5))
    torch.set_num_threads(threads)


def test_prefix_of_elements():
    """An element's number does not depend on how many follow it."""
    long = genssl_fast.random_normal((3, 1001), seed=5)
    assert torch.equal(long[:, :10], genssl_fast.random_normal((3, 10), seed=5))
    assert torch.equal(long.reshape(3, 7, 143), genssl_fast.random_normal((3, 7, 143), seed=5))


def test_dtypes():
    narrow = genssl_fast.random_normal((9, 101), seed=3)
    assert torch.equal(genssl_fast.random_normal((9, 101), seed=3, dtype=torch.float64), narrow.double())
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(genssl_fast.random_normal((9, 101), seed=3, dtype=dtype), narrow.to(dtype))


def test_moments_and_tails():
    z = genssl_fast.random_normal((1000, 1000), seed=1).double()
    n = z.numel()
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert abs((z > 3).double().mean() - 0.00134990) < 5 * math.sqrt(0.00135 / n)
    pairs = (z[:, :-1] * z[:, 1:]).mean()
    assert abs(pairs) < 5 / math.sqrt(n)
    u = genssl_fast.random_uniform((1000, 1000), seed=1)
    assert u.min() > 0
    assert u.max() <= 1
    r = genssl_fast.random_rademacher((1000, 1000), seed=1).double()
    assert torch.equal(r.abs(), torch.ones_like(r))
    assert abs(r.mean()) < 5 / math.sqrt(n)


def test_streams_and_seeds_differ():
    base = genssl_fast.random_uniform((4, 100), seed=1, step=step_counter(Stream.STEP, 1))
    others = [
        genssl_fast.random_uniform((4, 100), seed=2, step=step_counter(Stream.STEP, 1)),
        genssl_fast.random_uniform((4, 100), seed=1 + 2**32, step=step_counter(Stream.STEP, 1)),
        genssl_fast.random_uniform((4, 100), seed=1, step=step_counter(Stream.STEP, 2)),
        genssl_fast.random_uniform((4, 100), seed=1, step=step_counter(Stream.PRIOR, 1)),
        genssl_fast.random_uniform((4, 100), seed=1, step=step_counter(Stream.STEP, 1), first_sample=4),
        genssl_fast.random_uniform((4, 100), seed=1, step=step_counter(Stream.STEP, 1), first_sample=2**32),
    ]
    assert all((base != other).float().mean() > 0.9 for other in others)


def test_seed_none_follows_the_default_generator():
    torch.manual_seed(3)
    first = genssl_fast.random_normal((2, 5))
    second = genssl_fast.random_normal((2, 5))
    torch.manual_seed(3)
    assert torch.equal(first, genssl_fast.random_normal((2, 5)))
    assert not torch.equal(first, second)


def test_compiled_seed_tensor_gives_fresh_noise():
    compiled = torch.compile(
        lambda seed, step: genssl_fast.random_normal((3, 5), seed=seed, step=step), fullgraph=True
    )
    for seed, step in ((1, 2), (3, 2), (1, 4)):
        found = compiled(torch.tensor(seed), torch.tensor(step))
        assert torch.equal(found, genssl_fast.random_normal((3, 5), seed=seed, step=step))


def test_opcheck():
    torch.library.opcheck(fill_random, (torch.empty(3, 5), 1, 7, None, 3, torch.tensor(4), 5))


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        (dict(seed=1.0), TypeError, "seed: expected an int, an int64 tensor or None, got float"),
        (dict(seed=torch.tensor(1.0)), TypeError, "seed: expected an int64 tensor with one element"),
        (dict(step=2**32), ValueError, "step: expected an integer in"),
        (dict(step=-1), ValueError, "step: expected"),
        (dict(first_sample=-1), ValueError, "first_sample: expected an integer of at least 0"),
        (dict(dtype=torch.int32), ValueError, "dtype: expected one of"),
        (dict(shape=(-1, 2)), ValueError, "shape: expected sizes of at least 0"),
        (dict(shape=()), ValueError, "shape: expected at least one dimension"),
    ],
)
def test_bad_input(options, exception, message):
    with pytest.raises(exception, match=message):
        genssl_fast.random_normal(options.pop("shape", (2, 2)), **options)
