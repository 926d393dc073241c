"""Building blocks of networks that call the operations."""

from genssl_fast.nn.actnorm import ActNorm
from genssl_fast.nn.compose import Compose, Inverse
from genssl_fast.nn.conv_net import ConvNet
from genssl_fast.nn.coupling import AffineCoupling, Coupling, SplineCoupling
from genssl_fast.nn.film_mlp import FilmMLP
from genssl_fast.nn.glow import GlowScale, GlowStep, glow_step
from genssl_fast.nn.invertible_linear import InvertibleLinear
from genssl_fast.nn.masked_autoregressive import MaskedAutoregressive
from genssl_fast.nn.mlp import MLP
from genssl_fast.nn.permutation import Permutation
from genssl_fast.nn.planar import Planar, Radial
from genssl_fast.nn.vector_quantizer import Quantized, VectorQuantizer

__all__ = [
    "MLP",
    "ActNorm",
    "AffineCoupling",
    "Compose",
    "ConvNet",
    "Coupling",
    "FilmMLP",
    "GlowScale",
    "GlowStep",
    "Inverse",
    "InvertibleLinear",
    "MaskedAutoregressive",
    "Permutation",
    "Planar",
    "Quantized",
    "Radial",
    "SplineCoupling",
    "VectorQuantizer",
    "glow_step",
]
