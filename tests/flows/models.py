"""Small flows whose parameters are not those of their start."""

from functools import partial

import torch

from genssl_fast import flows

FLOWS = {
    "nice": partial(flows.NICE, layers=3, hidden=(8,)),
    "realnvp": partial(flows.RealNVP, layers=3, hidden=(8, 8)),
    "realnvp-linear": partial(flows.RealNVP, layers=2, hidden=(8,), linear=True, masks="random"),
    "spline": partial(flows.NeuralSplineFlow, layers=3, hidden=(8, 8), bins=5),
    "spline-residual": partial(flows.NeuralSplineFlow, layers=2, hidden=(8,), residual=True, masks="half"),
    "spline-autoregressive": partial(
        flows.NeuralSplineFlow, layers=2, hidden=(8, 8), bins=5, autoregressive=True
    ),
    "maf": partial(flows.MAF, layers=2, hidden=(8, 8)),
    "maf-random": partial(flows.MAF, layers=3, hidden=(8,), residual=True, order="random"),
    "iaf": partial(flows.IAF, layers=2, hidden=(8, 8)),
    "planar": partial(flows.PlanarFlow, layers=4),
    "planar-sample": partial(flows.PlanarFlow, layers=4, closed_form="sample"),
    "made": partial(flows.MADE, hidden=(16,)),
}
IMAGE_FLOWS = {
    "glow": partial(flows.Glow, scales=2, steps=2, hidden=4),
    "glow-one-scale": partial(flows.Glow, scales=1, steps=2, hidden=4, clamp="tanh"),
}
# Networks that a compiled plan takes.
PLANNED = tuple(name for name in (*FLOWS, *IMAGE_FLOWS) if not name.startswith("planar"))


def build(make, shape, dtype=torch.float64, spread=0.2, **options):
    """A flow in evaluation with random parameters."""
    torch.manual_seed(0)
    flow = make(shape, **options).to(dtype).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


def samples(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
