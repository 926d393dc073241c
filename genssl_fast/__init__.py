"""Compiled kernels for generative and self-supervised learning in PyTorch."""

from genssl_fast import diffusion, flows, integrations, nn, reference, ssl
from genssl_fast._random import Stream, step_counter
from genssl_fast._version import __version__
from genssl_fast.accelerate import AccelerationReport, accelerate
from genssl_fast.ops.actnorm import actnorm
from genssl_fast.ops.affine_coupling import affine_coupling, affine_parameters
from genssl_fast.ops.coefficient_table import CoefficientTable
from genssl_fast.ops.contrastive import clip_loss, info_nce, moco_loss, nt_xent, siglip_loss, sup_con
from genssl_fast.ops.decorrelation import barlow_twins, vicreg
from genssl_fast.ops.ema import ema_update
from genssl_fast.ops.film_mlp_plan import FilmMLPPlan
from genssl_fast.ops.film_mlp_sample import film_mlp_sample
from genssl_fast.ops.flow_layers import (
    AutoregressiveLayer,
    ChannelLinearLayer,
    ConvNetWeights,
    CouplingLayer,
    ElementwiseLayer,
    LinearLayer,
    MLPWeights,
    PartialLayer,
    PermutationLayer,
)
from genssl_fast.ops.flow_plan import FlowPlan
from genssl_fast.ops.gaussian_mixture import gaussian_mixture_log_prob
from genssl_fast.ops.generalized_contrastive import generalized_contrastive, info_nce_distance
from genssl_fast.ops.integrate import langevin_step, sampler_step
from genssl_fast.ops.invertible_linear import invertible_linear, invertible_linear_weight
from genssl_fast.ops.kmeans import KMeans, kmeans
from genssl_fast.ops.made import MADEWeights, made, made_degrees, made_inverse, made_transform
from genssl_fast.ops.nearest_code import CodeSums, NearestCode, code_sums, nearest_code
from genssl_fast.ops.permute import permute, squeeze2d
from genssl_fast.ops.planar import planar, radial
from genssl_fast.ops.psi import Psi
from genssl_fast.ops.random import random_normal, random_rademacher, random_uniform
from genssl_fast.ops.rational_quadratic_spline import rational_quadratic_spline
from genssl_fast.ops.score import FilmMLPWeights, film_mlp, time_embedding
from genssl_fast.ops.sinkhorn import sinkhorn
from genssl_fast.ops.soft_cross_entropy import dino_loss, soft_cross_entropy, update_center
from genssl_fast.ops.transforms import AffineTransform, SplineTransform

__all__ = [
    "AccelerationReport",
    "AffineTransform",
    "AutoregressiveLayer",
    "ChannelLinearLayer",
    "CodeSums",
    "CoefficientTable",
    "ConvNetWeights",
    "CouplingLayer",
    "ElementwiseLayer",
    "FilmMLPPlan",
    "FilmMLPWeights",
    "FlowPlan",
    "KMeans",
    "LinearLayer",
    "MADEWeights",
    "MLPWeights",
    "NearestCode",
    "PartialLayer",
    "PermutationLayer",
    "Psi",
    "SplineTransform",
    "Stream",
    "__version__",
    "accelerate",
    "actnorm",
    "affine_coupling",
    "affine_parameters",
    "barlow_twins",
    "clip_loss",
    "code_sums",
    "diffusion",
    "dino_loss",
    "ema_update",
    "film_mlp",
    "film_mlp_sample",
    "flows",
    "gaussian_mixture_log_prob",
    "generalized_contrastive",
    "info_nce",
    "info_nce_distance",
    "integrations",
    "invertible_linear",
    "invertible_linear_weight",
    "kmeans",
    "langevin_step",
    "made",
    "made_degrees",
    "made_inverse",
    "made_transform",
    "moco_loss",
    "nearest_code",
    "nn",
    "nt_xent",
    "permute",
    "planar",
    "radial",
    "random_normal",
    "random_rademacher",
    "random_uniform",
    "rational_quadratic_spline",
    "reference",
    "sampler_step",
    "siglip_loss",
    "sinkhorn",
    "soft_cross_entropy",
    "squeeze2d",
    "ssl",
    "step_counter",
    "sup_con",
    "time_embedding",
    "update_center",
    "vicreg",
]
