"""Permutations and squeezing: the battery, nflows, normflows, bad input."""

import pytest
import torch

import genssl_fast
from tests.battery import Case
from tests.ops.composite_battery import CompositeBattery

ORDER = torch.tensor([2, 0, 3, 1])


def images(dtype, size, generator):
    return (torch.randn(size, 4, 6, 2, generator=generator).to(dtype),)


class TestPermute(CompositeBattery):
    cases = {
        "forward": Case(
            lambda x: genssl_fast.permute(x, ORDER.to(x.device)),
            lambda x: torch.stack([x[:, i] for i in ORDER.tolist()], 1),
            images,
        ),
        "inverse": Case(
            lambda x: genssl_fast.permute(x, ORDER.to(x.device), inverse=True),
            lambda x: torch.stack([x[:, ORDER.tolist().index(i)] for i in range(4)], 1),
            images,
        ),
    }
    errors = {
        "repeated": (
            lambda: genssl_fast.permute(torch.zeros(2, 3), torch.tensor([0, 1, 1])),
            ValueError,
            r"permutation: expected the numbers 0 to 2 in any order, got \[0, 1, 1\]",
        ),
        "short": (
            lambda: genssl_fast.permute(torch.zeros(2, 3), torch.tensor([0, 1])),
            ValueError,
            r"permutation: expected shape \[C\] = \[3\], got \[2\]",
        ),
        "dtype": (
            lambda: genssl_fast.permute(torch.zeros(2, 2), torch.zeros(2)),
            TypeError,
            "permutation: expected dtype int64",
        ),
        "rank": (lambda: genssl_fast.permute(torch.zeros(2), ORDER), ValueError, "x: expected shape"),
    }


class TestSqueeze2d(CompositeBattery):
    cases = {
        "forward": Case(
            lambda x: genssl_fast.squeeze2d(x),
            lambda x: torch.stack([x[:, c, i::2, j::2] for c in range(4) for i in (0, 1) for j in (0, 1)], 1),
            images,
        ),
        "inverse": Case(
            lambda x: genssl_fast.squeeze2d(x, inverse=True),
            lambda x: torch.stack(
                [torch.stack([x[:, 0], x[:, 1]], -1), torch.stack([x[:, 2], x[:, 3]], -1)], 2
            ).reshape(len(x), 1, 12, 4),
            images,
        ),
    }
    errors = {
        "odd": (
            lambda: genssl_fast.squeeze2d(torch.zeros(1, 1, 3, 4)),
            ValueError,
            r"x: expected height and width divisible by factor = 2, got \[3, 4\]",
        ),
        "channels": (
            lambda: genssl_fast.squeeze2d(torch.zeros(1, 6, 2, 2), inverse=True),
            ValueError,
            "x: expected channels divisible by factor² = 4, got 6",
        ),
        "rank": (lambda: genssl_fast.squeeze2d(torch.zeros(1, 4, 4)), ValueError, "x: expected shape"),
        "factor": (
            lambda: genssl_fast.squeeze2d(torch.zeros(1, 1, 4, 4), 0),
            ValueError,
            "factor: expected an integer of at least 1, got 0",
        ),
    }


def test_squeeze_equals_nflows_and_normflows():
    reshape = pytest.importorskip("nflows.transforms.reshape")
    normflows = pytest.importorskip("normflows")
    x = torch.randn(2, 3, 4, 6)
    found = genssl_fast.squeeze2d(x)
    assert torch.equal(found, reshape.SqueezeTransform()(x)[0])
    assert torch.equal(found, normflows.flows.Squeeze().inverse(x)[0])
    assert torch.equal(genssl_fast.squeeze2d(found, inverse=True), x)


def test_permute_equals_nflows():
    permutations = pytest.importorskip("nflows.transforms.permutations")
    x = torch.randn(3, 4)
    layer = permutations.Permutation(ORDER)
    assert torch.equal(genssl_fast.permute(x, ORDER), layer(x)[0])
    assert torch.equal(genssl_fast.permute(x, ORDER, inverse=True), layer.inverse(x)[0])
