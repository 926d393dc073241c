"""Barlow Twins and VICReg: the battery, both forms against one formula, peers, what must stay finite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import genssl_fast
from bench.peers import import_past_init
from genssl_fast import reference
from genssl_fast._library import INSTRUCTION_SETS, implementations
from genssl_fast.ops.decorrelation import FORMS
from genssl_fast.reference.contrast import decorrelation_products
from tests.battery import Battery, Case, assert_close_enough, gradients, to_fp64
from tests.ops.instruction_sets import outputs_under

LOSSES = ("barlow_twins", "vicreg")
BARLOW_TWINS, VICREG = (0.0051, 1.0, 1e-5), (25.0, 12.5, 1.0, 1.0, 1e-4)
PLAIN = {
    "barlow_twins": lambda z1, z2: reference.contrast.barlow_twins(z1, z2, *BARLOW_TWINS),
    "vicreg": lambda z1, z2: reference.contrast.vicreg(z1, z2, *VICREG),
}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # fp64 to its own digits in a test below


def draw_views(n, d, dtype=torch.float32, generator=None):
    """Correlated views whose features differ in mean and deviation."""
    generator = generator or torch.Generator().manual_seed(0)
    deviation = 0.5 + torch.arange(d) % 5 / 4
    shared, *noises = torch.randn(3, n, d, generator=generator)
    return tuple((deviation * (shared + noise) + torch.arange(d) % 3).to(dtype) for noise in noises)


def fast(loss, **options):
    return lambda z1, z2: getattr(genssl_fast, loss)(z1, z2, **options)


def case(loss, features, dtypes=FLOATS, **options):
    """`features` for few rows decide which form is chosen by itself."""
    overload = getattr(torch.ops.genssl_fast, f"_{loss}").default
    numbers = BARLOW_TWINS if loss == "barlow_twins" else VICREG
    return Case(
        fast(loss, **options),
        PLAIN[loss],
        lambda dtype, size, generator: draw_views(size + 3, features, dtype, generator),
        differentiable=(0, 1),
        raw=lambda z1, z2: (overload, (z1, z2, *numbers, 2 * len(z1) < features, True)),
        dtypes=dtypes,
    )


class TestDecorrelation(Battery):
    cases = {
        "barlow_twins, tiles": case("barlow_twins", 5, (torch.float32,)),
        "barlow_twins, gram": case("barlow_twins", 45),
        "vicreg, tiles": case("vicreg", 5, (torch.float32,)),
        "vicreg, gram": case("vicreg", 45),
    }
    errors = {
        f"{loss}, {name}": (lambda call=call, loss=loss: call(getattr(genssl_fast, loss)), exception, message)
        for loss in LOSSES
        for name, (call, exception, message) in {
            "no tensor": (lambda f: f([1.0], torch.ones(2, 3)), TypeError, "z1: expected a tensor"),
            "dimensions": (lambda f: f(torch.ones(3), torch.ones(3)), ValueError, "z1: expected shape"),
            "shapes": (lambda f: f(torch.ones(4, 3), torch.ones(4, 2)), ValueError, "z2: expected the shape"),
            "dtypes": (
                lambda f: f(torch.ones(4, 3), torch.ones(4, 3).double()),
                TypeError,
                "z2: expected the dtype of z1",
            ),
            "integers": (lambda f: f(torch.ones(4, 3).long(), torch.ones(4, 3).long()), TypeError, "z1: "),
            "one row": (
                lambda f: f(torch.ones(1, 3), torch.ones(1, 3)),
                ValueError,
                "z1: expected at least 2",
            ),
            "no features": (
                lambda f: f(torch.ones(3, 0), torch.ones(3, 0)),
                ValueError,
                "z1: .* one feature",
            ),
            "eps": (lambda f: f(*draw_views(4, 3), eps=0.0), ValueError, "eps: expected a finite number"),
            "form": (lambda f: f(*draw_views(4, 3), form="dense"), ValueError, "form: expected one of"),
            "convention": (
                lambda f: f(*draw_views(4, 3), convention="mine"),
                ValueError,
                "convention: expected one of",
            ),
        }.items()
    } | {
        "weight": (
            lambda: genssl_fast.barlow_twins(*draw_views(4, 3), weight=-1.0),
            ValueError,
            "weight: expected a finite number at least 0, got -1.0",
        ),
        "tensor weight": (
            lambda: genssl_fast.barlow_twins(*draw_views(4, 3), weight=torch.ones(())),
            TypeError,
            "weight: expected a number, got Tensor",
        ),
        "covariance": (
            lambda: genssl_fast.vicreg(*draw_views(4, 3), covariance=float("nan")),
            ValueError,
            "covariance: expected a finite number",
        ),
    }


def assert_equals_reference(ours, plain, z, what):
    exact = plain(*to_fp64(z))
    assert_close_enough(ours(*z), plain(*z), exact, 2, what)
    right = gradients(plain, to_fp64(z), (0, 1))
    theirs = gradients(plain, z, (0, 1))
    for i, found in enumerate(gradients(ours, z, (0, 1))):
        assert_close_enough(found, theirs[i], right[i], 3, f"{what}, gradient {i}")


@pytest.mark.parametrize("shape", [(17, 100), (65, 33), (33, 300), (40, 129), (300, 257)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_both_forms_on_either_side_of_the_choice(loss, form, shape):
    z = draw_views(*shape)
    if form == "tiles" or 2 * shape[0] < shape[1]:
        assert_equals_reference(fast(loss, form=form), PLAIN[loss], z, form)
    z = to_fp64(z)
    right = PLAIN[loss](*z), *gradients(PLAIN[loss], z, (0, 1))
    ours = fast(loss, form=form)
    for found, expected in zip((ours(*z), *gradients(ours, z, (0, 1))), right):
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 1e-13, error


def test_the_choice():
    for n, d, form in ((8, 17, "gram"), (8, 16, "tiles"), (8, 15, "tiles")):
        z = draw_views(n, d)
        for loss in LOSSES:
            assert torch.equal(fast(loss)(*z), fast(loss, form=form)(*z))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_products_of_pytorch(loss, form, monkeypatch):
    """What runs where there is no kernel, in several blocks."""
    monkeypatch.setattr(decorrelation_products, "BLOCK", 16)
    options, gram = BARLOW_TWINS if loss == "barlow_twins" else VICREG, form == "gram"
    z = draw_views(13, 41, torch.float64)
    forward = getattr(decorrelation_products, loss)
    value, products, statistics = forward(*z, *options, gram, True)
    backward = getattr(decorrelation_products, f"{loss}_backward")
    grad = torch.tensor(1.5, dtype=torch.float64)
    found = backward(grad, *z, products, statistics, *options, gram)
    torch.testing.assert_close(value, PLAIN[loss](*z), rtol=1e-12, atol=0)
    torch.testing.assert_close(forward(*z, *options, gram, False)[0], value, rtol=1e-13, atol=0)
    wanted = [v.clone().requires_grad_() for v in z]
    expected = torch.autograd.grad(1.5 * PLAIN[loss](*wanted), wanted)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


# Peers


def lightly_loss(loss, **options):
    pytest.importorskip("lightly")
    if loss == "barlow_twins":
        module = import_past_init("lightly.loss.barlow_twins_loss").BarlowTwinsLoss
    else:
        module = import_past_init("lightly.loss.vicreg_loss", "lightly.utils").VICRegLoss
    return module(**options)


def assert_parity(ours, theirs, z):
    torch.testing.assert_close(ours(*z), theirs(*z), rtol=1e-10, atol=1e-12)
    found, expected = gradients(ours, z, (0, 1)), gradients(theirs, z, (0, 1))
    scale = max(e.abs().max().item() for e in expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * scale + 1e-13)


SHAPES = {"n": st.integers(3, 24), "d": st.integers(1, 60), "seed": st.integers(0, 2**31)}
WEIGHTS = st.floats(0, 50)


def drawn(n, d, seed):
    return draw_views(n, d, torch.float64, torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(**SHAPES, weight=st.none() | st.floats(0, 1))
def test_lightly_barlow_twins(n, d, seed, weight):
    theirs = lightly_loss("barlow_twins", **({} if weight is None else {"lambda_param": weight}))
    assert_parity(fast("barlow_twins", convention="lightly", weight=weight), theirs, drawn(n, d, seed))


@settings(max_examples=25, deadline=None)
@given(**SHAPES, weights=st.tuples(WEIGHTS, WEIGHTS, WEIGHTS), eps=st.sampled_from([1e-4, 1e-2]))
def test_lightly_vicreg(n, d, seed, weights, eps):
    invariance, variance, covariance = weights
    theirs = lightly_loss("vicreg", lambda_param=invariance, mu_param=variance, nu_param=covariance, eps=eps)
    ours = fast(
        "vicreg", convention="lightly", invariance=invariance, variance=variance, covariance=covariance,
        eps=eps,
    )  # fmt: skip
    assert_parity(ours, theirs, drawn(n, d, seed))


def test_positions_as_lightly_has_them():
    z = tuple(v.view(6, 4, 15) for v in draw_views(6, 60, torch.float64))
    assert_parity(fast("vicreg", convention="lightly"), lightly_loss("vicreg"), z)


def off_diagonal(matrix):
    n = len(matrix)
    return matrix.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()


def transcribed_original_barlow_twins(z1, z2):
    """facebookresearch/barlowtwins main.py, transcribed."""
    normalize = torch.nn.BatchNorm1d(z1.shape[1], affine=False, dtype=z1.dtype)
    c = normalize(z1).T @ normalize(z2) / len(z1)
    return (torch.diagonal(c) - 1).pow(2).sum() + 0.0051 * off_diagonal(c).pow(2).sum()


def transcribed_solo_learn_barlow_twins(z1, z2):
    """solo-learn losses/barlow.py, transcribed."""
    normalize = torch.nn.BatchNorm1d(z1.shape[1], affine=False, dtype=z1.dtype)
    corr = torch.einsum("bi, bj -> ij", normalize(z1), normalize(z2)) / len(z1)
    diagonal = torch.eye(len(corr), dtype=z1.dtype)
    difference = (corr - diagonal).pow(2)
    return 0.025 * torch.where(diagonal.bool(), difference, 5e-3 * difference).sum()


def transcribed_vicreg(z1, z2, halved=True, per_row=False):
    """facebookresearch/vicreg main_vicreg.py; solo-learn losses/vicreg.py does not halve the variance term,
    and the paper's invariance is a squared norm a row (and not halved either). Transcribed."""
    n, d = z1.shape
    invariance = (z1 - z2).pow(2).sum() / n if per_row else torch.nn.functional.mse_loss(z1, z2)
    variance = covariance = 0
    for z in (z1, z2):
        std = torch.sqrt(z.var(dim=0) + 0.0001)
        variance = variance + torch.mean(torch.relu(1 - std)) / (2 if halved else 1)
        x = z - z.mean(dim=0)
        covariance = covariance + off_diagonal(x.T @ x / (n - 1)).pow(2).sum() / d
    return 25 * invariance + 25 * variance + covariance


