"""Affine coupling: the battery, every clamp, layout and way to choose elements, peers, extreme values."""

import pytest
import torch

import genssl_fast
from genssl_fast import reference
from genssl_fast.ops.affine_coupling import DEFAULTS, LAYOUTS, raw_affine_coupling
from genssl_fast.ops.transforms import (
    AffineTransform,
    SplineTransform,
    apply_transform,
    check_transform,
    num_parameters,
)
from genssl_fast.reference.coupling import CLAMPS
from tests.battery import Battery, Case, assert_close_enough, cotangent, gradients, to_fp64

MASK = torch.tensor([[True, False, True], [False, False, True]])
DRAWN = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0)).unbind(0)  # x, shift, log_scale
FIELDS = ("limit", "offset", "min_scale")


def numbers(clamp, **given):
    """limit, offset and min_scale, as the raw operation takes them."""
    chosen = {"limit": 1.0, "offset": 0.0, "min_scale": 0.0} | DEFAULTS[clamp] | given
    return tuple(chosen[name] for name in FIELDS)


def plain(clamp, *, mask=None, split=0, inverse=False, shift_first=False, **given):
    """The reference as a function of the tensors."""
    options = (split, inverse, CLAMPS.index(clamp), *numbers(clamp, **given), shift_first)

    def function(x, shift, log_scale=None):
        local = None if mask is None else mask.to(x.device)
        return reference.coupling.affine_coupling(x, shift, log_scale, local, *options)

    return function


def fast(clamp, *, mask=None, split=None, inverse=False, shift_first=False, **given):
    order = "shift_scale" if shift_first else "scale_shift"

    def function(x, shift, log_scale=None):
        local = None if mask is None else mask.to(x.device)
        return genssl_fast.affine_coupling(
            x, shift, log_scale, clamp=clamp, mask=local, split=split, inverse=inverse, order=order, **given
        )

    return function


def tensors(*shape, part=None, count=3):
    """inputs: x [B, *shape] and parameters [B, *part], normals."""

    def inputs(dtype, size, generator):
        shapes = [shape] + [part or shape] * (count - 1)
        drawn = [torch.randn(size, *s, generator=generator) for s in shapes]
        return tuple(t.to(dtype) for t in drawn)

    return inputs


def case(clamp, inputs, differentiable=(0, 1, 2), raw=None, **options):
    return Case(fast(clamp, **options), plain(clamp, **{**options, "split": options.get("split") or 0}),
                inputs, differentiable, raw)  # fmt: skip


def raw_arguments(x, shift, log_scale):
    return raw_affine_coupling, (
        x, shift, log_scale, MASK, 0, True, CLAMPS.index("tanh"), 1.5, 0.0, 0.0, False,
    )  # fmt: skip


