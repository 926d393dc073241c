"""Rational-quadratic splines: the battery, parity with nflows, zuko and normflows, robustness, bad input."""

import pytest
import torch

import tests.battery as battery
from genssl_fast import reference
from genssl_fast.ops.rational_quadratic_spline import rational_quadratic_spline, raw_spline
from tests.battery import Battery, Case

nflows_splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
TAILS = (None, "linear", "circular")
NUM_SLOPES = {"linear": -1, "circular": 0, None: 1}


def num_slopes(bins, tails):
    return bins + NUM_SLOPES[tails]


def drawn(
    shape, bins, tails, scale=1.0, bound=1.0, dtype=torch.float32, generator=None, parameter_dtype=None
):
    """x, a third of it outside the box where there are tails, and parameters."""
    normal = [torch.randn(*shape, n, generator=generator) for n in (bins, bins, num_slopes(bins, tails))]
    x = bound * (torch.rand(shape, generator=generator) * 2 - 1) * (0.95 if tails is None else 1.5)
    if dtype == torch.float64:
        parameter_dtype = None
    x = x.to(dtype)
    x = torch.where(abs(x) == bound, 0.5, x)  # there the log-derivative has a kink
    return (x, *((scale * p).to(parameter_dtype or dtype) for p in normal))


def inputs(bins, tails="linear", parameter_dtype=None):
    def draw(dtype, size, generator):
        """In fp64, where second derivatives are taken, few splines; else so many that none decides alone."""
        shape = (size, 2) if dtype == torch.float64 or size == 0 else (size + 40, 24)
        return drawn(shape, bins, tails, 0.1, 1.0, dtype, generator, parameter_dtype)

    return draw


def plain(x, w, h, d, inverse=False, elementwise=False, tails="linear", zuko=False, box=(-1, 1, -1, 1)):
    box = tuple(map(float, box))
    return reference.coupling.rational_quadratic_spline(
        x, w, h, d, inverse, elementwise, TAILS.index(tails), zuko, *box, 1e-3, 1e-3, 1e-3, 1e-3
    )


def case(bins, raw=None, parameter_dtype=None, **options):
    ours = {k: v for k, v in options.items() if k not in ("zuko", "box")}
    if options.get("zuko"):
        ours["parameterization"] = "zuko"
    if "box" in options:
        ours["bound"] = options["box"]
    return Case(
        lambda *tensors: rational_quadratic_spline(*tensors, **ours),
        lambda *tensors: plain(*tensors, **options),
        inputs(bins, options.get("tails", "linear"), parameter_dtype),
        differentiable=(0, 1, 2, 3),
        raw=raw,
        sizes=(1, 3, 17),
    )


def together(bins, **options):
    """All parameters in one tensor, [B, features, P]."""
    apart = case(bins, **options)

    def draw(dtype, size, generator):
        x, *parameters = apart.inputs(dtype, size, generator)
        return x, torch.cat(parameters, -1)

    return Case(
        lambda x, parameters: rational_quadratic_spline(x, parameters, **options),
        lambda x, parameters: plain(x, parameters, None, None, **options),
        draw,
        differentiable=(0, 1),
        raw=None if options else lambda x, parameters: raw_arguments(x, parameters, None, None),
        sizes=apart.sizes,
    )


def raw_arguments(x, w, h, d):
    return raw_spline, (x, w, h, d, False, False, 1, False, -1.0, 1.0, -1.0, 1.0, 1e-3, 1e-3, 1e-3, 1e-3)


