r"""What a network predicts, and how one prediction turns into another.

With :math:`x = \alpha x_0 + \sigma \varepsilon`:

============  ===================================================
``"noise"``     :math:`\varepsilon`
``"score"``     :math:`\nabla_x \log p(x \mid x_0) = -\varepsilon / \sigma`
``"denoised"``  :math:`x_0`
``"velocity"``  :math:`\alpha \varepsilon - \sigma x_0`
``"flow"``      :math:`\varepsilon - x_0`
============  ===================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from genssl_fast._checks import check_choice
from genssl_fast.diffusion.processes import per_sample

__all__ = ["PARAMETERIZATIONS", "conversion", "convert", "target"]

# Each is (p x_0 + q noise) / r for coefficients (p, q, r) that depend on alpha and sigma.
PARAMETERIZATIONS = {
    "noise": lambda alpha, sigma: (0.0, 1.0, 1.0),
    "score": lambda alpha, sigma: (0.0, -1.0, sigma),
    "denoised": lambda alpha, sigma: (1.0, 0.0, 1.0),
    "velocity": lambda alpha, sigma: (-sigma, alpha, 1.0),
    "flow": lambda alpha, sigma: (-1.0, 1.0, 1.0),
}


def _coefficients(parameterization: str, alpha: Tensor, sigma: Tensor):
    check_choice("parameterization", parameterization, PARAMETERIZATIONS)
    return PARAMETERIZATIONS[parameterization](alpha, sigma)


def conversion(source: str, to: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    r"""Coefficients (c_x, c_value) of a change of parameterization, in the shape of ``alpha``.

    .. math:: \mathrm{value}_{to} = c_x\, x + c_{value}\, \mathrm{value}_{source}

    Arguments:
        source: The name of the given parameterization.
        to: The name of the wanted parameterization.
        alpha: The scale of the signal, positive.
        sigma: The standard deviation of the noise, in the shape of ``alpha``.

    References:
        Salimans and Ho, Progressive Distillation for Fast Sampling of Diffusion Models,
        https://arxiv.org/abs/2202.00512

    Example:
        >>> from genssl_fast.diffusion import conversion
        >>> conversion("noise", "denoised", torch.tensor(0.8), torch.tensor(0.6))
        (tensor(1.2500), tensor(-0.7500))
    """
    p, q, r = _coefficients(source, alpha, sigma)
    p_to, q_to, r_to = _coefficients(to, alpha, sigma)
    if source == to:
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    # x_0 and the noise solve: alpha x_0 + sigma noise = x, p x_0 + q noise = r value.
    determinant = (alpha * q - sigma * p) * r_to
    of_x = (p_to * q - q_to * p) / determinant
    of_value = r * (alpha * q_to - sigma * p_to) / determinant
    return of_x, of_value


def convert(value: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, *, source: str, to: str) -> Tensor:
    """Turns one prediction into another, sample by sample.

    Arguments:
        value: The prediction [B, ...] in the parameterization ``source``.
        x: The noisy state [B, ...].
        alpha: The scale of the signal, [] or [B].
        sigma: The standard deviation of the noise, [] or [B].
        source: The name of the given parameterization.
        to: The name of the wanted parameterization.

    Example:
        >>> from genssl_fast.diffusion import convert
        >>> x, noise = torch.ones(1, 2), torch.zeros(1, 2)
        >>> alpha, sigma = torch.tensor(0.8), torch.tensor(0.6)
        >>> convert(noise, x, alpha, sigma, source="noise", to="denoised")
        tensor([[1.2500, 1.2500]])
    """
    of_x, of_value = (per_sample(c, x) for c in conversion(source, to, alpha, sigma))
    return (of_x * x + of_value * value).to(value.dtype)


def target(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, parameterization: str) -> Tensor:
    """What the network should predict, [B, ...], for data ``x0`` [B, ...] and ``noise`` [B, ...].

    Example:
        >>> from genssl_fast.diffusion import target
        >>> x0, noise = torch.ones(1, 2), torch.zeros(1, 2)
        >>> target(x0, noise, torch.tensor(0.8), torch.tensor(0.6), "velocity")
        tensor([[-0.6000, -0.6000]])
    """
    coefficients = _coefficients(parameterization, alpha, sigma)
    p, q, r = (per_sample(c, x0) if isinstance(c, Tensor) else c for c in coefficients)
    return ((p * x0 + q * noise) / r).to(x0.dtype)