class TestAffineCoupling(Battery):
    cases = {
        "tanh": case("tanh", tensors(19)),
        "sigmoid_split": case("sigmoid", tensors(5, 3, part=(3, 3)), split=2, shift_first=True),
        "softplus_inverse_mask": case("softplus", tensors(2, 3), inverse=True, mask=MASK),
        "additive": case("none", tensors(5, 2, part=(4, 2), count=2), (0, 1), split=-1, inverse=True),
        "zuko_inverse": case("zuko", tensors(2, 3), raw=raw_arguments, inverse=True, shift_first=True),
    }
    errors = {
        "limit infinite": (
            lambda: fast("tanh", limit=torch.inf)(*DRAWN),
            ValueError,
            "limit: expected a positive number of fp32, got inf",
        ),
        "limit beyond fp32": (lambda: fast("zuko", limit=1e39)(*DRAWN), ValueError, "limit: .* got 1e.39"),
        "limit below fp32": (lambda: fast("tanh", limit=1e-46)(*DRAWN), ValueError, "limit: .* got 1e-46"),
        "limit text": (
            lambda: fast("tanh", limit="2")(*DRAWN),
            TypeError,
            "limit: expected a number, got str",
        ),
        "offset": (
            lambda: fast("sigmoid", offset=torch.nan)(*DRAWN),
            ValueError,
            "offset: expected a finite number of fp32, got nan",
        ),
        "min_scale infinite": (
            lambda: fast("sigmoid", min_scale=torch.inf)(*DRAWN),
            ValueError,
            "min_scale: .* got inf",
        ),
        "split float": (
            lambda: fast("none", split=2.0)(*DRAWN),
            TypeError,
            "split: expected an integer, got 2.0",
        ),
        "split bool": (
            lambda: fast("none", split=True)(*DRAWN),
            TypeError,
            "split: expected an integer, got True",
        ),
        "transform": (
            lambda: apply_transform(None, *DRAWN[:2]),
            TypeError,
            "transform: expected an AffineTransform or a SplineTransform, got NoneType",
        ),
        "transform of a list": (
            lambda: apply_transform(AffineTransform(), [1.0], DRAWN[0]),
            TypeError,
            "x: expected a tensor, got list",
        ),
        "parameters of a list": (
            lambda: apply_transform(AffineTransform(), DRAWN[0], [1.0]),
            TypeError,
            "parameters: expected a tensor, got list",
        ),
        "parameters of 64 bits": (
            lambda: apply_transform(AffineTransform(), DRAWN[0], torch.zeros(2, 6).double()),
            TypeError,
            "parameters: expected 64 bits for both x and parameters or for neither",
        ),
        "x dtype": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3).int(), None, None),
            TypeError,
            "x: expected dtype float32.*got torch.int32",
        ),
        "x shape": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2), torch.zeros(2), None),
            ValueError,
            r"x: expected shape \[B, ...\].*got \[2\]",
        ),
        "shift shape": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 2), None),
            ValueError,
            r"shift: expected the shape of x, \[2, 3\], got \[2, 2\]",
        ),
        "shift of a split": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 3), None, split=1),
            ValueError,
            r"shift: expected shape the transformed part of x = \[2, 2\], got \[2, 3\]",
        ),
        "shift dtype": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 3).double(), None),
            TypeError,
            "shift: expected the dtype of x, torch.float32, got torch.float64",
        ),
        "log_scale shape": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1)),
            ValueError,
            r"log_scale: expected the shape of shift, \[2, 3\], got \[2, 1\]",
        ),
        "mask couples nothing": (
            lambda: genssl_fast.affine_coupling(
                torch.zeros(2, 3), torch.zeros(2, 3), None, mask=torch.zeros(3, dtype=torch.bool)
            ),
            ValueError,
            "mask: expected True where an element is transformed, got nothing but False",
        ),
        "mask dtype": (
            lambda: genssl_fast.affine_coupling(
                torch.zeros(2, 3), torch.zeros(2, 3), None, mask=torch.ones(3)
            ),
            TypeError,
            "mask: expected dtype bool, got torch.float32",
        ),
        "mask shape": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 3), None, mask=MASK),
            ValueError,
            r"mask: expected shape that of a sample = \[3\], got \[2, 3\]",
        ),
        "mask and split": (
            lambda: genssl_fast.affine_coupling(
                torch.zeros(2, 3), torch.zeros(2, 2), None, split=1, mask=torch.ones(3, dtype=torch.bool)
            ),
            ValueError,
            "mask, split: expected at most one of them, got both",
        ),
        "split": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 0), None, split=3),
            ValueError,
            "split: expected from 1 to 2, or the negative of it, got 3",
        ),
        "clamp": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 3), None, clamp="cut"),
            ValueError,
            "clamp: expected one of 'none', 'tanh'.*got 'cut'",
        ),
        "order": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 3), None, order="st"),
            ValueError,
            "order: expected one of 'scale_shift', 'shift_scale', got 'st'",
        ),
        "option of another clamp": (
            lambda: genssl_fast.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 3), None, limit=2.0),
            ValueError,
            "limit: expected None with clamp='none', got 2.0",
        ),
        "limit": (
            lambda: genssl_fast.affine_coupling(
                torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), clamp="tanh", limit=0.0
            ),
            ValueError,
            "limit: expected a positive number of fp32, got 0.0",
        ),
        "clamp of nothing": (
            lambda: fast("sigmoid")(*DRAWN[:2], None),
            ValueError,
            "clamp: expected 'none' without a log_scale, got 'sigmoid'",
        ),
        "transform's clamp of nothing": (
            lambda: check_transform(AffineTransform("tanh", layout="shift")),
            ValueError,
            "transform.clamp: expected 'none' for shifts alone, got 'tanh'",
        ),
        "min_scale": (
            lambda: genssl_fast.affine_coupling(
                torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), clamp="sigmoid", min_scale=-0.1
            ),
            ValueError,
            "min_scale: expected a finite number of fp32, at least 0, got -0.1",
        ),
        "layout": (
            lambda: genssl_fast.affine_parameters(torch.zeros(2, 4), "pairs"),
            ValueError,
            "layout: expected one of 'cat'.*got 'pairs'",
        ),
        "odd parameters": (
            lambda: genssl_fast.affine_parameters(torch.zeros(2, 5)),
            ValueError,
            "network_output: expected an even number of entries in dimension 1, got 5",
        ),
        "number of parameters": (
            lambda: apply_transform(AffineTransform(), torch.zeros(2, 3), torch.zeros(2, 5)),
            ValueError,
            r"parameters: expected 3 \* 2 numbers for each of 2 samples, got shape \[2, 5\]",
        ),
    }


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_equals_reference(ours, plain, tensors):
    """Values and gradients within the battery's bounds."""
    for i, found in enumerate(ours(*tensors)):
        assert_close_enough(found, plain(*tensors)[i], plain(*to_fp64(tensors))[i], 2, f"output {i}")
    wanted = range(len(tensors))
    exact, theirs = gradients(plain, to_fp64(tensors), wanted), gradients(plain, tensors, wanted)
    for i, found in enumerate(gradients(ours, tensors, wanted)):
        assert_close_enough(found, theirs[i], exact[i], 3, f"gradient {i}")


