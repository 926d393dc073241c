"""Steps of samplers: a row of a coefficient table, and a Langevin step."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import differentiable, forbid_derivatives
from genssl_fast._checks import check, check_dtype, check_same, check_shape, values_are_checked
from genssl_fast._library import define, implement_triton
from genssl_fast._random import check_first_sample, fold_seed, fold_step
from genssl_fast.ops.coefficient_table import CoefficientTable
from genssl_fast.ops.random import NORMAL, fill_random
from genssl_fast.reference.integrate import compute_dtype, per_sample, select_rows

__all__ = ["langevin_step", "sampler_step"]

COUNTER = "int seed, Tensor? seed_tensor, int step, Tensor? step_tensor, int first_sample"
STEP_ARGUMENTS = (
    "Tensor x, Tensor model_output, Tensor[] predictions, Tensor[] states, Tensor? noise, "
    "Tensor coefficients, int index, Tensor? index_tensor, int num_states, float clip, " + COUNTER
)


def _like_x(x, *args):
    return x.new_empty(x.shape)


raw_sampler_step = define(
    f"_sampler_step({STEP_ARGUMENTS}) -> (Tensor, Tensor)",
    reference=reference.integrate.sampler_step,
    fake=lambda x, *args: (x.new_empty(x.shape), x.new_empty(x.shape)),
)
raw_sampler_step_out = define(
    f"_sampler_step_out({STEP_ARGUMENTS}, Tensor(a!) out) -> Tensor",
    reference=reference.integrate.sampler_step_out,
    fake=_like_x,
)
raw_langevin_step = define(
    "_langevin_step(Tensor x, Tensor score, Tensor? noise, float snr, float step_size, float alpha, "
    f"{COUNTER}) -> Tensor",
    reference=reference.integrate.langevin_step,
    fake=_like_x,
)
implement_triton("_sampler_step", "integrate.sampler_step", "sampler_step")
implement_triton("_sampler_step_out", "integrate.sampler_step", "sampler_step_out")
implement_triton("_langevin_step", "integrate.langevin_step", "langevin_step")
forbid_derivatives(raw_sampler_step_out, "call genssl_fast.sampler_step without out")


class _Row(NamedTuple):
    """The coefficients that a step used, shaped to multiply x; ``inside`` is 1 where clipping let through."""

    a: list
    b: list
    e: Tensor
    c: Tensor
    d0: Tensor
    d1: Tensor
    inside: Tensor


def _row(inputs) -> _Row:
    x = inputs.x.to(compute_dtype(inputs.x.dtype))
    rows = select_rows(inputs.coefficients, inputs.index, inputs.index_tensor)
    columns = [per_sample(column, x) for column in rows]
    e, c, d0, d1, bound, _ = columns[-6:]
    bound = bound if math.isnan(inputs.clip) else torch.full_like(bound, inputs.clip)
    denoised = d0 * x + d1 * inputs.model_output.to(x.dtype)
    inside = ((denoised >= -bound) & (denoised <= bound)).to(x.dtype)
    b = columns[inputs.num_states : -6] or [torch.zeros_like(e)]
    return _Row(columns[: inputs.num_states], b, e, c, d0, d1, inside)


def _step_backward(inputs, outputs, grads):
    row, dtype = _row(inputs), inputs.x.dtype
    to_next, to_prediction = (grad.to(compute_dtype(dtype)) for grad in grads)
    to_denoised = row.inside * (to_prediction + row.b[0] * to_next)
    return {
        "x": (row.a[0] * to_next + row.d0 * to_denoised).to(dtype),
        "model_output": (row.e * to_next + row.d1 * to_denoised).to(dtype),
        "states": [(a * to_next).to(dtype) for a, _ in zip(row.a[1:], inputs.states)],
        "predictions": [(b * to_next).to(dtype) for b, _ in zip(row.b[1:], inputs.predictions)],
        "noise": None if inputs.noise is None else (row.c * to_next).to(dtype),
    }


def _step_jvp(inputs, outputs, tangents):
    row, zero = _row(inputs), torch.zeros_like(inputs.x, dtype=compute_dtype(inputs.x.dtype))

    def of(tangent):
        return zero if tangent is None else tangent.to(zero.dtype)

    x, output = of(tangents.x), of(tangents.model_output)
    prediction = row.inside * (row.d0 * x + row.d1 * output)
    x_next = row.a[0] * x + row.e * output + row.b[0] * prediction + row.c * of(tangents.noise)
    for weight, tangent in zip(row.a[1:] + row.b[1:], [*tangents.states, *tangents.predictions]):
        x_next = x_next + weight * of(tangent)
    return x_next.to(inputs.x.dtype), prediction.to(inputs.x.dtype)


class _Langevin(NamedTuple):
    """What a step used, in the compute dtype; the inverse squared norms are None for a given step size."""

    score: Tensor
    noise: Tensor
    epsilon: Tensor
    score_inverse: Tensor | None = None
    noise_inverse: Tensor | None = None


def _langevin_parts(inputs) -> _Langevin:
    dtype = compute_dtype(inputs.x.dtype)
    score, noise = inputs.score.to(dtype), inputs.noise
    if noise is None:
        noise = torch.empty(inputs.x.shape, dtype=dtype, device=inputs.x.device)
        fill_random(
            noise, NORMAL, inputs.seed, inputs.seed_tensor, inputs.step, inputs.step_tensor,
            inputs.first_sample,
        )  # fmt: skip
    noise = noise.to(dtype)
    if math.isnan(inputs.snr):
        epsilon = torch.full((), inputs.step_size, dtype=dtype, device=score.device)
        return _Langevin(score, noise, epsilon)
    noise_square, score_square = per_sample_sum(noise * noise), per_sample_sum(score * score)
    score_inverse = _safe_inverse(score_square)
    epsilon = 2.0 * inputs.alpha * inputs.snr**2 * noise_square * score_inverse
    return _Langevin(score, noise, epsilon, score_inverse, _safe_inverse(noise_square))


def per_sample_sum(values: Tensor) -> Tensor:
    """Sum over every dimension but the first, kept: [B, ...] -> [B, 1, ...]."""
    return values.sum(tuple(range(1, values.ndim)), keepdim=True) if values.ndim > 1 else values


def _safe_inverse(values: Tensor) -> Tensor:
    """1 / values, and zero where they are zero."""
    return torch.where(values == 0, 0.0, 1.0 / torch.where(values == 0, 1.0, values))


def _safe_sqrt(values: Tensor) -> Tensor:
    """Square root whose derivative at zero is zero."""
    return torch.where(values == 0, 0.0, torch.sqrt(torch.where(values == 0, 1.0, values)))


def _langevin_backward(inputs, outputs, grads):
    """With ε ∝ ‖z‖²/‖s‖² and r = √(2ε): dε = 2ε (z·dz/‖z‖² − s·ds/‖s‖²), dr = r (…)."""
    parts, dtype = _langevin_parts(inputs), inputs.x.dtype
    grad = grads[0].to(parts.score.dtype)
    spread = _safe_sqrt(2.0 * parts.epsilon)
    to_score, to_noise = parts.epsilon * grad, spread * grad
    if parts.score_inverse is not None:
        along = 2.0 * parts.epsilon * per_sample_sum(grad * parts.score)
        along = along + spread * per_sample_sum(grad * parts.noise)
        to_score = to_score - along * parts.score_inverse * parts.score
        to_noise = to_noise + along * parts.noise_inverse * parts.noise
    given = inputs.noise is not None
    return {
        "x": grads[0],
        "score": to_score.to(dtype),
        "noise": to_noise.to(dtype) if given else None,
    }


def _langevin_jvp(inputs, outputs, tangents):
    parts = _langevin_parts(inputs)
    zero = torch.zeros_like(parts.score)
    x, score, noise = (
        zero if tangent is None else tangent.to(zero.dtype)
        for tangent in (tangents.x, tangents.score, tangents.noise)
    )
    spread = _safe_sqrt(2.0 * parts.epsilon)
    x_next = x + parts.epsilon * score + spread * noise
    if parts.score_inverse is not None:
        relative = parts.noise_inverse * per_sample_sum(parts.noise * noise)
        relative = relative - parts.score_inverse * per_sample_sum(parts.score * score)
        x_next = x_next + relative * (2.0 * parts.epsilon * parts.score + spread * parts.noise)
    return x_next.to(inputs.x.dtype)


_sampler_step = differentiable(raw_sampler_step, backward=_step_backward, jvp=_step_jvp)
_langevin_step = differentiable(raw_langevin_step, backward=_langevin_backward, jvp=_langevin_jvp)


def sampler_step(
    x: Tensor,
    model_output: Tensor,
    table: CoefficientTable,
    index: int | Tensor,
    *,
    history: tuple = ((), ()),
    clip_denoised: float | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_sample: int = 0,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One step of an explicit sampler: a row of a coefficient table, in one pass over memory.

    .. math::
        \hat{x}_0 &= \mathrm{clip}(d_0 x + d_1 \mathrm{output}) \\
        x' &= \sum_j a_j \mathrm{state}_j + \sum_j b_j \mathrm{prediction}_j
              + e \, \mathrm{output} + c \, \mathrm{noise}

    Arguments:
        x: current state [B, ...], fp32, fp64, bf16 or fp16.
        model_output: output of the network at ``x``, like ``x``.
        table: coefficients of the sampler.
        index: the row, one integer for the batch or int64 [B] for a row per sample.
        history: ``(predictions, states)``, each a tuple of tensors like ``x``, newest first, without the
            current ones; what is missing counts as zero. It is never changed.
        clip_denoised: bound of the prediction instead of the table's; infinity for none.
        seed, step, first_sample: address of the noise, as for :func:`genssl_fast.random_normal`. Noise is
            drawn where the row's coefficient is not zero and ``noise`` is None.
        noise: noise to use instead, like ``x``.
        out: tensor like ``x`` that receives the next state; may be ``x``. Has no derivatives.

    Returns:
        The next state and the new prediction of the clean sample, both contiguous and like ``x``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.
            Values of ``index`` [B] are checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, https://arxiv.org/abs/2006.11239;
        Song et al., Denoising Diffusion Implicit Models, https://arxiv.org/abs/2010.02502

    Example:
        >>> table = genssl_fast.CoefficientTable.from_rows([dict(state=[0.9], output=0.1, noise=0.5)])
        >>> x = torch.zeros(2, 3)
        >>> x_next, prediction = genssl_fast.sampler_step(x, torch.ones(2, 3), table, 0, seed=0)
        >>> x_next.shape
        torch.Size([2, 3])
    """
    predictions, states = _checked_history(x, history)
    _check_step(x, model_output, table, noise)
    index, index_tensor = _checked_index(x, table, index)
    if clip_denoised is not None:
        check(clip_denoised > 0, "clip_denoised", "a positive bound or None", clip_denoised)
    check_first_sample(first_sample)
    seed = 0 if seed is None and (noise is not None or _noiseless(table, index, index_tensor)) else seed
    args = (
        x, model_output, predictions, states, noise, table.on(x.device), index, index_tensor,
        table.num_states, math.nan if clip_denoised is None else float(clip_denoised),
        *fold_seed(seed, x.device), *fold_step(step, x.device), first_sample,
    )  # fmt: skip
    if out is None:
        return _sampler_step(*args)
    check_same("out", out, x, "x")
    check(out.is_contiguous(), "out", "a contiguous tensor", f"strides {out.stride()}")
    return out, raw_sampler_step_out(*args, out)


