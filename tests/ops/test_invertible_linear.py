"""LU-parameterised linear maps: the battery, nflows, normflows, log-determinants, singular factors."""

import pytest
import torch

import genssl_fast
from genssl_fast import reference
from tests.battery import Case, make_inputs, offset_storage, transposed_storage
from tests.ops.composite_battery import CompositeBattery

ORDER = torch.tensor([2, 0, 3, 1])


def factors(dtype, generator):
    """lower, upper, log_diagonal, bias, sign of a matrix that is far from singular. D = 4"""
    shapes = ((4, 4), (4, 4), (4,), (4,))
    drawn = [torch.randn(shape, generator=generator) / 2 for shape in shapes]
    return tuple(t.to(dtype) for t in (*drawn, torch.tensor([1.0, -1.0, -1.0, 1.0])))


def vector_inputs(dtype, size, generator):
    return torch.randn(size, 4, generator=generator).to(dtype), *factors(dtype, generator)


def image_inputs(dtype, size, generator):
    return torch.randn(size, 4, 3, 2, generator=generator).to(dtype), *factors(dtype, generator)


def ours(x, lower, upper, log_diagonal, bias, sign, **options):
    order = ORDER.to(x.device)
    return genssl_fast.invertible_linear(x, lower, upper, log_diagonal, sign, order, bias, **options)


def plain(x, lower, upper, log_diagonal, bias, sign, inverse=False):
    order = ORDER.to(x.device)
    return reference.coupling.invertible_linear(
        x, lower, upper, log_diagonal, sign, order, bias, inverse, None
    )  # fmt: skip


class TestInvertibleLinear(CompositeBattery):
    cases = {
        "forward": Case(ours, plain, vector_inputs, differentiable=(0, 1, 2, 3, 4)),
        "inverse": Case(
            lambda *args: ours(*args, inverse=True),
            lambda *args: plain(*args, inverse=True),
            vector_inputs,
            differentiable=(0, 1, 2, 3, 4),
        ),
        "image": Case(ours, plain, image_inputs, differentiable=(0, 1, 2, 3, 4)),
    }
    errors = {
        "singular": (
            lambda: ours(*_with_factors(log_diagonal=torch.tensor([0.0, -torch.inf, 0.0, 0.0]))),
            ValueError,
            "log_diagonal: expected logarithms of scales that torch.float32 holds",
        ),
        "zero in fp32": (
            lambda: ours(*_with_factors(log_diagonal=torch.tensor([0.0, -110.0, 0.0, 0.0])), inverse=True),
            ValueError,
            r"log_diagonal: .* and their inverses, got \[0.0, -110.0, 0.0, 0.0\]",
        ),
        "infinity in fp32": (
            lambda: ours(*_with_factors(log_diagonal=torch.tensor([0.0, 100.0, 0.0, 0.0]))),
            ValueError,
            r"log_diagonal: .* and their inverses, got \[0.0, 100.0, 0.0, 0.0\]",
        ),
        "weight_inverse": (
            lambda: ours(*_with_factors(), weight_inverse=torch.eye(4).double(), inverse=True),
            TypeError,
            "weight_inverse: expected dtype float32, got torch.float64",
        ),
        "sign": (
            lambda: ours(*_with_factors(sign=torch.tensor([1.0, 0.0, 1.0, 1.0]))),
            ValueError,
            r"sign: expected ones and minus ones, got \[1.0, 0.0, 1.0, 1.0\]",
        ),
        "shape": (
            lambda: ours(*_with_factors(lower=torch.zeros(3, 3))),
            ValueError,
            r"lower: expected shape \[D, D\] = \[4, 4\], got \[3, 3\]",
        ),
        "dtype": (
            lambda: ours(*_with_factors(upper=torch.zeros(4, 4).double())),
            TypeError,
            "upper: expected the dtype of x",
        ),
        "rank": (lambda: ours(*_with_factors(x=torch.zeros(2, 4, 4))), ValueError, "x: expected shape"),
    }

    def test_strides_and_offsets(self, case):
        """Within rounding: the bits of MKL's products depend on the alignment of their operands."""
        tensors = make_inputs(case, torch.float32, 5)
        for disguise in (transposed_storage, offset_storage):
            found = case.function(*(disguise(t) for t in tensors))
            torch.testing.assert_close(found, case.function(*tensors), rtol=1e-6, atol=1e-6)


def _with_factors(**replaced):
    names = ("x", "lower", "upper", "log_diagonal", "bias", "sign")
    values = dict(zip(names, vector_inputs(torch.float32, 2, torch.Generator().manual_seed(0))))
    return (values | replaced).values()


