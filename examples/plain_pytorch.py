"""The digits' network and sampler as one would write them in PyTorch alone."""

import math

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from genssl_fast.score_model import ScoreModel

__all__ = ["network", "sample"]


def network(model: ScoreModel, x: Tensor, t: float) -> Tensor:
    """The residual FiLM-MLP at one time for the whole batch: x [B, D] -> [B, D]."""
    weights, half = model.network.weights(), model.config.time_dim // 2
    angles = 1000 * t * torch.exp(-math.log(1e4) / half * torch.arange(half, dtype=x.dtype))
    features = torch.cat([angles.cos(), angles.sin()])
    embedding = silu(linear(silu(linear(features, weights.w_embed1)), weights.w_embed2))
    h = linear(x, weights.w_in, weights.b_in)
    for w, c, w_film in zip(weights.w, weights.c, weights.w_film, strict=True):
        gamma, beta = linear(embedding, w_film).chunk(2)
        h = h + silu((1 + gamma) * linear(h, w, c) + beta)
    return linear(h, weights.w_out, weights.b_out)


@torch.no_grad()
def sample(model: ScoreModel, x: Tensor, steps: int) -> Tensor:
    """DDIM from noise x [B, D] with clipping, for a network that predicts noise minus data."""
    times = model.process.times(steps)
    alphas, sigmas = model.process.alpha(times).tolist(), model.process.sigma(times).tolist()
    for i, t in enumerate(times.tolist()):
        alpha, sigma = alphas[i], sigmas[i]
        output = network(model, x, t)
        denoised = (x - sigma * output) / (alpha + sigma)
        noise = denoised + output
        denoised.clamp_(-1, 1)
        if i + 1 == steps:
            return denoised
        x = alphas[i + 1] * denoised + sigmas[i + 1] * noise
