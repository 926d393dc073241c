"""What every operation must pass, from a few declared inputs.

A test module declares cases and inherits the rest::

    class TestAffine(Battery):
        cases = {"small": Case(genssl_fast.affine, reference, inputs)}

``Case.inputs(dtype, size)`` gives the tensors; both functions take just these tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_map

from genssl_fast._autograd import REENTRANT

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TRANSFORMS = (
    "grad",
    "jacrev",
    "jacfwd",
    "hessian",
    "vmap",
    "vmap_grad",
    "grad_of_tangent",
    "tangent_of_tangent",
)


@dataclass(frozen=True)
class Case:
    """One way to call an operation.

    function, reference: take the tensors of ``inputs``, return a tensor or a tuple of them.
    inputs: (dtype, size, generator) -> tensors; ``size`` scales the shapes, 0 gives an empty batch.
    differentiable: positions of the tensors that have derivatives; empty where there are none.
    raw: (overload, arguments made from the tensors) for ``torch.library.opcheck``.
    """

    function: Callable
    reference: Callable
    inputs: Callable
    differentiable: tuple[int, ...] = (0,)
    raw: Callable | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    sizes: tuple[int, ...] = (1, 3, 17)


def make_inputs(case: Case, dtype, size, device="cpu", seed=0) -> tuple:
    """The tensors of a case, drawn on the CPU so that devices see the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(t if t is None else t.to(device) for t in case.inputs(dtype, size, generator))


def as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def to_fp64(tensors):
    return tuple(t.double() if t is not None and t.is_floating_point() else t for t in tensors)


def ulp(value: float, dtype: torch.dtype) -> float:
    """Spacing of the numbers of a dtype at a value."""
    value = torch.tensor(max(abs(value), torch.finfo(dtype).tiny), dtype=torch.float64)
    return torch.finfo(dtype).eps * 2.0 ** float(torch.floor(torch.log2(value)))


def assert_close_enough(ours, plain, exact, factor: float, what: str) -> None:
    """max|y − y64| ≤ factor · max|y_torch − y64| + 4 ulp(max|y64|), and nothing non-finite."""
    assert ours.shape == exact.shape, f"{what}: shape {ours.shape}, expected {exact.shape}"
    assert ours.dtype == plain.dtype, f"{what}: dtype {ours.dtype}, expected {plain.dtype}"
    if exact.numel() == 0:
        return
    assert torch.isfinite(ours).all(), f"{what}: not finite"
    error = (ours.double() - exact).abs().max().item()
    allowed = factor * (plain.double() - exact).abs().max().item()
    allowed += 4 * ulp(exact.abs().max().item(), ours.dtype)
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def gradients(function, tensors, positions):
    """Gradients of a fixed linear functional of all outputs."""
    tensors = [t.detach().clone() if t is not None else None for t in tensors]
    wanted = [tensors[i].requires_grad_() for i in positions]
    outputs = as_tuple(function(*tensors))
    total = sum((out.double() * cotangent(out)).sum() for out in outputs)
    return torch.autograd.grad(total, wanted)


def cotangent(output: torch.Tensor) -> torch.Tensor:
    """Fixed weights in [-1, 1] of the shape of an output, exact in every dtype."""
    count = torch.arange(output.numel(), dtype=torch.float64, device=output.device)
    return ((count * 5 % 9) / 4 - 1).reshape(output.shape)


