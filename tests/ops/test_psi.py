"""ψ of a user: what it takes, and that it is the same with and without Triton functions on the CPU."""

import copy

import pytest
import torch

import genssl_fast
from genssl_fast import Psi
from tests.ops.test_contrastive import assert_same, both_gradients, views

user_psi = pytest.importorskip("tests.kernels.user_psi")


def two_arguments(u, v):
    return u


def named_alike(power):
    """Triton functions that differ by what they enclose alone."""

    @user_psi.triton.jit
    def function(u):
        return u * power

    return function


ERRORS = {
    "function": (lambda: Psi(2.0), TypeError, "function: expected a function of a tensor, got float"),
    "no derivative": (
        lambda: Psi(torch.relu, user_psi.ramp),
        TypeError,
        "derivative: expected a triton.jit function of one argument, got None",
    ),
    "no value": (
        lambda: Psi(torch.relu, derivative=user_psi.is_positive),
        TypeError,
        "value: expected a triton.jit function of one argument, got None",
    ),
    "plain function": (
        lambda: Psi(torch.relu, torch.relu, user_psi.is_positive),
        TypeError,
        "value: expected a triton.jit function of one argument, got <built-in",
    ),
    "two arguments": (
        lambda: Psi(torch.relu, user_psi.ramp, user_psi.triton.jit(two_arguments)),
        TypeError,
        "derivative: expected a triton.jit function of one argument, got JITFunction",
    ),
    "names": (
        lambda: Psi(torch.relu, named_alike(2), named_alike(3)),
        ValueError,
        "derivative: expected another name than that of value, .* got '.*named_alike.<locals>.function'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


def test_shape_of_the_function():
    z = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"psi: expected shape that of its argument, \[rows, N\] = \[3, 3\]"):
        genssl_fast.generalized_contrastive(z, z, psi=Psi(torch.sum))


def test_group():
    z = torch.ones(3, 2)
    with pytest.raises(NotImplementedError, match="group: expected phi 'log'"):
        genssl_fast.generalized_contrastive(z, z, psi=Psi(torch.exp), group=True)


@pytest.mark.parametrize("name", user_psi.USER_PSI)
def test_cpu_calls_the_function(name):
    """Of u, as a bare function is of x where temperature is 1 and margin 0."""
    z, positive = views(7, 3, 0)
    psi = user_psi.USER_PSI[name]
    found = both_gradients(lambda *t: genssl_fast.generalized_contrastive(*t, "identity", psi), z, positive)
    bare = both_gradients(
        lambda *t: genssl_fast.generalized_contrastive(*t, "identity", psi.function), z, positive
    )
    assert_same(found, bare)


def test_a_value_that_is_its_own_derivative():
    assert Psi(torch.exp, user_psi.bell, user_psi.bell).number is not None


def test_a_module_with_it_can_be_copied():
    module = torch.nn.Identity()
    module.psi = user_psi.USER_PSI["bell"]
    assert copy.deepcopy(module).psi is module.psi
