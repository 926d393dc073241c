"""Layers of flows: inverse, log-determinant against autograd's Jacobian, derivatives, plans, errors."""

import copy
import pickle
from functools import partial

import pytest
import torch

from genssl_fast import nn
from genssl_fast.ops.flow_eager import apply_layers
from genssl_fast.ops.transforms import AffineTransform, SplineTransform

MASK = [True, False, True, True, False]
small = partial(nn.MLP, hidden=(16, 16))
affine = partial(nn.AffineCoupling, MASK, small)
spline = partial(nn.SplineCoupling, MASK, small, bins=5, bound=2.5)
autoregressive = partial(nn.MaskedAutoregressive, 5, hidden=(12, 12))
spline_transform = SplineTransform(bins=5, bound=2.5)

VECTOR_LAYERS = {
    "additive": partial(affine, additive=True),
    "affine-none": partial(affine, clamp="none"),
    "affine-tanh": affine,
    "affine-sigmoid": partial(affine, clamp="sigmoid"),
    "affine-shift-first": partial(affine, clamp="zuko", order="shift_scale"),
    "affine-residual": lambda: nn.AffineCoupling(MASK, partial(nn.MLP, hidden=(8, 8), residual=True)),
    "affine-interleaved": lambda: nn.Coupling(MASK, AffineTransform(layout="interleaved"), small),
    "spline": spline,
    "spline-zuko": partial(spline, parameterization="zuko"),
    "spline-circular": partial(spline, tails="circular"),
    "inverse": lambda: nn.Inverse(spline()),
    "actnorm": lambda: nn.ActNorm(5),
    "linear": lambda: nn.InvertibleLinear(5, bias=True),
    "permutation": lambda: nn.Permutation.random(5),
    "autoregressive": autoregressive,
    "autoregressive-reverse": partial(autoregressive, order=[5, 4, 3, 2, 1]),
    "autoregressive-residual": partial(autoregressive, residual=True),
    "autoregressive-spline": partial(autoregressive, spline_transform),
    "planar": lambda: nn.Planar(5),
    "radial": lambda: nn.Radial(5),
    "compose": lambda: nn.Compose([spline(), nn.Permutation.reverse(5), nn.Inverse(affine())]),
}


def build(make, seed=0):
    """A layer in fp64 whose parameters are not those of its start."""
    torch.manual_seed(seed)
    layer = make().double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def samples(count=4, *shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *(shape or (5,)), dtype=torch.float64, generator=generator)


@pytest.fixture(params=VECTOR_LAYERS)
def layer(request):
    return build(VECTOR_LAYERS[request.param])


def jacobian_log_det(function, x):
    """log |det| of the derivative at every sample."""
    one = torch.func.jacrev(lambda row: function(row[None])[0][0].flatten())
    size = x[0].numel()
    return torch.stack([torch.linalg.slogdet(one(row).reshape(size, size)).logabsdet for row in x])


def test_log_determinant_is_that_of_the_jacobian(layer):
    x = samples()
    y, log_abs_det = layer(x)
    torch.testing.assert_close(log_abs_det, jacobian_log_det(layer, x), rtol=1e-10, atol=1e-10)
    expected = jacobian_log_det(layer.inverse, y)
    torch.testing.assert_close(layer.inverse(y)[1], expected, rtol=1e-7, atol=1e-7)


def test_inverse_undoes_forward(layer):
    x = samples(50)
    y, log_abs_det = layer(x)
    back, log_abs_det_back = layer.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_abs_det_back, -log_abs_det, rtol=1e-9, atol=1e-9)


def test_gradients_of_parameters(layer):
    names = [name for name, _ in layer.named_parameters()]
    x = samples(2).requires_grad_()

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    check = partial(torch.autograd.gradcheck, fast_mode=True, check_forward_ad=True)
    second = partial(torch.autograd.gradgradcheck, fast_mode=True)
    assert check(function, (x, *layer.parameters()))
    assert second(function, (x, *layer.parameters()))
    inverse = torch.func.functional_call
    flipped = nn.Inverse(layer)

    def backwards(x, *parameters):
        named = {f"layer.{name}": value for name, value in zip(names, parameters)}
        return inverse(flipped, named, (x,))

    assert check(backwards, (x, *layer.parameters()))
    assert second(backwards, (x, *layer.parameters()))


