"""A user's ψ compiled into the kernels of pairs: the reference's numbers in fp64, and no matrix of pairs."""

import pytest
import torch

import genssl_fast
from genssl_fast.reference.contrast import losses as plain

pytestmark = pytest.mark.gpu
user_psi = pytest.importorskip("tests.kernels.user_psi")


def problem(count, depth, dtype):
    """z, z_positive, temperature and margin."""
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, count, depth, generator=generator).unbind(0)
    tensors = *(t / depth**0.5 for t in pair), torch.tensor(1.4), torch.tensor(0.3)
    return [t.to("cuda", dtype).requires_grad_() for t in tensors]


def by_kernels(psi, z, z_positive, temperature, margin):
    return genssl_fast.generalized_contrastive(
        z, z_positive, "identity", psi, temperature=temperature, margin=margin
    )


@pytest.mark.parametrize(
    ("depth", "dtype"), [(20, torch.float32), (130, torch.float32), (20, torch.float64)], ids=str
)
@pytest.mark.parametrize("name", user_psi.USER_PSI)
def test_value_and_gradients(name, depth, dtype):
    """Fused kernels for short rows in fp32, and chunks."""
    psi = user_psi.USER_PSI[name]
    tensors = problem(301, depth, dtype)
    wanted = [t.detach().double().requires_grad_() for t in tensors]
    z, z_positive, *numbers = wanted
    found = by_kernels(psi, *tensors)
    exact = plain.generalized_contrastive(z, z_positive, "identity", psi.function, *numbers, 1.0)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for ours, true in zip(
        (found, *torch.autograd.grad(found, tensors)), (exact, *torch.autograd.grad(exact, wanted))
    ):
        assert (ours - true).abs().max() <= tolerance * true.abs().max()


def test_memory_is_linear():
    """At 16,384 rows a matrix of pairs has 1 GB."""
    tensors = problem(2**14, 32, torch.float32)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    by_kernels(user_psi.USER_PSI["bell"], *tensors).backward()
    assert torch.cuda.max_memory_allocated() - before < 2**26


def test_no_synchronisation():
    tensors = problem(301, 20, torch.float32)
    by_kernels(user_psi.USER_PSI["bell"], *tensors).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        by_kernels(user_psi.USER_PSI["bell"], *tensors).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