class Battery:
    """Inherit and set ``cases`` (name -> Case) and ``errors`` (name -> (call, exception, message))."""

    cases: dict[str, Case] = {}
    errors: dict[str, tuple] = {}

    @pytest.mark.parametrize("device", DEVICES)
    def test_value(self, case, dtype, device):
        for size in case.sizes:
            tensors = make_inputs(case, dtype, size, device)
            exact = as_tuple(case.reference(*to_fp64(tensors)))
            plain = as_tuple(case.reference(*tensors))
            for i, out in enumerate(as_tuple(case.function(*tensors))):
                assert_close_enough(out, plain[i], exact[i], 2, f"output {i}, size {size}")

    @pytest.mark.parametrize("device", DEVICES)
    def test_gradient(self, differentiable_case, dtype, device):
        case = differentiable_case
        tensors = make_inputs(case, dtype, case.sizes[-1], device)
        exact = gradients(case.reference, to_fp64(tensors), case.differentiable)
        plain = gradients(case.reference, tensors, case.differentiable)
        ours = gradients(case.function, tensors, case.differentiable)
        for i, found in enumerate(ours):
            assert_close_enough(found, plain[i], exact[i], 3, f"gradient {case.differentiable[i]}")

    @pytest.mark.parametrize("device", DEVICES)
    def test_random_shapes(self, case, device):
        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(size=st.integers(0, 40), seed=st.integers(0, 2**31))
        def check(size, seed):
            tensors = make_inputs(case, torch.float32, size, device, seed)
            exact = as_tuple(case.reference(*to_fp64(tensors)))
            plain = as_tuple(case.reference(*tensors))
            for i, out in enumerate(as_tuple(case.function(*tensors))):
                assert_close_enough(out, plain[i], exact[i], 2, f"output {i}")

        check()

    def test_gradcheck(self, differentiable_case):
        case = differentiable_case
        function, wanted = partial_function(case, torch.float64, 2)
        torch.autograd.gradcheck(function, wanted, check_forward_ad=True, check_batched_grad=True)
        torch.autograd.gradgradcheck(function, wanted)

    @pytest.mark.parametrize("transform", TRANSFORMS)
    def test_transform(self, differentiable_case, transform):
        case = differentiable_case
        ours, wanted = partial_function(case, torch.float64, 2)
        plain, _ = partial_function(case, torch.float64, 2, reference=True)
        compare_transform(transform, ours, plain, wanted)

    @pytest.mark.parametrize("what", ["reverse", "grad", "jvp", "vmap"])
    def test_compiled(self, differentiable_case, what):
        case = differentiable_case
        ours, wanted = partial_function(case, torch.float64, 2)
        plain, _ = partial_function(case, torch.float64, 2, reference=True)
        torch._dynamo.reset()
        if what == "reverse":
            compiled = torch.compile(scalar_of(ours), backend="aot_eager", fullgraph=True)
            found = torch.autograd.grad(compiled(*wanted), wanted)
            expected = torch.autograd.grad(scalar_of(plain)(*wanted), wanted)
        else:
            build = {"grad": gradient_of, "jvp": tangents_of, "vmap": mapped}[what]
            compiled = torch.compile(build(ours), backend="aot_eager", fullgraph=True)
            if what == "grad" and not REENTRANT:
                return assert_refused(compiled, *wanted)
            found, expected = compiled(*wanted), build(plain)(*wanted)
        assert_all_equal(found, expected)

    def test_inductor(self, case):
        tensors = make_inputs(case, torch.float32, 3)
        torch._dynamo.reset()
        compiled = torch.compile(case.function, fullgraph=True)
        for found, expected in zip(as_tuple(compiled(*tensors)), as_tuple(case.function(*tensors))):
            assert torch.equal(found, expected)

    def test_opcheck(self, case):
        if case.raw is None:
            return
        overload, arguments = case.raw(*make_inputs(case, torch.float32, 3))
        torch.library.opcheck(overload, arguments)

    def test_strides_and_offsets(self, case):
        tensors = make_inputs(case, torch.float32, 5)
        expected = as_tuple(case.function(*tensors))
        for disguise in (transposed_storage, offset_storage):
            found = as_tuple(case.function(*(t if t is None else disguise(t) for t in tensors)))
            assert all(torch.equal(a, b) for a, b in zip(found, expected)), disguise.__name__

    def test_poisoned_allocations(self, case, poisoned_memory):
        tensors = make_inputs(case, torch.float32, 5)
        exact = as_tuple(case.reference(*to_fp64(tensors)))
        plain = as_tuple(case.reference(*tensors))
        for i, out in enumerate(as_tuple(case.function(*tensors))):
            assert_close_enough(out, plain[i], exact[i], 2, f"output {i}")

    def test_deterministic(self, case):
        tensors = make_inputs(case, torch.float32, 33)
        first = as_tuple(case.function(*tensors))
        threads = torch.get_num_threads()
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                again = as_tuple(case.function(*tensors))
                assert all(torch.equal(a, b) for a, b in zip(first, again)), f"{count} threads"
        finally:
            torch.set_num_threads(threads)

    def test_bad_input(self, error):
        call, exception, message = error
        with pytest.raises(exception, match=message):
            call()