@pytest.mark.parametrize("shift_first", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_every_clamp_over_several_tiles(clamp, inverse, shift_first):
    tensors = draw(3, 1100), draw(3, 1100, seed=1), 2 * draw(3, 1100, seed=2)
    options = {"inverse": inverse, "shift_first": shift_first}
    assert_equals_reference(fast(clamp, **options), plain(clamp, **options), tensors)


@pytest.mark.parametrize("clamp", ["tanh", "atan", "zuko", "none"])
def test_small_log_scales_keep_their_relative_accuracy(clamp):
    tensors = torch.zeros(2, 40), torch.zeros(2, 40), 1e-5 * draw(2, 40)
    assert_equals_reference(fast(clamp), plain(clamp), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("split", [2, -1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(6,), (6, 5, 7), (6, 24, 24)])
def test_views_give_the_bits_of_copies(layout, shape, split, dtype):
    """A network's output as it comes, also in channels-last order."""
    x = draw(4, *shape, dtype=dtype)
    output = draw(4, 2 * (6 - abs(split)), *shape[1:], dtype=dtype, seed=1)
    if len(shape) == 3:
        output = output.to(memory_format=torch.channels_last)
    parameters = genssl_fast.affine_parameters(output, layout)
    found = fast("tanh", split=split)(x, *parameters)
    expected = fast("tanh", split=split)(x, *(p.contiguous() for p in parameters))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_layouts():
    output = torch.arange(12.0).view(1, 4, 3)
    named = {layout: genssl_fast.affine_parameters(output, layout)[0][0, :, 0].tolist() for layout in LAYOUTS}
    assert named == {
        "cat": [0.0, 3.0],
        "cat_scale_first": [6.0, 9.0],
        "interleaved": [0.0, 6.0],
        "interleaved_scale_first": [3.0, 9.0],
    }
    last = genssl_fast.affine_parameters(output.expand(1, 4, 3)[..., :2], "interleaved", dim=-1)
    assert [tuple(part.shape) for part in last] == [(1, 4, 1)] * 2


def test_whole_mask_changes_nothing_and_hides_wild_parameters():
    x, shift, log_scale = draw(5, 40), draw(5, 40, seed=1), draw(5, 40, seed=2)
    mask = torch.arange(40) % 3 > 0
    everywhere = fast("tanh", mask=torch.ones_like(mask))(x, shift, log_scale)
    assert all(torch.equal(a, b) for a, b in zip(everywhere, fast("tanh")(x, shift, log_scale)))
    wild = torch.where(mask, log_scale, torch.inf).requires_grad_()
    y, log_abs_det = fast("none", mask=mask)(x, shift, wild)
    assert torch.equal(y[:, ~mask], x[:, ~mask])
    (y.sum() + log_abs_det.sum()).backward()
    assert torch.equal(wild.grad[:, ~mask], torch.zeros_like(wild[:, ~mask]))
    assert torch.isfinite(wild.grad).all()


@pytest.mark.parametrize("shift_first", [False, True])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_log_determinant_is_that_of_the_jacobian(clamp, shift_first):
    x, shift, log_scale = (draw(1, size, dtype=torch.float64, seed=size) for size in (6, 4, 4))
    for inverse in (False, True):
        ours = fast(clamp, split=2, inverse=inverse, shift_first=shift_first)
        jacobian = torch.func.jacrev(lambda x, ours=ours: ours(x[None], shift, log_scale)[0][0])(x[0])
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(ours(x, shift, log_scale)[1][0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shift_first", [False, True])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_inverse_of_forward(clamp, shift_first):
    x, shift, log_scale = (draw(9, 33, dtype=torch.float64, seed=seed) for seed in range(3))
    y, log_abs_det = fast(clamp, shift_first=shift_first)(x, shift, log_scale)
    back, minus = fast(clamp, shift_first=shift_first, inverse=True)(y, shift, log_scale)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-13)
    torch.testing.assert_close(minus, -log_abs_det, rtol=0, atol=1e-13)


BOUNDED = {
    "tanh": {},
    "atan": {},
    "zuko": {},
    "sigmoid": {},
    "reciprocal_sigmoid": {"min_scale": 1e-3},
    "softplus": {"limit": 3.0},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("clamp", BOUNDED)
def test_clamped_scales_never_overflow(clamp, inverse, dtype):
    size = torch.tensor([0.0, 1.0, 20.0, 89.0, 104.0, 1e3, 6e4], dtype=dtype)
    log_scale = torch.cat([size, -size, 1e33 * size if dtype != torch.float16 else size])[None]
    x, shift = torch.ones_like(log_scale), torch.full_like(log_scale, -0.5)
    tensors = [t.requires_grad_() for t in (x, shift, log_scale)]
    y, log_abs_det = fast(clamp, inverse=inverse, **BOUNDED[clamp])(*tensors)
    grads = torch.autograd.grad((y.double() * cotangent(y)).sum() + log_abs_det.sum(), tensors)
    for tensor in (y, log_abs_det, *grads):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("clamp", ["softplus", "sigmoid"])
def test_vanishing_scales_keep_their_logarithm(clamp):
    """Without a least scale: log e^u is u, its derivative 1, where e^u has no digits left."""
    log_scale = torch.tensor([[-50.0, -100.0, -1e4]], requires_grad=True)
    zero = torch.zeros_like(log_scale)
    _, log_abs_det = fast(clamp, min_scale=0.0, offset=0.0)(zero, zero, log_scale)
    torch.testing.assert_close(log_abs_det, torch.tensor([-10150.0]))
    log_abs_det.sum().backward()
    torch.testing.assert_close(log_scale.grad, torch.ones_like(log_scale))


def test_upper_bound_of_softplus_has_no_gradient_above():
    log_scale = torch.tensor([[1.0, 5.0]], requires_grad=True)
    one = torch.ones_like(log_scale)
    y, log_abs_det = fast("softplus", limit=3.0)(one, one, log_scale)
    assert y[0, 1] == 4
    (y.sum() + log_abs_det.sum()).backward()
    assert log_scale.grad[0, 0] > 0
    assert log_scale.grad[0, 1] == 0


def test_samples_do_not_depend_on_the_batch():
    x, shift, log_scale = (draw(37, 3, 30, seed=seed) for seed in range(3))
    y, log_abs_det = fast("tanh")(x, shift, log_scale)
    for part in (slice(0, 1), slice(1, 20), slice(20, 37)):
        alone = fast("tanh")(x[part], shift[part], log_scale[part])
        assert torch.equal(alone[0], y[part])
        assert torch.equal(alone[1], log_abs_det[part])


def test_streamed_results_are_the_same():
    """A batch beyond the caches is stored past them."""
    x, shift, log_scale = (draw(1, 64, seed=seed).expand(40000, 64) for seed in range(3))
    y, log_abs_det = fast("tanh")(x.contiguous(), shift, log_scale)
    alone = fast("tanh")(x[:1], shift[:1], log_scale[:1])
    assert torch.equal(y, alone[0].expand_as(y))
    assert torch.equal(log_abs_det, alone[1].expand(40000))


class Constant(torch.nn.Module):
    """A network with a given output."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *args):
        return self.output


def assert_parity(ours, theirs):
    for found, expected in zip(ours, theirs):
        torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("shape", [(6,), (6, 3, 5)])
def test_nflows_coupling(shape, additive):
    nflows = pytest.importorskip("nflows.transforms.coupling")
    x = draw(4, *shape, dtype=torch.float64)
    output = 3 * draw(4, 3 if additive else 6, *shape[1:], dtype=torch.float64, seed=1)
    network = Constant(output)
    kind = nflows.AdditiveCouplingTransform if additive else nflows.AffineCouplingTransform
    theirs = kind(torch.tensor([0, 0, 0, 1, 1, 1]), lambda inputs, outputs: network)
    parameters = (output, None) if additive else genssl_fast.affine_parameters(output)
    clamp = "none" if additive else "sigmoid"
    for inverse, function in ((False, theirs.forward), (True, theirs.inverse)):
        assert_parity(fast(clamp, split=3, inverse=inverse)(x, *parameters), function(x))


def test_nflows_maf():
    nflows = pytest.importorskip("nflows.transforms.autoregressive")
    theirs = nflows.MaskedAffineAutoregressiveTransform(5, 8).double()
    x = draw(4, 5, dtype=torch.float64)
    transform = AffineTransform("softplus", layout="interleaved_scale_first")
    parameters = theirs.autoregressive_net(x)
    assert_parity(apply_transform(transform, x, parameters), theirs(x))
    y = theirs(x)[0]
    inverse = apply_transform(transform, y, parameters, inverse=True)
    assert_parity(inverse, theirs._elementwise_inverse(y, parameters))


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
def test_normflows(scale_map):
    normflows = pytest.importorskip("normflows")
    x = draw(4, 8, 3, 5, dtype=torch.float64)
    output = draw(4, 8, 3, 5, dtype=torch.float64, seed=1)
    theirs = normflows.flows.AffineCoupling(Constant(output), scale_map=scale_map)
    clamp = {"exp": "none", "sigmoid": "reciprocal_sigmoid", "sigmoid_inv": "sigmoid"}[scale_map]
    given = {} if scale_map == "exp" else {"min_scale": 0.0}
    parameters = genssl_fast.affine_parameters(output, "interleaved")
    for inverse, function in ((False, theirs.forward), (True, theirs.inverse)):
        (first, second), log_det = function(list(x.chunk(2, 1)))
        ours = fast(clamp, split=4, inverse=inverse, **given)(x, *parameters)
        assert_parity(ours, (torch.cat([first, second], 1), log_det))


@pytest.mark.parametrize("activation", ["ATAN", "TANH"])
def test_freia_couplings(activation):
    """FrEIA does not divide by the clamp before its tanh."""
    freia = pytest.importorskip("FrEIA.modules")
    x = draw(4, 6, 3, 3, dtype=torch.float64)
    output = draw(4, 6, 3, 3, dtype=torch.float64, seed=1)
    theirs = freia.GLOWCouplingBlock(
        [(6, 3, 3)], subnet_constructor=lambda *_: Constant(output), clamp_activation=activation
    )
    shift, log_scale = genssl_fast.affine_parameters(output, "cat_scale_first")
    log_scale = log_scale if activation == "ATAN" else 2 * log_scale
    for inverse in (False, True):
        halves = [fast(activation.lower(), inverse=inverse)(half, shift, log_scale) for half in x.chunk(2, 1)]
        ours = torch.cat([half[0] for half in halves], 1), halves[0][1] + halves[1][1]
        (y,), log_det = theirs([x], rev=inverse)
        assert_parity(ours, (y, log_det))


def test_freia_all_in_one_block():
    freia = pytest.importorskip("FrEIA.modules")
    x, output = draw(4, 6, dtype=torch.float64), draw(4, 6, dtype=torch.float64, seed=1)
    theirs = freia.AllInOneBlock(
        [(6,)], subnet_constructor=lambda *_: Constant(output.clone()), affine_clamping=1.5
    ).double()
    log_scale, shift = (0.1 * output).chunk(2, 1)
    y, log_abs_det = fast("tanh", limit=1.5, split=3)(x, shift, 1.5 * log_scale)
    expected, log_det = theirs([x])
    scale = theirs.global_scale_activation(theirs.global_scale)
    y = torch.nn.functional.linear(y * scale + theirs.global_offset, theirs.w_perm.view(6, 6))
    assert_parity((y, log_abs_det + scale.log().sum()), (expected[0], log_det))


def test_zuko():
    transforms = pytest.importorskip("zuko.transforms")
    x, parameters = draw(4, 5, dtype=torch.float64), 5 * draw(4, 5, 2, dtype=torch.float64)
    theirs = transforms.MonotonicAffineTransform(*parameters.unbind(-1))
    transform = AffineTransform("zuko", layout="interleaved")
    y, log_det = theirs.call_and_ladj(x)
    assert_parity(apply_transform(transform, x, parameters), (y, log_det.sum(1)))
    back, log_det = theirs.inv.call_and_ladj(y)
    assert_parity(apply_transform(transform, y, parameters, inverse=True), (back, log_det.sum(1)))


def test_transforms_as_data():
    assert [num_parameters(AffineTransform(layout=layout)) for layout in ("cat", "shift")] == [2, 1]
    assert [num_parameters(SplineTransform(5, tails)) for tails in ("linear", "circular", None)] == [
        14,
        15,
        16,
    ]
    x, shift, log_scale = (draw(3, 4, seed=seed) for seed in range(3))
    expected = fast("tanh")(x, shift, log_scale)
    both = {
        "cat": torch.cat([shift, log_scale], 1),
        "cat_scale_first": torch.cat([log_scale, shift], 1),
        "interleaved": torch.stack([shift, log_scale], 2),
        "interleaved_scale_first": torch.stack([log_scale, shift], 2),
    }
    for layout, parameters in both.items():
        for form in (parameters.reshape(3, 8), parameters.reshape(3, 4, 2)):
            found = apply_transform(AffineTransform("tanh", layout=layout), x, form)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))
    added = apply_transform(AffineTransform(layout="shift"), x, shift)
    assert torch.equal(added[0], x + shift)
    spline = SplineTransform(5, bound=3.0)
    parameters = draw(3, 4, num_parameters(spline))
    y, log_abs_det = apply_transform(spline, x, parameters)
    back, minus = apply_transform(spline, y, parameters.flatten(1), inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(minus, -log_abs_det, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_another_precision(dtype):
    """As a network under autocast gives them; x and parameters are computed as they are."""
    transform = AffineTransform("tanh")
    x, parameters = draw(3, 4), draw(3, 8, seed=1).to(dtype)
    y, log_abs_det = apply_transform(transform, x, parameters)
    assert y.dtype == torch.float32
    expected = apply_transform(transform, x, parameters.float())
    assert all(map(torch.equal, (y, log_abs_det), expected))
    y, log_abs_det = apply_transform(transform, x.to(dtype), parameters.float())
    assert y.dtype == dtype
    expected = apply_transform(transform, x.to(dtype).float(), parameters.float())
    assert all(map(torch.equal, (y, log_abs_det), (expected[0].to(dtype), expected[1])))


def test_infinite_limit_of_softplus_is_none():
    assert all(map(torch.equal, fast("softplus")(*DRAWN), fast("softplus", limit=torch.inf)(*DRAWN)))