def test_log_determinant_in_fp32_for_half_precision(layer):
    layer, x = layer.bfloat16(), samples().bfloat16()
    y, log_abs_det = layer(x)
    assert y.dtype == torch.bfloat16
    assert log_abs_det.dtype == torch.float32


def test_empty_batch(layer):
    y, log_abs_det = layer(samples(0))
    assert y.shape == (0, 5)
    assert log_abs_det.shape == (0,)


IMAGE_MASK = [True, False, False, True]
convolutional = partial(nn.ConvNet, hidden=6)
IMAGE_LAYERS = {
    "affine": lambda: nn.AffineCoupling(IMAGE_MASK, convolutional),
    "additive": lambda: nn.AffineCoupling(IMAGE_MASK, convolutional, additive=True),
    "interleaved": lambda: nn.Coupling(IMAGE_MASK, AffineTransform(layout="interleaved"), convolutional),
    "spline": lambda: nn.SplineCoupling(IMAGE_MASK, convolutional, bins=4),
    "actnorm": lambda: nn.ActNorm(4),
    "linear": lambda: nn.InvertibleLinear(4, bias=True),
    "permutation": lambda: nn.Permutation([3, 1, 0, 2]),
}


@pytest.mark.parametrize("name", IMAGE_LAYERS)
def test_images(name):
    layer, x = build(IMAGE_LAYERS[name]), samples(3, 4, 2, 2)
    y, log_abs_det = layer(x)
    torch.testing.assert_close(log_abs_det, jacobian_log_det(layer, x), rtol=1e-10, atol=1e-10)
    back, log_abs_det_back = layer.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_abs_det_back, -log_abs_det, rtol=1e-9, atol=1e-9)


context_mlp = partial(nn.MLP, hidden=(8,), context_features=3)
CONTEXT_LAYERS = {
    "coupling": lambda: nn.SplineCoupling(MASK, context_mlp),
    "autoregressive": partial(autoregressive, context_features=3),
    "autoregressive-residual": partial(autoregressive, residual=True, context_features=3),
    "planar": lambda: nn.Planar(5, context_features=3),
    "radial": lambda: nn.Radial(5, context_features=3),
}


@pytest.mark.parametrize("name", CONTEXT_LAYERS)
def test_context(name):
    layer, x, context = build(CONTEXT_LAYERS[name]), samples(), samples(4, 3, seed=2)
    y, log_abs_det = layer(x, context)
    back, log_abs_det_back = layer.inverse(y, context)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_abs_det_back, -log_abs_det, rtol=1e-9, atol=1e-9)
    assert not torch.equal(layer(x, context.flip(0))[0], y)
    torch.testing.assert_close(layer(x[1:], context[1:])[0], y[1:])
    with pytest.raises(ValueError, match=r"context: expected shape \[B, 3\], got None"):
        layer(x)
    with pytest.raises(ValueError, match=r"context: expected shape \[B, 3\], got \[4, 2\]"):
        layer(x, context[:, :2])


def test_context_of_images():
    network = partial(nn.ConvNet, hidden=6, context_features=3)
    layer, x, context = (
        build(lambda: nn.AffineCoupling(IMAGE_MASK, network)),
        samples(4, 4, 2, 2),
        samples(4, 3),
    )
    y, _ = layer(x, context)
    torch.testing.assert_close(layer.inverse(y, context)[0], x)
    assert not torch.equal(layer(x, context.flip(0))[0], y)


@pytest.mark.parametrize("make", [spline, partial(spline, parameterization="zuko"), affine, autoregressive])
def test_starts_at_the_identity(make):
    layer, x = make().double(), samples()
    y, log_abs_det = layer(x)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_abs_det, torch.zeros(4).double(), rtol=0, atol=1e-5)


def test_a_coupling_keeps_what_it_does_not_transform():
    layer, x = build(spline), 0.3 * samples()
    y, _ = layer(x)
    kept = ~torch.tensor(MASK)
    assert torch.equal(y[:, kept], x[:, kept])
    assert not torch.isclose(y[:, ~kept], x[:, ~kept]).any()


