"""The module around film_mlp: shapes, training, saving, errors."""

import pytest
import torch

import genssl_fast
from genssl_fast.nn import FilmMLP


def small(**options):
    torch.manual_seed(0)
    return FilmMLP(shape=(1, 2, 3), hidden=16, blocks=2, embed=8, time_dim=10, **options)


def test_output_has_the_shape_of_the_input():
    network = small(num_classes=4)
    x = torch.randn(5, 1, 2, 3)
    for t in (0.5, torch.tensor(0.5), torch.rand(5)):
        assert network(x, t, torch.tensor([0, 1, 2, 3, 0])).shape == x.shape
    assert FilmMLP(3, hidden=4)(torch.randn(2, 3), 0.1).shape == (2, 3)


def test_starts_at_zero_and_learns():
    network = small()
    x, t = torch.randn(64, 1, 2, 3), torch.rand(64)
    target = torch.sin(3 * x) * t.view(-1, 1, 1, 1)
    assert torch.equal(network(x, t), torch.zeros_like(x))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        loss = (network(x, t) - target).square().mean()
        loss.backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert loss < 0.1 * target.square().mean()


def test_activations_keep_their_size_at_the_start():
    torch.manual_seed(0)
    network = FilmMLP(64, hidden=256, blocks=6)
    weights = network.weights()._replace(w_out=torch.eye(256)[:64], b_out=torch.zeros(64))
    hidden = genssl_fast.film_mlp(torch.randn(256, 64), 0.3, weights)
    assert 0.5 < hidden.std() < 5


def test_time_scale_and_labels_matter():
    network = small(num_classes=3, time_scale=1000.0)
    torch.nn.init.normal_(network.w_out)
    x, labels = torch.randn(3, 1, 2, 3), torch.tensor([0, 1, 2])
    scaled = genssl_fast.film_mlp(x.flatten(1), 500.0, network.weights(), labels=labels)
    assert torch.equal(network(x, 0.5, labels).flatten(1), scaled)
    assert not torch.equal(network(x, 0.5, labels), network(x, 0.5, labels.flip(0)))
    assert not torch.equal(network(x, 0.5, labels), network(x, 0.6, labels))


def test_state_is_restored():
    network, other = small(num_classes=3), small(num_classes=3)
    torch.nn.init.normal_(network.w_out)
    other.load_state_dict(network.state_dict())
    x, labels = torch.randn(2, 1, 2, 3), torch.tensor([0, 2])
    assert torch.equal(network(x, 0.2, labels), other(x, 0.2, labels))


def test_representation_names_what_was_chosen():
    expected = (
        "FilmMLP(shape=(1, 2, 3), hidden=16, blocks=2, embed=8, time_dim=10, num_classes=3, "
        "convention='dit', time_scale=1.0)"
    )
    assert repr(small(num_classes=3)) == expected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FilmMLP(), "dim, shape: expected exactly one of them"),
        (lambda: FilmMLP(2, shape=(2,)), "dim, shape: expected exactly one of them"),
        (lambda: FilmMLP(2, hidden=0), "hidden: expected at least 1, got 0"),
        (lambda: FilmMLP(2, num_classes=0), "num_classes: expected at least 1 or None, got 0"),
        (lambda: FilmMLP(2, convention="adm"), "convention: expected one of"),
        (lambda: small()(torch.zeros(2, 6), 0.0), r"x: expected shape \[B, \*\[1, 2, 3\]\]"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