@pytest.mark.parametrize(
    ("loss", "convention", "theirs"),
    [
        ("barlow_twins", "original", transcribed_original_barlow_twins),
        ("barlow_twins", "solo-learn", transcribed_solo_learn_barlow_twins),
        ("vicreg", "original", transcribed_vicreg),
        ("vicreg", "solo-learn", lambda *z: transcribed_vicreg(*z, halved=False)),
        ("vicreg", "paper", lambda *z: transcribed_vicreg(*z, halved=False, per_row=True)),
    ],
)
def test_conventions_by_transcription(loss, convention, theirs):
    for shape in ((12, 9), (7, 40)):
        z = tuple(0.5 * v for v in draw_views(*shape, torch.float64))
        assert_parity(fast(loss, convention=convention), theirs, z)


# What must stay finite, linear and the same


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_features_without_variance(loss, form, dtype):
    z = tuple(v.clone().requires_grad_() for v in draw_views(9, 40, dtype))
    with torch.no_grad():
        z[0][:, ::3] = 7.0
        z[1][:, ::2] = -3.0
    value = fast(loss, form=form)(*z)
    value.backward()
    exact = PLAIN[loss](*(v.detach().double() for v in z))
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    assert all(torch.isfinite(v.grad).all() for v in z)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_rows_and_equal_views(loss):
    same = torch.ones(5, 30, requires_grad=True)
    value = fast(loss)(same, same)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(same.grad).all()
    z = draw_views(9, 40)[0]
    torch.testing.assert_close(fast(loss)(z, z), PLAIN[loss](z, z), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_offsets_keep_their_digits(loss):
    """A mean a thousand deviations away: centred first, with what the mean lost by rounding."""
    for form in FORMS:
        z = tuple(v + 1000 for v in draw_views(20, 50))
        assert_equals_reference(fast(loss, form=form), PLAIN[loss], z, form)


def saved_numbers(loss, n, d, form):
    """Elements that autograd keeps, beside the views themselves."""
    z = tuple(v.requires_grad_() for v in draw_views(n, d))
    own, kept = {v.untyped_storage().data_ptr() for v in z}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fast(loss, form=form)(*z)
    return sum(kept.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_saved_numbers_are_linear_in_the_views(loss):
    for n, d in ((16, 512), (512, 16), (100, 100), (64, 1024)):
        assert saved_numbers(loss, n, d, None) <= 2 * n * (d + 48) + 11 * d


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_do_not_depend_on_threads(loss, form):
    z = draw_views(70, 400)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append((fast(loss, form=form)(*z), *gradients(fast(loss, form=form), z, (0, 1))))
    finally:
        torch.set_num_threads(threads)
    for again in found[1:]:
        assert all(map(torch.equal, found[0], again))


@pytest.mark.parametrize("loss", LOSSES)
def test_backward_twice_and_one_view_alone(loss):
    z1, z2 = draw_views(9, 40)
    z1.requires_grad_()
    value = fast(loss)(z1, z2)
    (first,) = torch.autograd.grad(value, z1, retain_graph=True)
    (again,) = torch.autograd.grad(3 * value, z1)
    torch.testing.assert_close(again, 3 * first)
    (expected,) = torch.autograd.grad(PLAIN[loss](z1, z2), z1)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


ISA_PROGRAM = """
import sys, torch
from tests.ops.test_decorrelation import FORMS, LOSSES, draw_views, fast, gradients
z = draw_views(37, 150)
torch.save([(fast(l, form=f)(*z), *gradients(fast(l, form=f), z, (0, 1)),
             *gradients(fast(l, form=f), tuple(v.double() for v in z), (0, 1)))
            for l in LOSSES for f in FORMS], sys.argv[1])
"""


@pytest.mark.skipif(
    implementations()["barlow_twins"]["CPU"] == "reference", reason="CPU kernels are not built"
)
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa, tmp_path):
    results = iter(outputs_under(isa, ISA_PROGRAM, tmp_path))
    z = draw_views(37, 150)
    for loss in LOSSES:
        exact = PLAIN[loss](*to_fp64(z)), *gradients(PLAIN[loss], to_fp64(z), (0, 1))
        plain = PLAIN[loss](*z), *gradients(PLAIN[loss], z, (0, 1))
        for form in FORMS:
            value, *found = next(results)
            assert_close_enough(value, plain[0], exact[0], 2, f"{isa} {form}")
            for i in (0, 1):
                assert_close_enough(found[i], plain[1 + i], exact[1 + i], 3, f"{isa} {form} {i}")
                torch.testing.assert_close(found[2 + i], exact[1 + i], rtol=1e-9, atol=1e-11)