def test_a_split_follows_the_mask_that_is_loaded():
    layer, x = build(lambda: nn.AffineCoupling([False, True], small)), samples(4, 2)
    other = nn.AffineCoupling([True, False], small).double()
    other.load_state_dict(layer.state_dict())
    for loaded, saved in zip(other(x), layer(x)):
        torch.testing.assert_close(loaded, saved)
    reversed_mask = build(lambda: nn.AffineCoupling([True, False], small))
    layer.load_state_dict(reversed_mask.state_dict())
    for loaded, saved in zip(layer(x), reversed_mask(x)):
        torch.testing.assert_close(loaded, saved)


@pytest.mark.parametrize("order", [None, [3, 1, 5, 2, 4]])
def test_autoregressive_dependence(order):
    layer = build(partial(autoregressive, spline_transform, order=order, activation="silu"))
    jacobian = torch.func.jacrev(lambda x: layer(x[None])[0][0])(0.3 * samples(1)[0])
    degrees = layer.degrees()[0]
    may_depend = degrees[:, None] >= degrees
    assert torch.equal(jacobian != 0, may_depend)


def test_actnorm_takes_its_scale_from_the_first_batch():
    layer, x = nn.ActNorm(3), 4 + 3 * torch.randn(64, 3, 5, 5)
    assert torch.equal(layer.eval()(x)[0], x)  # evaluation does not initialize
    y, _ = layer.train()(x)
    per_channel = y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(per_channel.std(1), torch.ones(3), rtol=1e-3, atol=0)
    state = copy.deepcopy(layer.state_dict())
    layer(10 * x)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    restored = nn.ActNorm(3)
    restored.load_state_dict(state)
    assert torch.equal(restored.train()(10 * x)[0], layer(10 * x)[0])


def test_actnorm_leaves_a_constant_feature_finite():
    layer, x = nn.ActNorm(2), torch.cat([torch.full((9, 1), 7.0), torch.randn(9, 1)], 1)
    y, log_abs_det = layer(x)
    assert y.isfinite().all()
    assert log_abs_det.isfinite().all()
    assert torch.equal(y[:, 0], torch.zeros(9))


def test_the_kept_inverse_follows_the_weights():
    layer, x = build(lambda: nn.InvertibleLinear(5, bias=True)), samples()
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(layer.inverse(layer(x)[0])[0], x)
            layer.lower.add_(0.1)
    restored = pickle.loads(pickle.dumps(layer))
    with torch.no_grad():
        torch.testing.assert_close(restored.inverse(layer(x)[0])[0], x)


def test_inverse_without_gradients_under_inference_mode():
    layer, x = build(lambda: nn.InvertibleLinear(5)), samples()
    with torch.inference_mode():
        torch.testing.assert_close(layer.inverse(layer(x)[0])[0], x)


def test_linear_weight():
    layer, x = build(lambda: nn.InvertibleLinear(5, bias=True)), samples()
    torch.testing.assert_close(layer(x)[0], x @ layer.weight().T + layer.bias)
    assert torch.equal(nn.InvertibleLinear(4, identity=True).weight(), torch.eye(4))


def test_dropout_acts_in_training_alone():
    network, x = nn.MLP(3, 2, hidden=(64, 64), dropout=0.5), torch.randn(5, 3)
    torch.nn.init.normal_(network.layers[-1].weight)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_compiles_into_one_graph():
    layer, x = build(VECTOR_LAYERS["compose"]), samples()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for mine, eager in zip(compiled(x), layer(x)):
        torch.testing.assert_close(mine, eager)


