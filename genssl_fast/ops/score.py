"""Blocks of score networks."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import differentiable, has_tangent
from genssl_fast._checks import (
    check,
    check_choice,
    check_dtype,
    check_same,
    check_shape,
    is_traced,
    values_are_checked,
)
from genssl_fast._library import define, implement_triton

__all__ = ["FilmMLPWeights", "film_mlp", "time_embedding"]

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


def sinusoidal_frequencies(dim: int, convention: str, max_period: float, device: torch.device) -> Tensor:
    """Frequencies max_period^(−i / (half − shift)), i < half, in fp32 from fp64. [dim // 2]"""
    half = dim // 2
    order = torch.arange(half, dtype=torch.float64, device="cpu")
    exponent = order / max(half - CONVENTIONS[convention][1], 1)
    return torch.exp(-math.log(max_period) * exponent).float().to(device)


@functools.lru_cache(maxsize=64)
def _kept_frequencies(dim: int, convention: str, max_period: float, device: torch.device) -> Tensor:
    """The same, as an ordinary tensor that serves every later call, whatever mode this one is in."""
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        return sinusoidal_frequencies(dim, convention, max_period, device)


def embedding_frequencies(dim, kind, convention, max_period, frequencies, device) -> tuple[Tensor, bool]:
    """The frequencies [dim // 2] and whether the sine half comes first, from checked arguments."""
    check_choice("kind", kind, KINDS)
    check_choice("convention", convention, CONVENTIONS)
    check(dim >= 1, "dim", "an integer of at least 1", dim)
    sin_first = CONVENTIONS[convention][0]
    if kind == "fourier":
        check(
            frequencies is not None,
            "frequencies",
            f"a tensor [{dim // 2}] for kind 'fourier'",
            None,
        )
    if frequencies is None:
        check(max_period > 0, "max_period", "a positive number", max_period)
        compute = sinusoidal_frequencies if is_traced() else _kept_frequencies
        return compute(dim, convention, float(max_period), device), sin_first
    check_dtype("frequencies", frequencies, (torch.float32, torch.float64))
    wanted = (torch.is_grad_enabled() and frequencies.requires_grad) or has_tangent([frequencies])
    check(not wanted, "frequencies", "a tensor without derivatives", "one whose derivatives are wanted")
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
            They have no derivatives: asking for them raises.

    Returns:
        Embedding [..., dim] in the dtype of ``t``.

    Raises:
        ValueError, TypeError: an unknown name or a wrong shape; the message names the argument.

    References:
        Vaswani et al., Attention Is All You Need, https://arxiv.org/abs/1706.03762;
        Tancik et al., Fourier Features Let Networks Learn High Frequency Functions in Low
        Dimensional Domains, https://arxiv.org/abs/2006.10739

    Example:
        >>> genssl_fast.time_embedding(torch.tensor([0.0, 1.0]), 4)[0]
        tensor([1., 1., 0., 0.])
    """
    check_dtype("t", t)
    chosen, sin_first = embedding_frequencies(dim, kind, convention, max_period, frequencies, t.device)
    return _time_embedding(t, chosen, sin_first, dim)


class FilmMLPWeights(NamedTuple):
    """Weights of a residual FiLM-MLP, matrices as (out, in) like ``torch.nn.Linear``."""

    w_in: Tensor  # [H, D]
    b_in: Tensor  # [H]
    w: Tensor  # [L, H, H]
    c: Tensor  # [L, H]
    w_film: Tensor  # [L, 2H, E], gamma first
    w_embed1: Tensor  # [E, T]
    w_embed2: Tensor  # [E, E]
    w_out: Tensor  # [D, H]
    b_out: Tensor  # [D]
    class_embedding: Tensor | None = None  # [K, E]


NETWORK_ARGUMENTS = (
    "Tensor frequencies, bool sin_first, Tensor w_in, Tensor b_in, Tensor w, Tensor c, Tensor w_film, "
    "Tensor w_embed1, Tensor w_embed2, Tensor w_out, Tensor b_out, Tensor? class_embedding, Tensor? labels"
)

raw_film_mlp = define(
    f"_film_mlp(Tensor x, Tensor t, {NETWORK_ARGUMENTS}) -> Tensor",
    reference=reference.score.film_mlp,
    fake=lambda x, *args: x.new_empty(x.shape),
)


class _Block(NamedTuple):
    """Values inside one residual block: its input, 1 + γ, W h + c and the argument of its SiLU."""

    h: Tensor
    scale: Tensor
    linear: Tensor
    inner: Tensor


class _Pass(NamedTuple):
    """A forward pass in the compute dtype; rows are conditions [1 or B, ·] until they meet x [B, ·]."""

    weights: FilmMLPWeights
    angles: Tensor  # derivative of the embedding by t
    embedding: Tensor
    first: Tensor  # arguments of the two SiLU of the embedding
    second: Tensor
    e: Tensor
    x: Tensor
    blocks: list[_Block]
    h: Tensor  # input of the last layer


def _compute_weights(inputs, dtype) -> FilmMLPWeights:
    values = (getattr(inputs, name) for name in FilmMLPWeights._fields)
    return FilmMLPWeights(*(value if value is None else value.to(dtype) for value in values))


def _silu_slope(v: Tensor) -> Tensor:
    gate = torch.sigmoid(v)
    return gate * (1 + v * (1 - gate))


def _forward_pass(inputs) -> _Pass:
    silu = torch.nn.functional.silu
    dtype = torch.float64 if inputs.x.dtype == torch.float64 else torch.float32
    weights, x, t = (
        _compute_weights(inputs, dtype),
        inputs.x.to(dtype),
        inputs.t.to(dtype).reshape(-1),
    )
    time = _EmbeddingInputs(t, inputs.frequencies.to(dtype), inputs.sin_first, weights.w_embed1.shape[1])
    embedding = reference.score.time_embedding(*time)
    first = embedding @ weights.w_embed1.mT
    second = silu(first) @ weights.w_embed2.mT
    e, h, blocks = silu(second), x @ weights.w_in.mT + weights.b_in, []
    if inputs.labels is not None:
        e = e + weights.class_embedding[inputs.labels]
    for w, c, w_film in zip(weights.w, weights.c, weights.w_film):
        gamma, beta = (e @ w_film.mT).chunk(2, -1)
        linear = h @ w.mT + c
        blocks.append(_Block(h, 1 + gamma, linear, (1 + gamma) * linear + beta))
        h = h + silu(blocks[-1].inner)
    return _Pass(weights, _angle_derivative(time), embedding, first, second, e, x, blocks, h)


class _EmbeddingInputs(NamedTuple):
    """What the derivative of the embedding reads."""

    t: Tensor
    frequencies: Tensor
    sin_first: bool
    dim: int


def _film_mlp_backward(inputs, outputs, grads):
    net, silu = _forward_pass(inputs), torch.nn.functional.silu
    weights, grad = net.weights, grads[0].to(net.x.dtype)
    to = {"w_out": grad.mT @ net.h, "b_out": grad.sum(0)}
    to_h, to_e = grad @ weights.w_out, torch.zeros_like(net.e)
    to_w, to_c, to_film = [], [], []
    for block, w, w_film in zip(net.blocks[::-1], weights.w.flip(0), weights.w_film.flip(0)):
        to_inner = to_h * _silu_slope(block.inner)
        to_linear = to_inner * block.scale
        film = torch.cat([to_inner * block.linear, to_inner], -1).sum_to_size(len(net.e), 2 * len(w))
        to_w.insert(0, to_linear.mT @ block.h)
        to_c.insert(0, to_linear.sum(0))
        to_film.insert(0, film.mT @ net.e)
        to_h, to_e = to_h + to_linear @ w, to_e + film @ w_film
    to["w_in"], to["b_in"] = to_h.mT @ net.x, to_h.sum(0)
    for name, found in (("w", to_w), ("c", to_c), ("w_film", to_film)):
        to[name] = torch.stack(found) if found else torch.zeros_like(getattr(weights, name))
    if inputs.labels is not None:
        to["class_embedding"] = torch.zeros_like(weights.class_embedding).index_add(0, inputs.labels, to_e)
    to_second = to_e.sum_to_size(net.second.shape) * _silu_slope(net.second)
    to_first = (to_second @ weights.w_embed2) * _silu_slope(net.first)
    to["w_embed2"], to["w_embed1"] = to_second.mT @ silu(net.first), to_first.mT @ net.embedding
    to["t"] = ((to_first @ weights.w_embed1) * net.angles).sum(-1).reshape(inputs.t.shape)
    to["x"] = to_h @ weights.w_in
    return {name: value.to(getattr(inputs, name).dtype) for name, value in to.items()}


def _sum_of(*terms: Tensor | None) -> Tensor | None:
    """The sum of what is there."""
    present = [term for term in terms if term is not None]
    return functools.reduce(torch.add, present) if present else None


def _scaled(factor: Tensor, tangent: Tensor | None) -> Tensor | None:
    return None if tangent is None else factor * tangent


def _linear_tangent(a: Tensor, w: Tensor, a_dot: Tensor | None, w_dot: Tensor | None) -> Tensor | None:
    """Tangent of a Wᵀ."""
    from_a = None if a_dot is None else a_dot @ w.mT
    return _sum_of(from_a, None if w_dot is None else a @ w_dot.mT)


def _embedding_tangent(inputs, net: _Pass, t_dot: Tensor | None, dots: FilmMLPWeights) -> Tensor | None:
    silu, weights = torch.nn.functional.silu, net.weights
    embedding = None if t_dot is None else net.angles * t_dot.to(net.x.dtype).reshape(-1, 1)
    first = _linear_tangent(net.embedding, weights.w_embed1, embedding, dots.w_embed1)
    hidden = _scaled(_silu_slope(net.first), first)
    second = _linear_tangent(silu(net.first), weights.w_embed2, hidden, dots.w_embed2)
    classes = dots.class_embedding if inputs.labels is not None else None
    of_class = None if classes is None else classes[inputs.labels]
    return _sum_of(_scaled(_silu_slope(net.second), second), of_class)


def _film_mlp_jvp(inputs, outputs, tangents):
    net = _forward_pass(inputs)
    weights, dots = net.weights, _compute_weights(tangents, net.x.dtype)
    e = _embedding_tangent(inputs, net, tangents.t, dots)
    x = None if tangents.x is None else tangents.x.to(net.x.dtype)
    h = _sum_of(_linear_tangent(net.x, weights.w_in, x, dots.w_in), dots.b_in)
    for i, block in enumerate(net.blocks):
        w_dot, c_dot, film_dot = (None if d is None else d[i] for d in (dots.w, dots.c, dots.w_film))
        film = _linear_tangent(net.e, weights.w_film[i], e, film_dot)
        gamma, beta = (None, None) if film is None else film.chunk(2, -1)
        linear = _sum_of(_linear_tangent(block.h, weights.w[i], h, w_dot), c_dot)
        inner = _sum_of(_scaled(block.scale, linear), _scaled(block.linear, gamma), beta)
        h = _sum_of(h, _scaled(_silu_slope(block.inner), inner))
    result = _sum_of(_linear_tangent(net.h, weights.w_out, h, dots.w_out), dots.b_out)
    result = torch.zeros_like(net.x) if result is None else result.expand_as(net.x)
    return result.to(inputs.x.dtype)


_film_mlp = differentiable(raw_film_mlp, backward=_film_mlp_backward, jvp=_film_mlp_jvp)


# Dimensions of the weights: B samples, D numbers each, H hidden, L blocks, E embedding, T time, K classes.
WEIGHT_SHAPES = {
    "w_in": ("H", "D"),
    "b_in": ("H",),
    "w": ("L", "H", "H"),
    "c": ("L", "H"),
    "w_film": ("L", "2H", "E"),
    "w_embed1": ("E", "T"),
    "w_embed2": ("E", "E"),
    "w_out": ("D", "H"),
    "b_out": ("D",),
    "class_embedding": ("K", "E"),
}


def check_film_mlp(x: Tensor, weights: FilmMLPWeights, labels: Tensor | None) -> None:
    """Shapes, dtypes and devices of a FiLM-MLP and its input, and the values of labels."""
    check_dtype("x", x)
    check(x.ndim == 2, "x", "shape [B, D]", list(x.shape))
    present = {name: w for name, w in weights._asdict().items() if w is not None}
    for name, weight in present.items():
        check_same(f"weights.{name}", weight, x, "x", shape=False)
        letters = WEIGHT_SHAPES[name]
        expected = f"shape [{', '.join(letters)}]"
        check(weight.ndim == len(letters), f"weights.{name}", expected, list(weight.shape))
    hidden, (embed, time_dim) = weights.w_in.shape[0], weights.w_embed1.shape
    sizes = {"D": x.shape[1], "H": hidden, "2H": 2 * hidden, "E": embed, "T": time_dim}
    check(min(sizes.values()) > 0, "weights", "dimensions D, H, E and T of at least 1", sizes)
    sizes |= {"L": weights.w.shape[0]}
    if weights.class_embedding is not None:
        sizes["K"] = weights.class_embedding.shape[0]
    for name, weight in present.items():
        letters = WEIGHT_SHAPES[name]
        shape = tuple(sizes[letter] for letter in letters)
        check_shape(f"weights.{name}", weight, shape, f"[{', '.join(letters)}]")
    _check_labels(labels, x, sizes.get("K"))


def _check_labels(labels: Tensor | None, x: Tensor, num_classes: int | None) -> None:
    if labels is None:
        return
    check(num_classes is not None, "labels", "None for weights without class_embedding", "a tensor")
    check_dtype("labels", labels, (torch.int64,))
    check_shape("labels", labels, x.shape[:1], "[B]")
    check(labels.device == x.device, "labels", f"a tensor on {x.device}", f"one on {labels.device}")
    if labels.numel() and values_are_checked(labels):
        low, high = (int(value) for value in torch.aminmax(labels))
        check(low >= 0 and high < num_classes, "labels", f"0 to {num_classes - 1}", f"{low} to {high}")


def film_mlp(
    x: Tensor,
    t: float | Tensor,
    weights: FilmMLPWeights,
    *,
    labels: Tensor | None = None,
    kind: str = "sinusoidal",
    convention: str = "dit",
    max_period: float = 10_000.0,
    frequencies: Tensor | None = None,
) -> Tensor:
    r"""A whole residual FiLM-MLP score network as one operation.

    .. math::
        e &= \mathrm{silu}(W_{e2} \, \mathrm{silu}(W_{e1} \, \mathrm{time\_embedding}(t))) \\
        h_0 &= W_\mathrm{in} x + b_\mathrm{in}, \qquad [\gamma_b, \beta_b] = W_{\mathrm{film}, b} \, e \\
        h_{b+1} &= h_b + \mathrm{silu}((1 + \gamma_b) \odot (W_b h_b + c_b) + \beta_b) \\
        y &= W_\mathrm{out} h_L + b_\mathrm{out}

    On the CPU weights are packed once a call and the activations of a block of samples stay in cache through
    all layers. A sample's result has the same bits whatever its place in the batch.

    Arguments:
        x: inputs [B, D], fp32, fp64, bf16 or fp16; 16-bit floating point is computed in fp32.
        t: time, one for the batch (a number or a tensor []) or one per sample [B]. Its scaling is the
            caller's.
        weights: the network, in the dtype and on the device of ``x``.
        labels: class of each sample, int64 [B]; their row of ``weights.class_embedding`` is added to
            :math:`e`.
        kind, convention, max_period, frequencies: as for :func:`genssl_fast.time_embedding`, whose length
            is that of ``weights.w_embed1``; ``frequencies`` have no derivatives.

    Returns:
        Outputs [B, D] in the dtype of ``x``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.
            Values of ``labels`` are checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    References:
        Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer,
        https://arxiv.org/abs/1709.07871;
        Elfwing et al., Sigmoid-Weighted Linear Units, https://arxiv.org/abs/1702.03118

    Example:
        >>> network = genssl_fast.nn.FilmMLP(2, hidden=32, blocks=2)
        >>> genssl_fast.film_mlp(torch.randn(5, 2), 0.5, network.weights()).shape
        torch.Size([5, 2])
    """
    check_film_mlp(x, weights, labels)
    if not isinstance(t, Tensor):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        t = torch.full((), float(t), dtype=dtype, device=x.device)
    check_dtype("t", t)
    check(t.ndim == 0 or t.shape == x.shape[:1], "t", "shape [] or [B]", list(t.shape))
    check(t.device == x.device, "t", f"a tensor on {x.device}", f"one on {t.device}")
    time_dim = weights.w_embed1.shape[1]
    embedding = embedding_frequencies(time_dim, kind, convention, max_period, frequencies, x.device)
    return _film_mlp(x, t, *embedding, *weights, labels)
