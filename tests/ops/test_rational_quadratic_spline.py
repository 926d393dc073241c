"""Rational-quadratic splines: the battery, parity with nflows, zuko and normflows, robustness, bad input."""

from functools import partial

import numpy
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
        return drawn(shape, bins, tails, 1.0, 1.0, dtype, generator, parameter_dtype)

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
            r"min_derivative: expected a positive number of at most 2\^40, got -1.0",
        ),
        "infinite derivative": (
            lambda: spline_of(min_derivative=torch.inf),
            ValueError,
            r"min_derivative: expected a positive number of at most 2\^40, got inf",
        ),
        "derivative in fp32": (
            lambda: spline_of(min_derivative=1e-50),
            ValueError,
            r"min_derivative: expected a positive number of at most 2\^40, got 1e-50",
        ),
        "slope in fp32": (
            lambda: spline_of(parameterization="zuko", slope=1 - 1e-12),
            ValueError,
            "slope: expected a number between 0 and 1, got 0.99",
        ),
        "bound in fp32": (
            lambda: spline_of(bound=1e39),
            ValueError,
            r"bound: expected sides of the box between 0 and infinity in torch.float32, got 1e\+39",
        ),
        "sides in fp32": (
            lambda: spline_of(bound=2e38),
            ValueError,
            "bound: expected sides of the box between 0 and infinity",
        ),
        "box empty in fp32": (
            lambda: spline_of(derivatives=torch.zeros(2, 3, 5), bound=(1e8, 1e8 + 1, 0, 1), tails=None),
            ValueError,
            "bound: expected sides of the box between 0 and infinity",
        ),
        "outside": (
            lambda: spline_of(x=torch.full((2, 3), 1.5), derivatives=torch.zeros(2, 3, 5), tails=None),
            ValueError,
            r"x: expected values in the box, \[-1, 1\], without tails, got 1.5 to 1.5",
        ),
        "outside beside NaN": (
            lambda: spline_of(
                x=torch.tensor([[torch.nan, 9, 0], [0, 0, -7]]), derivatives=torch.zeros(2, 3, 5), tails=None
            ),
            ValueError,
            r"x: expected values in the box, \[-1, 1\], without tails, got -7 to 9",
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


def exact_inverse(y, widths, heights, derivatives, bound):
    """The inverse within its box, in 80 bits. numpy, so that no code is shared with what is tested."""
    y, *logits = (t.numpy().astype(numpy.longdouble) for t in (y, widths, heights, derivatives))
    assert numpy.finfo(y.dtype).eps < 2e-19

    def knots_of(logits):
        shares = numpy.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        shares = 1e-3 + (1 - numpy.longdouble(1e-3) * logits.shape[-1]) * shares
        inner = 2 * bound * numpy.cumsum(shares, -1)[..., :-1] - bound
        ends = numpy.full_like(inner[..., :1], bound)
        return numpy.concatenate([-ends, inner, ends], -1)

    x_knots, y_knots = map(knots_of, logits[:2])
    slopes = 1e-3 + numpy.logaddexp(0, logits[2])
    slopes = numpy.concatenate(
        [numpy.ones_like(slopes[..., :1]), slopes, numpy.ones_like(slopes[..., :1])], -1
    )
    inside = abs(y) <= bound
    index = (y[..., None] >= y_knots[..., 1:-1]).sum(-1, keepdims=True)
    x0, y0, d0 = (numpy.take_along_axis(k, index, -1)[..., 0] for k in (x_knots, y_knots, slopes))
    x1, y1, d1 = (numpy.take_along_axis(k, index + 1, -1)[..., 0] for k in (x_knots, y_knots, slopes))
    w, h = x1 - x0, y1 - y0
    s, share = h / w, numpy.clip((y - y0) / h, 0, 1)
    change = d0 + d1 - 2 * s
    b = d0 - share * change
    root = numpy.sqrt(numpy.maximum(b * b + 4 * (s - d0 + share * change) * s * share, 0))
    t = numpy.where(b >= 0, -2 * s * share / (-b - root), (root - b) / (2 * (s - d0 + share * change)))
    denominator = s + change * t * (1 - t)
    reached = (s * t * t + d0 * t * (1 - t)) / denominator
    steepness = s * (d1 * t * t + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2) / denominator**2
    assert (abs(reached - share) / (1 + steepness))[inside].max() <= 1e-17  # a root, however it was found
    return torch.from_numpy(numpy.where(inside, x0 + w * t, y).astype(numpy.float64))


def rounding(argument, value, log_derivative, bound, unit):
    """What rounding argument and value, relative to the box, makes of the value."""
    slope = torch.exp(log_derivative)
    return unit * (value.abs() + bound + (argument.abs() + bound) * slope)


@pytest.mark.parametrize("bins", [4, 8, 16])
@pytest.mark.parametrize("bound", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_nflows(bins, bound, scale):
    """T1: value, log-derivative and gradients in fp64."""
    x, *parameters = drawn(
        (5000, 20), bins, "linear", scale, bound, torch.float64, torch.Generator().manual_seed(bins)
    )
    tensors = (knots_among(x, bound), *parameters)

    def ours(*tensors):
        return rational_quadratic_spline(*tensors, bound=bound, elementwise=True)

    def theirs(*tensors):
        return nflows_splines.unconstrained_rational_quadratic_spline(*tensors, tail_bound=bound)

    for a, b in zip(ours(*tensors), theirs(*tensors)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for a, b in zip(gradients_of(ours, tensors), gradients_of(theirs, tensors)):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max()


@pytest.mark.parametrize("bins", [4, 8, 16])
@pytest.mark.parametrize("bound", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_inverse_against_the_exact_root(bins, bound, scale):
    """T1: within rounding times conditioning on every point. nflows' own root loses two to three digits."""
    y, *parameters = drawn(
        (5000, 20), bins, "linear", scale, bound, torch.float64, torch.Generator().manual_seed(bins)
    )
    tensors = (knots_among(y, bound), *parameters)
    exact = exact_inverse(*tensors, bound)
    x, log_derivative = rational_quadratic_spline(*tensors, inverse=True, bound=bound, elementwise=True)
    theirs, _ = nflows_splines.unconstrained_rational_quadratic_spline(
        *tensors, inverse=True, tail_bound=bound
    )
    allowed = rounding(tensors[0], exact, log_derivative, bound, 2.0**-53)
    assert ((x - exact).abs() / allowed).max() <= 10
    if scale == 3.0:
        assert ((theirs - exact).abs() / allowed).max() >= 100
    back, _ = rational_quadratic_spline(x, *parameters, bound=bound)
    assert (back - tensors[0]).abs().max() <= 1e-12


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [4, 8, 16])
@pytest.mark.parametrize("bound", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_fp32(inverse, bins, bound, scale):
    """T1 in fp32: 2e-6 and 2e-5 hold on 99.7 % of the points, where nflows' own hold on 80 %; on all of them
    errors stay within rounding times conditioning."""
    tensors = drawn((5000, 20), bins, "linear", scale, bound, generator=torch.Generator().manual_seed(bins))
    options = {"inverse": inverse, "bound": bound, "elementwise": True}
    x, *parameters = (t.double() for t in tensors)
    x.requires_grad_()
    exact, log_exact = rational_quadratic_spline(x, *parameters, **options)
    (bend,) = torch.autograd.grad(log_exact.sum(), x)
    x, exact, log_exact = (t.detach() for t in (x, exact, log_exact))
    value, log_derivative = rational_quadratic_spline(*tensors, **options)
    error, log_error = (value - exact).abs(), (log_derivative - log_exact).abs()
    assert (error <= 2e-6).double().mean() >= 0.997
    assert (log_error <= 2e-5).double().mean() >= 0.997
    assert (error / rounding(x, exact, log_exact, bound, 2.0**-24)).max() <= 8
    of_log = 2.0**-24 * (1 + log_exact.abs() + (x.abs() + bound) * bend.abs())
    assert (log_error / of_log).max() <= 16


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("zuko", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_fp32_is_nearer_than_pytorch(inverse, zuko, seed):
    """Mean errors and those of the worst thousandth at most half of PyTorch's."""
    tensors = drawn((5000, 20), 8, "linear", 1.0, 3.0, generator=torch.Generator().manual_seed(seed))
    settings = {"inverse": inverse, "elementwise": True, "zuko": zuko, "box": (-3, 3, -3, 3)}
    exact, theirs = plain(*battery.to_fp64(tensors), **settings), plain(*tensors, **settings)
    kind = "zuko" if zuko else "softmax"
    ours = rational_quadratic_spline(
        *tensors, inverse=inverse, bound=3.0, elementwise=True, parameterization=kind
    )
    for a, b, e in zip(ours, theirs, exact):
        found, plainly = (a - e).abs().flatten(), (b - e).abs().flatten()
        assert found.mean() <= 0.5 * plainly.mean()
        assert found.quantile(0.999) <= 0.5 * plainly.quantile(0.999)


@pytest.mark.parametrize("zuko", [False, True])
@pytest.mark.parametrize("offset", [0.0, 5000.0, -1e6, 1e8])
def test_offsets_of_logits_cancel(offset, zuko):
    """However large logits are, their differences count; the clip of Zuko's makes them equal."""
    x, widths, heights, derivatives = drawn((50, 4), 8, "linear", generator=torch.Generator().manual_seed(5))
    widths, heights = (16 * torch.round(t) + offset for t in (widths, heights))
    tensors = (x, widths, heights, derivatives)
    exact = plain(*battery.to_fp64(tensors), elementwise=True, zuko=zuko)
    kind = "zuko" if zuko else "softmax"
    found = rational_quadratic_spline(*tensors, elementwise=True, parameterization=kind)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=0, atol=2e-3)


def assert_inverse_parity(found, expected, y, bound):
    """Theirs loses up to three digits more than rounding and conditioning take; so much may differ."""
    allowed = 2000 * rounding(y, expected, found[1], bound, 2.0**-53)
    assert ((found[0] - expected).abs() <= allowed).all()


@pytest.mark.parametrize("bins", [4, 8, 16])
@pytest.mark.parametrize("bound", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["softmax", "zuko"])
def test_zuko(kind, bins, bound):
    """T2: zuko's parameterization, and its formula on nflows' knots."""
    transforms = pytest.importorskip("zuko.transforms")
    generator = torch.Generator().manual_seed(bins)
    x, *parameters = drawn((2000, 20), bins, "linear", 3.0, bound, torch.float64, generator)
    options = {"bound": bound, "elementwise": True, "parameterization": kind}
    transform = transforms.MonotonicRQSTransform(*parameters, bound=bound)
    if kind == "softmax":
        settings = (1, False, -bound, bound, -bound, bound, 1e-3, 1e-3, 1e-3, 1e-3)
        knots = reference.coupling.spline_knots(*parameters, *settings)
        transform.horizontal, transform.vertical, transform.derivatives = knots
    y = transform._call(x)
    expected = y, transform.log_abs_det_jacobian(x, y)
    found = rational_quadratic_spline(x, *parameters, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    found = rational_quadratic_spline(x, *parameters, inverse=True, **options)
    assert_inverse_parity(found, transform._inverse(x), x, bound)
    slopes = transform.log_abs_det_jacobian(found[0], x)  # where ours says that the root is
    torch.testing.assert_close(found[1], -slopes, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bins", [4, 8, 16])
@pytest.mark.parametrize("bound", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_normflows_circular(bins, bound, scale):
    """T3; normflows is in fp64 as in nflows."""
    splines = pytest.importorskip("normflows.utils.splines")
    generator = torch.Generator().manual_seed(bins)
    x, *parameters = drawn((1000, 20), bins, "circular", scale, bound, torch.float64, generator)
    theirs = partial(
        splines.unconstrained_rational_quadratic_spline, x, *parameters, tails="circular", tail_bound=bound
    )
    options = {"tails": "circular", "bound": bound, "elementwise": True}
    found = rational_quadratic_spline(x, *parameters, **options)
    torch.testing.assert_close(found, theirs(inverse=False), rtol=0, atol=1e-12)
    found = rational_quadratic_spline(x, *parameters, inverse=True, **options)
    assert_inverse_parity(found, theirs(inverse=True)[0], x, bound)


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
    allowed = rounding(tensors[0], exact, log_exact, bound, 2.0**-24)
    assert ((x - exact).abs() / allowed).max() <= 32


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


BOXES = [(-3.0, 3.0, -3.0, 3.0), (0.0, 1.0, 0.0, 0.3), (0.0, 0.7, 0.1, 0.7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("inverse", [False, True])
def test_values_stay_in_the_box(inverse, box, dtype):
    """At the bounds and next to them, where rounding would leave the box; so inverses accept them."""
    (left, right, bottom, top), count = torch.tensor(box, dtype=dtype), 10000
    given, found = ((bottom, top), (left, right)) if inverse else ((left, right), (bottom, top))
    x = torch.stack([torch.stack([end, torch.nextafter(end, sum(given) / 2)]) for end in given]).flatten()
    x = x.expand(count, 4)
    parameters = 3 * torch.randn(count, 4, 25, generator=torch.Generator().manual_seed(0)).to(dtype)
    options = {"tails": None, "bound": box, "elementwise": True}
    y, log_derivative = rational_quadratic_spline(x, parameters, inverse=inverse, **options)
    assert ((y >= found[0]) & (y <= found[1])).all()
    back, log_back = rational_quadratic_spline(y, parameters, inverse=not inverse, **options)
    assert ((back >= given[0]) & (back <= given[1])).all()
    assert torch.isfinite(log_derivative).all()
    assert torch.isfinite(log_back).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
def test_derivatives_at_the_bounds(inverse, dtype):
    """Keeping a value in the box is no part of its derivative."""
    x = torch.full((2000, 2), 3.0, dtype=dtype) - torch.tensor([0.0, 1e-15]).to(dtype)
    x.requires_grad_()
    parameters = 3 * torch.randn(2000, 2, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    y, log_derivative = rational_quadratic_spline(
        x, parameters, inverse=inverse, tails="circular", bound=3.0, elementwise=True
    )
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(
        slope, log_derivative.exp(), rtol=2e-4 if dtype == torch.float32 else 1e-9, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bounds_are_numbers_of_the_dtype(dtype):
    """x may be the bound as its dtype has it, on either side of the number given."""
    for bound in (0.1, 0.3, 0.7, 1e-3):
        x = torch.tensor([[-bound, bound]], dtype=dtype)
        parameters = torch.zeros(1, 2, 13, dtype=dtype)
        for inverse in (False, True):
            y, _ = rational_quadratic_spline(x, parameters, tails=None, bound=bound, inverse=inverse)
            assert torch.equal(y, x)
            outside = torch.nextafter(x, 2 * x)
            with pytest.raises(ValueError, match="x: expected values in the box"):
                rational_quadratic_spline(outside, parameters, tails=None, bound=bound, inverse=inverse)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1e10), (torch.float32, 3e38), (torch.float64, 1e10), (torch.float64, 1e30)],
)
@pytest.mark.parametrize("zuko", [False, True])
@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("inverse", [False, True])
def test_any_finite_parameters(inverse, tails, zuko, dtype, scale):
    """Values, log-derivatives and gradients are finite."""
    generator = torch.Generator().manual_seed(1)
    sizes = (8, 8, num_slopes(8, tails))
    parameters = [scale * (2 * torch.rand(400, 4, n, generator=generator).to(dtype) - 1) for n in sizes]
    x = 2 * torch.rand(400, 4, generator=generator).to(dtype) - 1
    x[:3] = torch.tensor([1.0, -1.0, 0.0])[:, None]
    options = {"inverse": inverse, "tails": tails, "parameterization": "zuko" if zuko else "softmax"}

    def spline(*tensors):
        return rational_quadratic_spline(*tensors, elementwise=True, **options)

    assert all(torch.isfinite(t).all() for t in spline(x, *parameters))
    assert all(torch.isfinite(t).all() for t in gradients_of(spline, (x, *parameters)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
def test_equal_bins(inverse, dtype):
    """Least shares may be all there is: then the bins' logits do not count."""
    tensors = drawn((50, 3), 4, "linear", dtype=dtype, generator=torch.Generator().manual_seed(0))
    options = {"inverse": inverse, "min_bin_width": 0.25, "min_bin_height": 0.25}
    found = rational_quadratic_spline(*tensors, **options)
    x, *logits, derivatives = tensors
    expected = rational_quadratic_spline(x, *(torch.zeros_like(t) for t in logits), derivatives, **options)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("batch", [1, 9, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_expanded_parameters(inverse, packed, dtype, batch):
    """Parameters of stride 0 over the batch equal their copies: values, gradients and tangents."""
    generator = torch.Generator().manual_seed(0)
    x, *parameters = drawn((batch, 5), 8, "linear", generator=generator, parameter_dtype=dtype)
    x, parameters = x.float(), [p[:1] for p in parameters]
    tensors = (x, torch.cat(parameters, -1)) if packed else (x, *parameters)

    def expanded(x, *parameters):
        parameters = (p.expand(batch, -1, -1) for p in parameters)
        return rational_quadratic_spline(x, *parameters, inverse=inverse)

    def copied(x, *parameters):
        parameters = (p.expand(batch, -1, -1).contiguous() for p in parameters)
        return rational_quadratic_spline(x, *parameters, inverse=inverse)

    moved = tuple(torch.cos(t) for t in tensors)
    for found, expected in (
        (expanded(*tensors), copied(*tensors)),
        (gradients_of(expanded, tensors), gradients_of(copied, tensors)),
        (torch.func.jvp(expanded, tensors, moved)[1], torch.func.jvp(copied, tensors, moved)[1]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


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