def test_representation_names_what_was_chosen():
    assert repr(nn.ActNorm(3)) == "ActNorm(features=3)"
    assert repr(nn.Permutation([1, 0])) == "Permutation(features=2)"
    assert "identity=2, transformed=3" in repr(affine())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.AffineCoupling([True, True]), "mask: expected both True and False entries"),
        (lambda: nn.SplineCoupling([False, False]), "mask: expected both True and False entries"),
        (lambda: nn.AffineCoupling([[True], [False]]), r"mask: expected shape \[D\]"),
        (lambda: affine()(torch.zeros(2, 4)), r"x: expected shape \[B, 5, \.\.\.\]"),
        (lambda: nn.Permutation([0, 0]), "index: expected a permutation"),
        (lambda: nn.ActNorm(0), "features: expected at least 1, got 0"),
        (lambda: nn.InvertibleLinear(0), "features: expected at least 1, got 0"),
        (lambda: nn.Planar(0), "features: expected at least 1, got 0"),
        (lambda: nn.SplineCoupling(MASK, bins=65), "transform.bins: expected 1 to 64, got 65"),
        (lambda: nn.SplineCoupling(MASK, bins=0), "transform.bins: expected 1 to 64, got 0"),
        (lambda: nn.AffineCoupling(MASK, limit=torch.inf), "limit: expected a positive number of fp32"),
        (lambda: autoregressive(SplineTransform(bins=65)), "transform.bins: expected 1 to 64, got 65"),
        (lambda: nn.MLP(2, 2, hidden=()), "hidden: expected widths of at least 1"),
        (lambda: nn.MLP(2, 2, hidden=(3, 4), residual=True), "hidden: expected equal widths where residual"),
        (lambda: nn.MLP(2, 2, activation="swish"), "activation: expected one of 'relu'"),
        (lambda: nn.MLP(2, 2, dropout=1.0), "dropout: expected a probability"),
        (lambda: nn.ConvNet(2, 2, hidden=0), "hidden: expected at least 1, got 0"),
        (lambda: autoregressive(order=[1, 1, 2, 3, 4]), "order: expected a permutation of 1 to 5"),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_columns_are_no_mask():
    with pytest.raises(ValueError, match=r"mask: expected booleans, one for every entry, got \[0, 1, 2\]"):
        nn.AffineCoupling([0, 1, 2])
    assert nn.AffineCoupling([0, 1, 1]).transformed.tolist() == [1, 2]


def test_an_empty_batch_normalizes_nothing():
    layer = nn.ActNorm(2)
    assert layer(torch.zeros(0, 2))[0].shape == (0, 2)
    y, _ = layer(torch.tensor([[0.0, 2.0], [2.0, 6.0]]))
    torch.testing.assert_close(y, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ActNorm(1.5), "features: expected an integer, got 1.5"),
        (lambda: nn.InvertibleLinear("3"), "features: expected an integer, got '3'"),
        (lambda: nn.MLP(2, 2, hidden=(8.5,)), "hidden: expected an integer, got 8.5"),
        (lambda: nn.MLP(2, 2, context_features=None), "context_features: expected an integer, got None"),
        (lambda: nn.MLP(2, 2, hidden=64), "hidden: expected a sequence of widths, .*got 64"),
        (lambda: autoregressive(hidden=64), "hidden: expected a sequence of widths, .*got 64"),
        (lambda: autoregressive(None), "transform: expected an AffineTransform or a SplineTransform"),
        (lambda: nn.Coupling(MASK, "affine"), "transform: expected an AffineTransform or a SplineTransform"),
    ],
)
def test_bad_kinds(make, message):
    with pytest.raises(TypeError, match=message):
        make()


PLANNED = [
    name for name in VECTOR_LAYERS if name.startswith(("aff", "add", "spl", "inv", "act", "lin", "perm"))
]


@pytest.mark.parametrize("name", PLANNED)
def test_description_for_a_plan_computes_the_same(name):
    layer, x = build(VECTOR_LAYERS[name]), samples()
    for inverse, function in ((False, layer), (True, layer.inverse)):
        for described, own in zip(apply_layers([layer.plan_layer()], x, inverse=inverse), function(x)):
            torch.testing.assert_close(described.expand_as(own), own)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.AffineCoupling(IMAGE_MASK, convolutional), "network: expected an MLP for a plan, got ConvNet"),
        (nn.Inverse(nn.ActNorm(3)), "an autoregressive layer for a plan, got ActNorm"),
        (nn.Inverse(nn.Planar(3)), "an autoregressive layer for a plan, got Planar"),
    ],
)
def test_a_plan_needs_couplings_of_perceptrons(layer, message):
    with pytest.raises(TypeError, match=message):
        layer.plan_layer()
