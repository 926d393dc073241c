"""The quantiser against vector-quantize-pytorch: values, gradients, codebooks after steps, masks."""

import pytest
import torch

from genssl_fast.nn import VectorQuantizer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(dim=8, size=12, cosine=False, **options):
    """Ours and theirs with the same codebook, in training."""
    peer = pytest.importorskip("vector_quantize_pytorch")
    theirs = peer.VectorQuantize(dim, size, use_cosine_sim=cosine, rotation_trick=False, **options)
    renamed = {"eps": "epsilon"}
    ours = VectorQuantizer(dim, size, cosine=cosine, **{renamed.get(k, k): v for k, v in options.items()})
    for name in ("embed", "cluster_size", "embed_avg"):
        getattr(ours, name).copy_(getattr(theirs._codebook, name)[0])
    return ours, theirs


def assert_same_codebook(ours, theirs):
    for name in ("embed", "cluster_size", "embed_avg"):
        found, expected = getattr(ours, name), getattr(theirs._codebook, name)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("options", [{}, {"decay": 0.99, "eps": 1e-3, "commitment_weight": 0.25}])
def test_steps_equal_the_peer(options, cosine, masked):
    if masked and cosine:
        pytest.skip("the peer's masked loss forgets that it scaled x")
    ours, theirs = pair(cosine=cosine, **options)
    for step in range(4):
        x = draw(3, 20, 8, seed=step)
        mask = draw(3, 20, seed=10 + step) > -0.5 if masked else None
        xs = x.clone().requires_grad_(), x.clone().requires_grad_()
        found, expected = ours(xs[0], mask), theirs(xs[1], mask=mask)
        assert torch.equal(found.indices, expected[1])
        torch.testing.assert_close(found.quantized, expected[0])
        torch.testing.assert_close(found.loss, expected[2].reshape(()), rtol=1e-5, atol=1e-6)
        for result, _given in ((found, xs[0]), (expected, xs[1])):
            (result[0].square().sum() + result[2].sum()).backward()
        torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=1e-5, atol=1e-6)
        assert_same_codebook(ours, theirs)
    found, expected = ours.eval()(x, mask), theirs.eval()(x, mask=mask)
    torch.testing.assert_close(found.quantized, expected[0])
    assert torch.equal(found.indices, expected[1])
    assert found.loss == 0


def test_masked_rows_do_not_count_whatever_they_hold():
    quantizer, other = VectorQuantizer(4, 5), VectorQuantizer(4, 5)
    other.load_state_dict(quantizer.state_dict())
    x, mask = draw(6, 4), torch.tensor([True, True, False, True, False, True])
    x[2] = torch.nan
    x.requires_grad_()
    found = quantizer(x, mask)
    found.loss.backward()
    alone = other(x[mask])
    assert found.indices[~mask].tolist() == [-1, -1]
    assert not found.quantized[~mask].any()
    assert torch.equal(found.quantized[mask], alone.quantized)
    torch.testing.assert_close(found.loss, alone.loss)
    assert x.grad.isfinite().all()
    assert not x.grad[~mask].any()
    assert torch.equal(quantizer.embed, other.embed)


def test_dead_codes_become_rows_of_the_batch():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 6, decay=0.0, dead_code_threshold=0.5)
    quantizer.embed.copy_(torch.tensor([[0.0, 0.0]] + 5 * [[1e3, 1e3]]))
    x = draw(40, 2)
    quantizer(x)
    rows = {tuple(row) for row in x.tolist()}
    fresh = [tuple(code) for code in quantizer.embed[1:].tolist()]
    assert set(fresh) <= rows
    assert len(set(fresh)) == 5
    assert quantizer.cluster_size.tolist() == [40.0] + 5 * [0.5]
    torch.testing.assert_close(quantizer.embed_avg[1:], 0.5 * quantizer.embed[1:])


def test_evaluation_leaves_the_codebook_and_works_in_half_precision():
    quantizer = VectorQuantizer(4, 5).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    x = draw(2, 3, 4).bfloat16()
    quantized, indices, loss = quantizer(x)
    assert quantized.dtype == torch.bfloat16
    assert indices.shape == (2, 3)
    assert loss == 0
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VectorQuantizer(0, 4), "dim: expected at least 1, got 0"),
        (lambda: VectorQuantizer(4, 4, decay=1.5), "decay: expected a number from 0 to 1, got 1.5"),
        (lambda: VectorQuantizer(4, 4)(torch.zeros(2, 3)), r"x: expected shape \[..., 4\], got \[2, 3\]"),
        (
            lambda: VectorQuantizer(4, 4)(torch.zeros(2, 4), torch.ones(3, dtype=torch.bool)),
            "mask: expected shape that of x without its last dimension",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