class TestRationalQuadraticSpline(Battery):
    cases = {
        "forward": case(5, raw=raw_arguments),
        "inverse": case(4, inverse=True),
        "circular_zuko_elementwise": case(3, tails="circular", zuko=True, elementwise=True),
        "half_parameters": case(8, parameter_dtype=torch.bfloat16),
        "together": together(8),
        "together_inverse": together(4, inverse=True, tails="circular"),
        "box_inverse": case(5, tails=None, inverse=True, box=(-1.0, 1.5, -2.0, 1.0)),
    }
    errors = {
        "dtype": (
            lambda: spline_of(x=torch.zeros(2, 3).int()),
            TypeError,
            "x: expected dtype float32",
        ),
        "mixed width": (
            lambda: spline_of(x=torch.zeros(2, 3).double()),
            TypeError,
            "widths: expected 64 bits for both x and parameters or for neither",
        ),
        "mixed parameters": (
            lambda: spline_of(heights=torch.zeros(2, 3, 4).half()),
            TypeError,
            "heights: expected the dtype of widths, torch.float32, got torch.float16",
        ),
        "together": (
            lambda: spline_of(widths=torch.zeros(2, 3, 12), heights=None, derivatives=None),
            ValueError,
            r"widths: expected shape .*2 K \+ 3 for 4 bins .*= \[2, 3, 11\], got \[2, 3, 12\]",
        ),
        "half of them": (
            lambda: spline_of(heights=None),
            ValueError,
            "heights, derivatives: expected both or neither",
        ),
        "heights": (
            lambda: spline_of(heights=torch.zeros(2, 3, 5)),
            ValueError,
            r"heights: expected shape \[\*x.shape, K\] = \[2, 3, 4\], got \[2, 3, 5\]",
        ),
        "derivatives": (
            lambda: spline_of(tails=None),
            ValueError,
            r"derivatives: expected shape .*5 for 4 bins and tails None\] = \[2, 3, 5\], got \[2, 3, 3\]",
        ),
        "device": (
            lambda: spline_of(widths=torch.zeros(2, 3, 4, device="meta")),
            ValueError,
            "widths: expected a tensor on cpu, got one on meta",
        ),
        "too many bins": (
            lambda: spline_of(widths=torch.zeros(2, 3, 65)),
            ValueError,
            "widths: expected 1 to 64 bins in the last dimension, got 65",
        ),
        "tails": (
            lambda: spline_of(tails="flat"),
            ValueError,
            "tails: expected one of None, 'linear', 'circular', got 'flat'",
        ),
        "bound": (
            lambda: spline_of(bound=0.0),
            ValueError,
            "bound: expected a positive finite number, got 0",
        ),
        "box": (
            lambda: spline_of(bound=(0.0, 1.0, 0.0, 2.0)),
            ValueError,
            "bound: expected one interval on both axes for tails 'linear'",
        ),
        "empty box": (
            lambda: spline_of(bound=(1.0, 0.0, 1.0, 0.0)),
            ValueError,
            "bound: expected left < right",
        ),
        "width": (
            lambda: spline_of(min_bin_width=0.0),
            ValueError,
            "min_bin_width: expected a positive share, 4 of them at most 1, got 0",
        ),
        "height": (
            lambda: spline_of(min_bin_height=0.3),
            ValueError,
            "min_bin_height: expected a positive share, 4 of them at most 1, got 0.3",
        ),
        "slope": (
            lambda: spline_of(parameterization="zuko", slope=1.0),
            ValueError,
            "slope: expected a number between 0 and 1, got 1.0",
        ),
        "derivative": (
            lambda: spline_of(min_derivative=-1.0),
            ValueError,
            "min_derivative: expected a positive number, got -1.0",
        ),
        "outside": (
            lambda: spline_of(x=torch.full((2, 3), 1.5), derivatives=torch.zeros(2, 3, 5), tails=None),
            ValueError,
            r"x: expected values in the box, \[-1, 1\], without tails, got 1.5 to 1.5",
        ),
    }


def spline_of(**given):
    """A call with some arguments replaced."""
    tensors = {"x": torch.zeros(2, 3), "widths": torch.zeros(2, 3, 4), "heights": torch.zeros(2, 3, 4)}
    tensors["derivatives"] = torch.zeros(2, 3, 3)
    return rational_quadratic_spline(**tensors | given)


def knots_among(x, bound):
    """x with two entries at the ends of the box."""
    x = x.clone()
    x.view(-1)[:2] = torch.tensor([-bound, bound], dtype=x.dtype)
    return x