def langevin_step(
    x: Tensor,
    score: Tensor,
    *,
    snr: float | None = None,
    step_size: float | None = None,
    alpha: float = 1.0,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_sample: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Unadjusted Langevin step :math:`x' = x + \epsilon s + \sqrt{2 \epsilon} z`.

    Exactly one of ``snr`` and ``step_size`` is given. With ``snr`` the step size is
    :math:`\epsilon = 2 \alpha (\mathrm{snr} \|z\| / \|s\|)^2`, **per sample**, so that a sample does not
    depend on its neighbours; a sample whose score is zero stays where it is.

    Arguments:
        x: state [B, ...], fp32, fp64, bf16 or fp16.
        score: :math:`\nabla \log p(x)`, like ``x``.
        snr: target ratio of the norms of score step and noise.
        step_size: :math:`\epsilon`, at least 0.
        alpha: factor of the adaptive step size; 1 for VE, :math:`1 - \beta_i` for VP.
        seed, step, first_sample: address of the noise, as for :func:`genssl_fast.random_normal`.
        noise: noise to use instead, like ``x``.

    Returns:
        The next state, contiguous and like ``x``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.

    References:
        Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, algorithm 4,
        https://arxiv.org/abs/2011.13456 (there with norms averaged over the batch)

    Example:
        >>> x = torch.randn(2, 3)
        >>> genssl_fast.langevin_step(x, -x, step_size=0.01, seed=0).shape
        torch.Size([2, 3])
    """
    check_dtype("x", x)
    check(x.ndim >= 1, "x", "shape [B, ...]", list(x.shape))
    check_same("score", score, x, "x")
    if noise is not None:
        check_same("noise", noise, x, "x")
    given = [name for name, value in (("snr", snr), ("step_size", step_size)) if value is not None]
    check(len(given) == 1, "snr, step_size", "exactly one of them", " and ".join(given) or "neither")
    check(snr is None or snr > 0, "snr", "a positive number", snr)
    check(step_size is None or step_size >= 0, "step_size", "a number of at least 0", step_size)
    check(alpha > 0, "alpha", "a positive number", alpha)
    check_first_sample(first_sample)
    return _langevin_step(
        x, score, noise, math.nan if snr is None else float(snr),
        math.nan if step_size is None else float(step_size), float(alpha),
        *fold_seed(seed if noise is None else 0, x.device), *fold_step(step, x.device), first_sample,
    )  # fmt: skip


def _check_step(x, model_output, table, noise) -> None:
    check_dtype("x", x)
    check(x.ndim >= 1, "x", "shape [B, ...]", list(x.shape))
    check_same("model_output", model_output, x, "x")
    if not isinstance(table, CoefficientTable):
        raise TypeError(f"table: expected a CoefficientTable, got {type(table).__name__}")
    if noise is not None:
        check_same("noise", noise, x, "x")


def _checked_history(x, history) -> tuple[list, list]:
    check(len(history) == 2, "history", "two tuples (predictions, states)", f"{len(history)} entries")
    for name, entries in zip(("predictions", "states"), history):
        for number, entry in enumerate(entries):
            check_same(f"history {name}[{number}]", entry, x, "x")
    return list(history[0]), list(history[1])


def _checked_index(x, table, index) -> tuple[int, Tensor | None]:
    if not isinstance(index, Tensor):
        expected = f"a row of the table, 0 to {table.num_rows - 1}"
        is_row = not isinstance(index, float) and 0 <= index < table.num_rows
        check(is_row, "index", expected, index)
        return int(index), None
    check_dtype("index", index, (torch.int64,))
    check_shape("index", index, x.shape[:1], "[B]")
    check(index.device == x.device, "index", f"a tensor on {x.device}", f"one on {index.device}")
    if index.numel() and values_are_checked(index):
        low, high = (int(value) for value in torch.aminmax(index))
        expected = f"rows of the table, 0 to {table.num_rows - 1}"
        check(low >= 0 and high < table.num_rows, "index", expected, f"{low} to {high}")
    return 0, index


def _noiseless(table, index, index_tensor) -> bool:
    return not (any(table.draws_noise) if index_tensor is not None else table.draws_noise[index])
