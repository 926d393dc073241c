"""Blocks of score networks."""

import functools
import math

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import differentiable
from genssl_fast._checks import check, check_choice, check_dtype
from genssl_fast._library import define, implement_triton

__all__ = ["time_embedding"]

# Convention: (sine first, what the number of frequencies is reduced by in the exponent's denominator).
CONVENTIONS = {"dit": (False, 0), "diffusers": (True, 1), "ddpm": (True, 1), "edm": (False, 0)}
KINDS = ("sinusoidal", "fourier")

raw_time_embedding = define(
    "_time_embedding(Tensor t, Tensor frequencies, bool sin_first, int dim) -> Tensor",
    reference=reference.score.time_embedding,
    fake=lambda t, frequencies, sin_first, dim: t.new_empty((*t.shape, dim)),
)
implement_triton("_time_embedding", "score.time_embedding", "time_embedding")


def _angle_derivative(inputs) -> Tensor:
    """Derivative of the embedding by t, [..., dim]: cosine gives −f sin, sine gives f cos."""
    t, frequencies = inputs.t, inputs.frequencies
    angle = t[..., None] * frequencies.to(t.dtype)
    sine, cosine = frequencies * torch.cos(angle), -frequencies * torch.sin(angle)
    halves = [sine, cosine] if inputs.sin_first else [cosine, sine]
    derivative = torch.cat(halves, -1).to(t.dtype)
    return torch.nn.functional.pad(derivative, (0, inputs.dim - derivative.shape[-1]))


def _embedding_backward(inputs, outputs, grads):
    return {"t": (grads[0] * _angle_derivative(inputs)).sum(-1)}


def _embedding_jvp(inputs, outputs, tangents):
    return _angle_derivative(inputs) * tangents.t[..., None]


_time_embedding = differentiable(raw_time_embedding, backward=_embedding_backward, jvp=_embedding_jvp)


@functools.lru_cache(maxsize=64)
def sinusoidal_frequencies(dim: int, convention: str, max_period: float, device: torch.device) -> Tensor:
    """Frequencies max_period^(−i / (half − shift)), i < half, computed in fp64 and kept in fp32. [dim // 2]"""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float64) / max(half - CONVENTIONS[convention][1], 1)
    return torch.exp(-math.log(max_period) * exponent).float().to(device)


def embedding_frequencies(dim, kind, convention, max_period, frequencies, device) -> tuple[Tensor, bool]:
    """The frequencies [dim // 2] and whether the sine half comes first, from checked arguments."""
    check_choice("kind", kind, KINDS)
    check_choice("convention", convention, CONVENTIONS)
    check(dim >= 1, "dim", "an integer of at least 1", dim)
    sin_first = CONVENTIONS[convention][0]
    if kind == "fourier":
        check(frequencies is not None, "frequencies", f"a tensor [{dim // 2}] for kind 'fourier'", None)
    if frequencies is None:
        check(max_period > 0, "max_period", "a positive number", max_period)
        cached = sinusoidal_frequencies
        compute = cached.__wrapped__ if torch.compiler.is_compiling() else cached
        return compute(dim, convention, float(max_period), device), sin_first
    check_dtype("frequencies", frequencies, (torch.float32, torch.float64))
    expected, got = f"shape [dim // 2] = [{dim // 2}]", list(frequencies.shape)
    check(got == [dim // 2], "frequencies", expected, got)
    if kind == "fourier":
        return 2.0 * math.pi * frequencies, sin_first
    return frequencies, sin_first


def time_embedding(
    t: Tensor,
    dim: int,
    kind: str = "sinusoidal",
    *,
    convention: str = "dit",
    max_period: float = 10_000.0,
    frequencies: Tensor | None = None,
) -> Tensor:
    r"""Embedding of times by cosines and sines of :math:`f_i t`.

    ``sinusoidal``: :math:`f_i = P^{-i / (h - s)}` with :math:`P` the ``max_period``, :math:`h` half of
    ``dim``. ``fourier``: :math:`f_i = 2 \pi w_i` with the given ``frequencies`` :math:`w`.

    =========== ================ ====
    convention  order            s
    =========== ================ ====
    dit         cosine, sine     0
    diffusers   sine, cosine     1
    ddpm        sine, cosine     1
    edm         cosine, sine     0
    =========== ================ ====

    Arguments:
        t: times [...], fp32, fp64, bf16 or fp16; their scaling is the caller's.
        dim: length of the embedding; an odd one is padded with a zero.
        kind: ``sinusoidal`` or ``fourier``.
        convention: whose order and exponent, see the table.
        max_period: longest period of ``sinusoidal``, over :math:`2 \pi`.
        frequencies: [dim // 2], required for ``fourier``; for ``sinusoidal`` they replace the formula's.

    Returns:
        Embedding [..., dim] in the dtype of ``t``.

    Raises:
        ValueError, TypeError: an unknown name or a wrong shape; the message names the argument.

    References:
        Vaswani et al., Attention Is All You Need, https://arxiv.org/abs/1706.03762;
        Tancik et al., Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains,
        https://arxiv.org/abs/2006.10739

    Example:
        >>> genssl_fast.time_embedding(torch.tensor([0.0, 1.0]), 4)[0]
        tensor([1., 1., 0., 0.])
    """
    check_dtype("t", t)
    chosen, sin_first = embedding_frequencies(dim, kind, convention, max_period, frequencies, t.device)
    return _time_embedding(t, chosen, sin_first, dim)