def close_in_fp32(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("transform", battery.TRANSFORMS)
def test_transforms_of_the_kernels(transform, inverse, monkeypatch):
    """The battery transforms fp64 functions, which PyTorch computes; these are fp32."""
    monkeypatch.setattr(battery, "assert_all_equal", close_in_fp32)
    tested = case(3, inverse=inverse)
    tensors = drawn((2, 2), 3, "linear", 0.3, generator=torch.Generator().manual_seed(0))
    battery.compare_transform(transform, tested.function, tested.reference, tensors)


@pytest.mark.parametrize("build", [battery.gradient_of, battery.tangents_of, battery.mapped])
def test_compiled_kernels(build):
    tested = case(3)
    tensors = drawn((2, 2), 3, "linear", 0.3, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    compiled = torch.compile(build(tested.function), backend="aot_eager", fullgraph=True)
    if build is battery.gradient_of and not battery.REENTRANT:
        return battery.assert_refused(compiled, *tensors)
    close_in_fp32(compiled(*tensors), build(tested.reference)(*tensors))


def gradients_of(function, tensors):
    """Gradients of a fixed functional of value and log-derivative."""
    tensors = [t.clone().requires_grad_() for t in tensors]
    outputs = function(*tensors)
    return torch.autograd.grad(sum((battery.cotangent(o) * o).sum() for o in outputs), tensors)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [4, 8, 16])
@pytest.mark.parametrize("bound", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_nflows(inverse, bins, bound, scale):
    """T1: value, log-derivative and gradients in fp64; nflows' own inverse loses digits where steep."""
    generator = torch.Generator().manual_seed(bins)
    x, *parameters = drawn((500, 20), bins, "linear", scale, bound, torch.float64, generator)
    tensors = (knots_among(x, bound), *parameters)

    def ours(*tensors):
        return rational_quadratic_spline(*tensors, inverse=inverse, bound=bound, elementwise=True)

    def theirs(*tensors):
        return nflows_splines.unconstrained_rational_quadratic_spline(
            *tensors, inverse=inverse, tail_bound=bound
        )

    found, expected = ours(*tensors), theirs(*tensors)
    if inverse:
        back, _ = rational_quadratic_spline(found[0], *parameters, bound=bound)
        assert (back - tensors[0]).abs().max() <= 1e-12
        steep = expected[1].abs() > 2
        found, expected = ([o[~steep] for o in pair] for pair in (found, expected))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 if inverse else 1e-12)
    if not inverse:
        for a, b in zip(gradients_of(ours, tensors), gradients_of(theirs, tensors)):
            assert (a - b).abs().max() <= 1e-9 * b.abs().max()


@pytest.mark.parametrize("bins", [4, 8, 16])
@pytest.mark.parametrize("inverse", [False, True])
def test_fp32_is_as_near_as_nflows(bins, inverse):
    """T1 in fp32: against fp64, on average no worse than nflows."""
    tensors = drawn((500, 20), bins, "linear", 1.0, 3.0, generator=torch.Generator().manual_seed(bins))
    options = {"inverse": inverse, "bound": 3.0, "elementwise": True}
    exact = rational_quadratic_spline(*(t.double() for t in tensors), **options)
    ours = rational_quadratic_spline(*tensors, **options)
    theirs = nflows_splines.unconstrained_rational_quadratic_spline(*tensors, inverse=inverse, tail_bound=3.0)
    for a, b, e in zip(ours, theirs, exact):
        assert (a - e).abs().mean() <= 1.25 * (b - e).abs().mean()


@pytest.mark.parametrize("inverse", [False, True])
def test_zuko(inverse):
    """T2: zuko's parameterization, and its formula on nflows' knots."""
    transforms = pytest.importorskip("zuko.transforms")
    generator = torch.Generator().manual_seed(0)
    x, *parameters = drawn((500, 20), 8, "linear", 3.0, 5.0, torch.float64, generator)
    options = {"inverse": inverse, "bound": 5.0, "elementwise": True}

    def compare(transform, found, expected_log=True):
        y = transform._inverse(x) if inverse else transform._call(x)
        torch.testing.assert_close(found[0], y, rtol=0, atol=1e-9 if inverse else 1e-12)
        if not inverse:
            torch.testing.assert_close(found[1], transform.log_abs_det_jacobian(x, y), rtol=0, atol=1e-12)

    native = transforms.MonotonicRQSTransform(*parameters, bound=5.0)
    compare(native, rational_quadratic_spline(x, *parameters, **options, parameterization="zuko"))
    settings = (1, False, -5.0, 5.0, -5.0, 5.0, 1e-3, 1e-3, 1e-3, 1e-3)
    knots = reference.coupling.spline_knots(*parameters, *settings)
    native.horizontal, native.vertical, native.derivatives = knots
    compare(native, rational_quadratic_spline(x, *parameters, **options))


@pytest.mark.parametrize("inverse", [False, True])
def test_normflows_circular(inverse):
    """T3; normflows is in fp64 as in nflows."""
    splines = pytest.importorskip("normflows.utils.splines")
    x, *parameters = drawn((200, 6), 5, "circular", 1.0, 2.0, torch.float64, torch.Generator().manual_seed(1))
    expected = splines.unconstrained_rational_quadratic_spline(
        x, *parameters, inverse=inverse, tails="circular", tail_bound=2.0
    )
    found = rational_quadratic_spline(
        x, *parameters, inverse=inverse, tails="circular", bound=2.0, elementwise=True
    )
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
def test_wild_parameters(scale):
    """T9: nothing non-finite, and errors as of rounding of argument and result alone."""
    bound = 3.0
    tensors = drawn((20000, 10), 8, "linear", scale, bound, generator=torch.Generator().manual_seed(2))
    x, log_derivative = rational_quadratic_spline(*tensors, inverse=True, bound=bound, elementwise=True)
    exact, log_exact = rational_quadratic_spline(
        *(t.double() for t in tensors), inverse=True, bound=bound, elementwise=True
    )
    assert torch.isfinite(x).all()
    assert torch.isfinite(log_derivative).all()
    rounding = 2.0**-24 * (exact.abs() + bound + (tensors[0].abs() + bound) * torch.exp(log_exact))
    assert ((x - exact).abs() / rounding).max() <= 32


@pytest.mark.parametrize("scale", [10.0, 30.0])
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_of_wild_parameters(inverse, scale):
    tensors = drawn((2000, 10), 8, "linear", scale, 3.0, generator=torch.Generator().manual_seed(2))
    found = gradients_of(lambda *t: rational_quadratic_spline(*t, inverse=inverse, bound=3.0), tensors)
    assert all(torch.isfinite(g).all() for g in found)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", ["linear", "circular"])
def test_edges_and_tails(inverse, tails):
    """T10: the ends of the box are exact, infinities and NaN pass through, and neighbours do not mind."""
    x = torch.tensor([[-32.0, 32.0, torch.inf, -torch.inf, torch.nan, 40.0, -33.0, 0.5]])
    _, *parameters = drawn((1, 8), 6, tails, 3.0, generator=torch.Generator().manual_seed(3))
    y, log_derivative = rational_quadratic_spline(
        x, *parameters, inverse=inverse, tails=tails, bound=32.0, elementwise=True
    )
    assert torch.equal(y[0, :4], x[0, :4])
    assert y[0, 4].isnan()
    assert torch.equal(y[0, 5:7], x[0, 5:7])
    assert torch.equal(log_derivative[0, 2:7], torch.zeros(5))
    assert torch.isfinite(log_derivative).all()
    if tails == "linear":
        assert log_derivative[0, :2].abs().max() <= 1e-6
    found = gradients_of(
        lambda *p: rational_quadratic_spline(x, *p, inverse=inverse, tails=tails, bound=32.0)[1:], parameters
    )
    assert all(torch.isfinite(g).all() and (g[0, 2:7] == 0).all() for g in found)


def test_empty_and_all_tails():
    y, log_abs_det = spline_of(x=torch.full((2, 3), -7.0))
    assert torch.equal(y, torch.full((2, 3), -7.0))
    assert torch.equal(log_abs_det, torch.zeros(2))
    empty = [torch.zeros(0, 3, *n) for n in ((), (4,), (4,), (3,))]
    y, log_abs_det = rational_quadratic_spline(*empty)
    assert y.shape == (0, 3)
    assert log_abs_det.shape == (0,)


@pytest.mark.parametrize("bins", [1, 2, 33, 64])
@pytest.mark.parametrize("tails", TAILS)
def test_numbers_of_bins(bins, tails):
    generator = torch.Generator().manual_seed(bins)
    tensors = drawn((40, 25), bins, tails, 0.5, generator=generator)
    options = {"tails": tails, "elementwise": True}
    exact = plain(*battery.to_fp64(tensors), **options)
    y, log_derivative = rational_quadratic_spline(*tensors, **options)
    torch.testing.assert_close(y.double(), exact[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(log_derivative.double(), exact[1], rtol=0, atol=1e-3)
    back, log_back = rational_quadratic_spline(y, *tensors[1:], inverse=True, **options)
    torch.testing.assert_close(back, tensors[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(log_back, -log_derivative, rtol=0, atol=1e-2)


def test_chunks_are_read_where_they_lie():
    """Views of a network's output, also of several dimensions, equal their copies."""
    x = torch.rand(7, 5, 3) - 0.5
    output = torch.randn(7, 2, 3, 5, 23)[:, 1].transpose(1, 2)
    chunks = output.split([8, 8, 7], dim=-1)
    found = rational_quadratic_spline(x, *chunks)
    expected = rational_quadratic_spline(x, *(c.clone(memory_format=torch.contiguous_format) for c in chunks))
    together = rational_quadratic_spline(x, output)
    for a, b, c in zip(found, expected, together):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_batch_does_not_matter():
    tensors = drawn((37, 11), 8, "linear")
    for inverse in (False, True):
        whole = rational_quadratic_spline(*tensors, inverse=inverse)
        for first, last in ((0, 1), (1, 4), (4, 37)):
            part = rational_quadratic_spline(*(t[first:last] for t in tensors), inverse=inverse)
            for a, b in zip(whole, part):
                assert torch.equal(a[first:last], b)


@pytest.mark.parametrize("samples", [11, 8003])
def test_gradients_together_and_apart(samples):
    """The larger gradient of parameters that lie together bypasses the caches."""
    x, *parameters = drawn((samples, 24), 8, "linear", generator=torch.Generator().manual_seed(0))
    apart = gradients_of(rational_quadratic_spline, [x, *parameters])
    together = gradients_of(rational_quadratic_spline, [x, torch.cat(parameters, -1)])
    assert torch.equal(together[0], apart[0])
    assert torch.equal(together[1], torch.cat(apart[1:], -1))
