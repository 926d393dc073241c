"""How competitors are written: helpers shared by the families."""

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def lazily(prepare: Callable[[], Callable]) -> Callable:
    """A provider that is prepared at its first call: a missing package costs only this provider."""
    prepared = functools.cache(prepare)
    return lambda: prepared()()


def compiled(function: Callable, mode: str = "default", fullgraph: bool = True) -> Callable:
    """`torch.compile` for the shapes of the case alone; without `fullgraph` for code that breaks graphs."""
    if not fullgraph:
        torch._logging.set_logs(dynamo=logging.ERROR)  # it explains every break at length
    from torch._inductor import config, select_algorithm

    select_algorithm.PRINT_AUTOTUNE = False
    config.max_autotune_report_choices_stats = False
    return torch.compile(function, mode=mode, fullgraph=fullgraph, dynamic=False)


def film(embedding: Tensor, weights) -> tuple[Tensor, Tensor]:
    """γ and β [..., L, H] of every block of a FiLM-MLP from time embeddings [..., T]."""
    e = F.silu(F.linear(F.silu(F.linear(embedding, weights.w_embed1)), weights.w_embed2))
    both = torch.einsum("...e,lke->...lk", e, weights.w_film)
    return both.chunk(2, -1)


def residual_network(x: Tensor, gamma: Tensor, beta: Tensor, weights, linear=F.linear) -> Tensor:
    """The FiLM-MLP on x [B, D], given γ and β [L, H] or [B, L, H]; `linear` multiplies matrices."""
    h = linear(x, weights.w_in, weights.b_in)
    for block in range(len(weights.w)):
        inner = linear(h, weights.w[block], weights.c[block])
        modulated = torch.addcmul(beta[..., block, :], inner, 1 + gamma[..., block, :])
        h = h + F.silu(modulated)
    return linear(h, weights.w_out, weights.b_out)


@torch.library.custom_op("genssl_bench::onednn_linear", mutates_args=())
def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear` through oneDNN, which PyTorch by itself uses for bf16 only.

    Opaque, because Inductor takes oneDNN's operator for frozen weights alone. A plain weight is
    given: packing it first gains under 1 % at the sizes measured here.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@onednn_linear.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def multiply_onednn(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product through oneDNN."""
    return onednn_linear(a, b.T, a.new_zeros(b.shape[1]))


def with_gradients(loss: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The value of a loss, and its gradients of the tensors that require some."""
    with torch.enable_grad():
        value = loss(*tensors)
        return value.detach(), *torch.autograd.grad(value, [t for t in tensors if t.requires_grad])
