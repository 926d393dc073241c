"""A user's ψ in the Triton kernels, through `generalized_contrastive`, against the reference in fp64."""

import pytest
import torch
from genssl_fast.kernels.contrast import pairs

import genssl_fast
from genssl_fast.reference.contrast import losses as plain
from tests.battery import assert_close_enough, to_fp64
from tests.kernels.interpreted.test_pairs import drawn, structure
from tests.kernels.user_psi import USER_PSI

__all__ = ["structure"]


@pytest.fixture(autouse=True)
def kernels_on_cpu(monkeypatch):
    """CPU tensors take the way of CUDA's."""
    monkeypatch.setattr(
        "genssl_fast.ops.generalized_contrastive._has_kernels", lambda psi, z: psi.number is not None
    )
    with torch.library._scoped_library("genssl_fast", "IMPL") as library:
        for operation in ("gram_pair_sum", "gram_pair_sum_backward"):
            library.impl(f"_{operation}", getattr(pairs, operation), "CPU", allow_override=True)
        yield


def by_kernels(z, z_positive, temperature, margin, phi, psi):
    return genssl_fast.generalized_contrastive(
        z, z_positive, phi, psi, temperature=temperature, margin=margin, epsilon=0.5
    )


def by_formula(z, z_positive, temperature, margin, phi, psi):
    return plain.generalized_contrastive(z, z_positive, phi, psi.function, temperature, margin, 0.5)


def problem(count, depth, nearness=0.7):
    """z, z_positive, temperature and margin."""
    z, z_positive = drawn(count, depth) / depth**0.5, nearness * drawn(count, depth + 1)[:, 1:] / depth**0.5
    return z, z_positive, torch.tensor(0.8 + nearness), torch.tensor(0.9 - nearness)


def value_and_gradients(function, problems, phi, psi):
    """The loss and its gradients; numbers of all problems together, since one may be right by luck."""
    found = []
    for tensors in problems:
        tensors = [t.clone().requires_grad_() for t in tensors]
        loss = function(*tensors, phi, psi)
        found.append((loss.detach(), *torch.autograd.grad(loss, tensors)))
    return [torch.stack(values) for values in zip(*found)]


@pytest.mark.parametrize(
    ("name", "phi"),
    [("bell", "log"), ("bell", torch.asinh), ("log_square", "log"), ("log_square", "identity")],
    ids=["bell-log", "bell-asinh", "log_square-log", "log_square-identity"],
)
@pytest.mark.parametrize("shape", [(1, 2), (67, 5), (40, 33)], ids=str)
def test_loss(structure, name, phi, shape):
    psi, problems = USER_PSI[name], [problem(*shape, nearness) for nearness in (1.0, 0.7, 0.4)]
    found, of_plain = (value_and_gradients(f, problems, phi, psi) for f in (by_kernels, by_formula))
    exact = value_and_gradients(by_formula, [*map(to_fp64, problems)], phi, psi)
    names = ("loss", "z", "z_positive", "temperature", "margin")
    for what, *values in zip(names, found, of_plain, exact):
        assert_close_enough(*values, 2 if what == "loss" else 3, what)


@pytest.mark.parametrize("name", USER_PSI)
def test_fp64(name):
    """What `structure_of` itself chooses: chunks."""
    problems = [to_fp64(problem(35, 7))]
    found, exact = (
        value_and_gradients(f, problems, "identity", USER_PSI[name]) for f in (by_kernels, by_formula)
    )
    for ours, true in zip(found, exact):
        torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-13)


def test_tangents_and_second_derivatives():
    """They call the PyTorch function."""
    wanted = [t.requires_grad_() for t in to_fp64(problem(3, 2))]

    def loss(*tensors):
        return by_kernels(*tensors, torch.asinh, USER_PSI["bell"])

    assert torch.autograd.gradcheck(loss, wanted, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, wanted, fast_mode=True)
    tensors = tuple(t.detach() for t in wanted)
    (expected,) = torch.autograd.grad(by_formula(*wanted, torch.asinh, USER_PSI["bell"]), wanted[0])
    torch.testing.assert_close(torch.func.grad(loss)(*tensors), expected)


@pytest.mark.parametrize("name", USER_PSI)
def test_compiled(name):
    """Each ψ finds its own functions again."""
    wanted = [t.requires_grad_() for t in problem(9, 3)]

    def loss(*tensors):
        return by_kernels(*tensors, "identity", USER_PSI[name])

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, expected = (torch.autograd.grad(f(*wanted), wanted) for f in (compiled, loss))
    torch.testing.assert_close(found, expected)
