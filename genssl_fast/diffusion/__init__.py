"""Diffusion models: forward processes, objectives, samplers as tables, and sampling."""

from genssl_fast.diffusion.loops import LangevinCorrector, NonFiniteError
from genssl_fast.diffusion.objectives import ddpm_loss, denoising_score_matching, log_snr_time
from genssl_fast.diffusion.parameterizations import PARAMETERIZATIONS, conversion, convert, target
from genssl_fast.diffusion.processes import (
    VESDE,
    VPSDE,
    DDPMSchedule,
    GaussianProcess,
    SubVPSDE,
)
from genssl_fast.diffusion.sample import sample
from genssl_fast.diffusion.samplers import (
    SAMPLERS,
    TimeGrid,
    annealed_langevin,
    ddim,
    ddpm,
    euler_maruyama,
    identity,
    probability_flow_euler,
    probability_flow_heun,
    reverse_diffusion,
    unit_variance,
)

__all__ = [
    "PARAMETERIZATIONS",
    "SAMPLERS",
    "VESDE",
    "VPSDE",
    "DDPMSchedule",
    "GaussianProcess",
    "LangevinCorrector",
    "NonFiniteError",
    "SubVPSDE",
    "TimeGrid",
    "annealed_langevin",
    "conversion",
    "convert",
    "ddim",
    "ddpm",
    "ddpm_loss",
    "denoising_score_matching",
    "euler_maruyama",
    "identity",
    "log_snr_time",
    "probability_flow_euler",
    "probability_flow_heun",
    "reverse_diffusion",
    "sample",
    "target",
    "unit_variance",
]
