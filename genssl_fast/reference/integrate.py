"""Steps of samplers in plain PyTorch."""

import math

import torch
from torch import Tensor

from genssl_fast.reference.random import random_values
from genssl_fast.reference.score import film_mlp

__all__ = ["film_mlp_sample", "langevin_step", "sampler_step", "sampler_step_out"]

NORMAL = 1


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] or [] shaped to multiply ``like`` [B, ...]."""
    values = values.to(like.dtype)
    return values.reshape(-1, *(1,) * (like.ndim - 1)) if values.ndim else values


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """16-bit floating point is computed in fp32."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def step_noise(x: Tensor, seed, seed_tensor, step, step_tensor, first_sample) -> Tensor:
    """Normal noise of the shape of ``x`` [B, ...], in its compute dtype."""
    seed = seed if seed_tensor is None else seed_tensor.reshape(())
    step = step if step_tensor is None else step_tensor.reshape(())
    noise = random_values(NORMAL, x.shape, seed, step, first_sample, x.device)
    return noise.to(compute_dtype(x.dtype))


def select_rows(coefficients: Tensor, index: int, index_tensor: Tensor | None) -> list[Tensor]:
    """The columns of the chosen row ([] each) or rows ([B] each)."""
    rows = coefficients[index] if index_tensor is None else coefficients[index_tensor]
    return list(rows.unbind(-1))


def sampler_step(
    x, model_output, predictions, states, noise, coefficients, index, index_tensor, num_states,
    clip, seed, seed_tensor, step, step_tensor, first_sample,
):  # fmt: skip
    """x' = Σ a_j state_j + Σ b_j prediction_j + e output + c noise, and the new prediction."""
    dtype, x = x.dtype, x.to(compute_dtype(x.dtype))
    columns = [per_sample(c, x) for c in select_rows(coefficients, index, index_tensor)]
    a, b = columns[:num_states], columns[num_states:-6]
    e, c, d0, d1, bound, _ = columns[-6:]
    output = model_output.to(x.dtype)
    bound = bound if math.isnan(clip) else torch.full_like(bound, clip)
    prediction = torch.clamp(d0 * x + d1 * output, -bound, bound)
    total = e * output
    for weight, state in zip(a, [x, *states]):
        total = total + weight * state.to(x.dtype)
    for weight, old in zip(b, [prediction, *predictions]):
        total = total + weight * old.to(x.dtype)
    if noise is None and bool((coefficients[:, -5] != 0).any()):
        noise = step_noise(x, seed, seed_tensor, step, step_tensor, first_sample)
    if noise is not None:
        total = total + c * noise.to(x.dtype)
    return total.to(dtype), prediction.to(dtype)


def sampler_step_out(*args) -> Tensor:
    """As :func:`sampler_step`, with x' written to the last argument; returns the prediction."""
    x_next, prediction = sampler_step(*args[:-1])
    args[-1].copy_(x_next)
    return prediction


def langevin_step(x, score, noise, snr, step_size, alpha, seed, seed_tensor, step, step_tensor, first_sample):
    """x' = x + ε s + √(2ε) z, with ε given or 2α (snr ‖z‖ / ‖s‖)² per sample."""
    dtype, x, score = x.dtype, x.to(compute_dtype(x.dtype)), score.to(compute_dtype(x.dtype))
    if noise is None:
        noise = step_noise(x, seed, seed_tensor, step, step_tensor, first_sample)
    noise = noise.to(x.dtype)
    if math.isnan(snr):
        epsilon = torch.as_tensor(step_size, dtype=x.dtype, device=x.device)
    else:
        noise_square, score_square = (v.flatten(1).square().sum(1) for v in (noise, score))
        at_rest = score_square == 0
        ratio = noise_square / torch.where(at_rest, 1.0, score_square)
        epsilon = torch.where(at_rest, 0.0, 2.0 * alpha * snr**2 * ratio)
        epsilon = per_sample(epsilon, x)
    return (x + epsilon * score + torch.sqrt(2.0 * epsilon) * noise).to(dtype)


def film_mlp_sample(
    x, frequencies, sin_first, w_in, b_in, w, c, w_film, w_embed1, w_embed2, w_out, b_out,
    class_embedding, labels, coefficients, num_states, clip, seed, seed_tensor, step, step_tensor,
    first_sample, noise,
) -> Tensor:  # fmt: skip
    """Every row of the table: the network at the row's time, then the row's step."""
    dtype, x = x.dtype, x.to(compute_dtype(x.dtype))
    network = (frequencies, sin_first, w_in, b_in, w, c, w_film, w_embed1, w_embed2, w_out, b_out)
    num_predictions = coefficients.shape[1] - num_states - 6
    predictions, states = [], []
    for row, time in enumerate(coefficients[:, -1]):
        output = film_mlp(x, time, *network, class_embedding, labels)
        counter = (step + row, None if step_tensor is None else step_tensor + row)
        x_next, prediction = sampler_step(
            x, output, predictions, states, None if noise is None else noise[row], coefficients,
            row, None, num_states, clip, seed, seed_tensor, *counter, first_sample,
        )  # fmt: skip
        predictions = [prediction, *predictions][: max(num_predictions - 1, 0)]
        states = [x, *states][: num_states - 1]
        x = x_next
    return x.to(dtype)
