"""Distributions of the noise that flows map data to."""

import math

import torch
from torch import Tensor, nn

from genssl_fast._checks import check, check_shape
from genssl_fast._random import Stream, step_counter
from genssl_fast.ops.gaussian_mixture import component_log_densities, gaussian_mixture_log_prob
from genssl_fast.ops.random import random_normal, random_uniform

__all__ = ["GaussianMixture", "StandardNormal"]


class StandardNormal(nn.Module):
    """Independent standard normal entries.

    Arguments:
        shape: of one sample.

    Example:
        >>> base = genssl_fast.flows.StandardNormal((2, 3))
        >>> base.log_prob(base.sample(4, seed=0, like=torch.empty(0))).shape
        torch.Size([4])
    """

    is_standard_normal = True  # genssl_fast.FlowPlan has this density compiled in

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = tuple(shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density [B] of ``z`` [B, *shape], in fp32 or better."""
        z = z.flatten(1).to(torch.promote_types(z.dtype, torch.float32))
        return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))

    def sample(self, n: int, *, seed: int | Tensor | None, first_sample: int = 0, like: Tensor) -> Tensor:
        """Noise [n, *shape] with the dtype and device of ``like``."""
        return _noise((n, *self.shape), seed, first_sample, like)


class GaussianMixture(nn.Module):
    """A mixture of K isotropic Gaussians.

    Arguments:
        shape: of one sample, with D entries.
        means: [K, D].
        scale: standard deviation of every component.

    Raises:
        ValueError: means of the wrong shape, a scale that is not positive.

    Example:
        >>> base = genssl_fast.flows.GaussianMixture((2,), torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))
        >>> base.component_log_prob(torch.zeros(1, 2)).shape
        torch.Size([1, 2])
    """

    def __init__(self, shape: tuple[int, ...], means: Tensor, scale: float = 1.0):
        super().__init__()
        self.shape = tuple(shape)
        check_shape("means", means, (len(means), math.prod(shape)), "[K, D]")
        check(scale > 0, "scale", "a positive number", scale)
        self.register_buffer("means", means)
        self.register_buffer("log_scales", torch.full(means.shape[:1], math.log(scale), dtype=means.dtype))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density [B] of ``z`` [B, *shape], in fp32 or better."""
        return gaussian_mixture_log_prob(z.flatten(1), self.means, self.log_scales)

    def component_log_prob(self, z: Tensor) -> Tensor:
        """Log-density [B, K] of ``z`` [B, *shape] and the component, in fp32 or better."""
        joint = component_log_densities(z.flatten(1), self.means, self.log_scales) - math.log(len(self.means))
        return joint.to(torch.promote_types(z.dtype, torch.float32))

    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | None,
        first_sample: int = 0,
        like: Tensor,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Noise [n, *shape] like ``like`` in dtype and device; ``labels`` [n] choose the components."""
        seed = torch.randint(2**63 - 1, (), device=like.device) if seed is None else seed
        noise = _noise((n, math.prod(self.shape)), seed, first_sample, like)
        if labels is None:
            step = step_counter(Stream.PRIOR, 1)
            uniform = random_uniform(
                (n, 1), seed=seed, step=step, first_sample=first_sample, device=like.device
            )
            labels = (uniform[:, 0] * len(self.means)).long().clamp(max=len(self.means) - 1)
        z = self.means[labels] + self.log_scales[labels, None].exp() * noise
        return z.view(n, *self.shape)


def _noise(shape: tuple[int, ...], seed: int | Tensor | None, first_sample: int, like: Tensor) -> Tensor:
    """Standard normal numbers of the prior's stream; row b is sample ``first_sample + b``."""
    step = step_counter(Stream.PRIOR, 0)
    options = {"first_sample": first_sample, "dtype": like.dtype, "device": like.device}
    return random_normal(shape, seed=seed, step=step, **options)
