"""Normalizing flows: densities by invertible maps from data to noise."""

from genssl_fast.flows.autoregressive_flows import IAF, MADE, MAF
from genssl_fast.flows.base import GaussianMixture, StandardNormal
from genssl_fast.flows.coupling_flows import NICE, NeuralSplineFlow, RealNVP
from genssl_fast.flows.flow import Flow, FlowDistribution
from genssl_fast.flows.flow_gmm import FlowGMM
from genssl_fast.flows.glow import Glow
from genssl_fast.flows.planar_flow import PlanarFlow

__all__ = [
    "FLOWS",
    "IAF",
    "MADE",
    "MAF",
    "NICE",
    "Flow",
    "FlowDistribution",
    "FlowGMM",
    "GaussianMixture",
    "Glow",
    "NeuralSplineFlow",
    "PlanarFlow",
    "RealNVP",
    "StandardNormal",
]

FLOWS = {
    "nice": NICE,
    "realnvp": RealNVP,
    "spline": NeuralSplineFlow,
    "maf": MAF,
    "iaf": IAF,
    "glow": Glow,
    "planar": PlanarFlow,
    "made": MADE,
}