def assert_refused(compiled, *args) -> None:
    """An error, never silent zeros, where this PyTorch cannot compile ``torch.func.grad`` of an operation."""
    with pytest.raises(Exception, match="override the setup_context"):
        compiled(*args)


def partial_function(case: Case, dtype, size, reference=False):
    """The function over its differentiable tensors alone, and these tensors."""
    tensors = make_inputs(case, dtype, size)
    function = case.reference if reference else case.function

    def partial(*wanted):
        replaced = list(tensors)
        for position, tensor in zip(case.differentiable, wanted):
            replaced[position] = tensor
        return function(*replaced)

    return partial, tuple(tensors[i].clone().requires_grad_() for i in case.differentiable)


def scalar_of(function) -> Callable:
    """A scalar that depends nonlinearly on every output."""
    return lambda *args: sum((cotangent(o) * o + o * o).sum() for o in as_tuple(function(*args)))


def gradient_of(function) -> Callable:
    def gradient(*args):
        args = tuple(a.detach() for a in args)
        return torch.func.grad(scalar_of(function), tuple(range(len(args))))(*args)

    return gradient


def tangents_of(function) -> Callable:
    def tangents(*args):
        args = tuple(a.detach() for a in args)
        return torch.func.jvp(function, args, tuple(torch.cos(a) for a in args))

    return tangents


def mapped(function) -> Callable:
    def run(*args):
        stacked = tuple(torch.stack([a.detach(), 2 * a.detach(), -a.detach()]) for a in args)
        return torch.func.vmap(function)(*stacked)

    return run


def compare_transform(transform: str, ours, plain, wanted) -> None:
    positions = tuple(range(len(wanted)))
    args = tuple(w.detach() for w in wanted)
    build = {
        "grad": lambda f: torch.func.grad(scalar_of(f), positions)(*args),
        "jacrev": lambda f: torch.func.jacrev(scalar_of(f), positions)(*args),
        "jacfwd": lambda f: torch.func.jacfwd(f, positions)(*args),
        "hessian": lambda f: torch.func.hessian(scalar_of(f))(*args),
        "vmap": lambda f: mapped(f)(*args),
        "vmap_grad": lambda f: mapped(torch.func.grad(scalar_of(f), positions))(*args),
        "grad_of_tangent": lambda f: torch.func.grad(
            lambda *a: sum((t * t).sum() for t in as_tuple(tangents_only(f)(*a))), positions
        )(*args),
        "tangent_of_tangent": lambda f: tangents_of(tangents_of_sines(f))(*args),
    }[transform]
    assert_all_equal(build(ours), build(plain))


def tangents_only(function) -> Callable:
    return lambda *a: torch.func.jvp(function, a, tuple(torch.cos(v.detach()) for v in a))[1]


def tangents_of_sines(function) -> Callable:
    return lambda *a: torch.func.jvp(function, a, tuple(torch.sin(v) for v in a))


def assert_all_equal(found, expected) -> None:
    """Equal up to the rounding of fp64."""
    tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10), found, expected)


def transposed_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with reversed strides."""
    order = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(order).contiguous().permute(order)


def offset_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, one element into a larger storage."""
    storage = torch.empty(tensor.numel() + 3, dtype=tensor.dtype, device=tensor.device)
    view = storage[1 : 1 + tensor.numel()].view(tensor.shape)
    return view.copy_(tensor)