@pytest.mark.parametrize("inputs", [vector_inputs, image_inputs])
@pytest.mark.parametrize("inverse", [False, True])
def test_log_determinant_is_that_of_the_jacobian(inputs, inverse):
    x, *parameters = inputs(torch.float64, 1, torch.Generator().manual_seed(0))
    jacobian = torch.func.jacrev(lambda x: ours(x, *parameters, inverse=inverse)[0])(x)
    expected = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet
    torch.testing.assert_close(ours(x, *parameters, inverse=inverse)[1], expected[None])


@pytest.mark.parametrize("inputs", [vector_inputs, image_inputs])
def test_inverse_undoes_and_may_be_cached(inputs):
    x, *parameters = inputs(torch.float64, 3, torch.Generator().manual_seed(0))
    y, log_abs_det = ours(x, *parameters)
    lower, upper, log_diagonal, _, sign = parameters
    cached = genssl_fast.invertible_linear_weight(lower, upper, log_diagonal, sign, ORDER, inverse=True)
    for weight_inverse in (None, cached):
        back, back_log_abs_det = ours(y, *parameters, inverse=True, weight_inverse=weight_inverse)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(back_log_abs_det, -log_abs_det)


def test_equals_normflows_convolution():
    normflows = pytest.importorskip("normflows")
    torch.manual_seed(0)
    layer = normflows.flows.Invertible1x1Conv(4, use_lu=True).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    args = (layer.L, layer.U, layer.log_S, layer.sign_S.double(), layer.P.argmax(1))
    y, log_abs_det = layer.inverse(x)
    found, found_log_abs_det = genssl_fast.invertible_linear(x, *args)
    torch.testing.assert_close(found, y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_log_abs_det, log_abs_det.expand(2), rtol=1e-12, atol=1e-12)
    back, _ = genssl_fast.invertible_linear(y, *args, inverse=True)
    torch.testing.assert_close(back, layer(y)[0], rtol=1e-11, atol=1e-11)


def test_equals_nflows_lu_linear():
    lu = pytest.importorskip("nflows.transforms.lu")
    torch.manual_seed(0)
    layer = lu.LULinear(4, identity_init=False).double()
    torch.nn.init.normal_(layer.bias)
    lower, upper = layer._create_lower_upper()
    x = torch.randn(5, 4, dtype=torch.float64)
    found = genssl_fast.invertible_linear(
        x, lower, upper, layer.upper_diag.log(), torch.ones(4).double(), None, layer.bias
    )
    torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-12)


def test_inverse_of_an_ill_conditioned_factor_is_accurate():
    """κ(W) is about 10⁵: an inverse computed in fp32 would be wrong in the third digit."""
    generator = torch.Generator().manual_seed(0)
    lower, upper = (torch.randn(16, 16, generator=generator) for _ in range(2))
    args = (lower, upper, torch.zeros(16), torch.ones(16), None)
    found = genssl_fast.invertible_linear_weight(*args, inverse=True).double()
    exact = genssl_fast.invertible_linear_weight(
        *(a if a is None else a.double() for a in args), inverse=True
    )
    assert (found - exact).abs().max() <= 1e-7 * exact.abs().max()


def test_a_scale_that_fp64_holds():
    """exp(-110) is 0 in fp32 alone."""
    x, *parameters = _with_factors(log_diagonal=torch.tensor([0.0, -110.0, 0.0, 0.0]))
    x, *parameters = (tensor.double() for tensor in (x, *parameters))
    assert ours(x, *parameters, inverse=True)[0].isfinite().all()


@pytest.mark.parametrize("inputs", [vector_inputs, image_inputs])
def test_autocast_leaves_the_precision(inputs):
    x, *parameters = inputs(torch.float32, 3, torch.Generator().manual_seed(0))
    lower, upper, log_diagonal, _, sign = parameters
    for inverse in (False, True):
        factors = (lower, upper, log_diagonal, sign, ORDER)
        expected = ours(x, *parameters, inverse=inverse)
        weight = genssl_fast.invertible_linear_weight(*factors, inverse=inverse)
        with torch.autocast("cpu", torch.bfloat16):
            for found, fp32 in zip(ours(x, *parameters, inverse=inverse), expected):
                assert torch.equal(found, fp32)
            assert torch.equal(genssl_fast.invertible_linear_weight(*factors, inverse=inverse), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weight_of_sixteen_bits_is_that_of_fp32(dtype):
    x, *parameters = vector_inputs(dtype, 3, torch.Generator().manual_seed(0))
    lower, upper, log_diagonal, _, sign = parameters
    factors = (lower, upper, log_diagonal, sign)
    for inverse in (False, True):
        found = genssl_fast.invertible_linear_weight(*factors, ORDER, inverse=inverse)
        wide = (factor.float() for factor in factors)
        assert torch.equal(found, genssl_fast.invertible_linear_weight(*wide, ORDER, inverse=inverse))
    kept = ours(x, *parameters, inverse=True, weight_inverse=found)
    assert all(map(torch.equal, kept, ours(x, *parameters, inverse=True)))
