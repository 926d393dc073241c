"""Benchmarks of normalizing flows: elementwise transforms, and stacks of couplings."""

import copy
import math
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genssl_fast
from bench import ceilings
from bench.baselines import compiled, lazily
from bench.case import OURS, Bar, Family, Workload
from genssl_fast import Stream, reference, step_counter
from genssl_fast.flows import Flow, NeuralSplineFlow
from genssl_fast.nn import glow_step
from genssl_fast.ops.random import NORMAL
from genssl_fast.reference.random import random_values

cases = Family("coupling")

SEED = 1234
BINS, BOUND = 8, 3.0
LINEAR_TAILS = 1
PRIOR = step_counter(Stream.PRIOR, 0)


def normal(*shape: int, device: str, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


# Splines


def plain_spline(x: Tensor, parameters: Tensor, inverse: bool, zuko: bool = False, bound: float = BOUND):
    """Without a branch, so that `torch.compile` takes it whole; parameters [*x.shape, 3 BINS - 1]."""
    chunks = parameters.split((BINS, BINS, BINS - 1), -1)
    box = (-bound, bound, -bound, bound)
    return reference.coupling.rational_quadratic_spline(
        x, *chunks, inverse, False, LINEAR_TAILS, zuko, *box, 1e-3, 1e-3, 1e-3, 1e-3
    )


def our_spline(x, parameters, inverse, zuko=False):
    kind = "zuko" if zuko else "softmax"
    return genssl_fast.rational_quadratic_spline(
        x, parameters, inverse=inverse, bound=BOUND, parameterization=kind
    )


def nflows_spline():
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline

    def spline(x, parameters, inverse):
        chunks = parameters.split((BINS, BINS, BINS - 1), -1)
        y, log_derivative = unconstrained_rational_quadratic_spline(x, *chunks, inverse, tail_bound=BOUND)
        return y, log_derivative.sum(1)

    return spline


def zuko_spline():
    from zuko.transforms import MonotonicRQSTransform

    def spline(x, parameters, inverse):
        chunks = parameters.split((BINS, BINS, BINS - 1), -1)
        transform = MonotonicRQSTransform(*chunks, bound=BOUND)
        y, log_derivative = (transform.inv if inverse else transform).call_and_ladj(x)
        return y, log_derivative.sum(1)

    return spline


PEERS = {"nflows": nflows_spline, "zuko": zuko_spline}


def with_gradients(spline, x, parameters, inverse):
    """Value, log-determinant and the gradients of a fixed linear functional of both."""
    with torch.enable_grad():
        y, log_abs_det = spline(x, parameters, inverse)
        weights = torch.ones_like(y), torch.full_like(log_abs_det, 0.5)
        gradients = torch.autograd.grad((y, log_abs_det), (x, parameters), weights)
    return y.detach(), log_abs_det.detach(), *gradients


def without_gradients(spline, x, parameters, inverse):
    return spline(x, parameters, inverse)


def spline_workload(device: str, peer: str, shape, *, inverse=False, gradients=False) -> Workload:
    """One parameterization: nflows' softmax or zuko's, with the peer that has it."""
    zuko = peer == "zuko"
    x = (2 * normal(*shape, device=device)).requires_grad_(gradients)
    parameters = normal(*shape, 3 * BINS - 1, device=device, seed=1).requires_grad_(gradients)
    measure = with_gradients if gradients else without_gradients

    def provider(spline):
        return lambda: measure(spline, x, parameters, inverse)

    def reference_values(dtype):
        wide = (t.detach().to(dtype).requires_grad_(gradients) for t in (x, parameters))
        return measure(partial(plain_spline, zuko=zuko), *wide, inverse)

    plain = partial(plain_spline, zuko=zuko)
    traffic = 4 * x.numel() * (3 * BINS + 1) * (2 if gradients else 1)
    providers = {
        OURS: provider(partial(our_spline, zuko=zuko)),
        "eager": provider(plain),
        "compiled": provider(compiled(plain)),
        peer: lazily(lambda: provider(PEERS[peer]())),
    }
    if zuko or not gradients:  # compiled, nflows' assignments by mask have wrong gradients
        fused = lazily(lambda: provider(compiled(PEERS[peer](), fullgraph=zuko)))
        providers[f"{peer} compiled"] = fused
    return Workload(
        providers=providers,
        reference=reference_values,
        bytes=traffic,
        ceilings=ceilings.copy(traffic) if device == "cuda" else {},  # a CPU computes longer than it loads
    )


def spline_cases(peer: str) -> None:
    """Forward, inverse, and forward with backward, in the parameterization of a peer."""
    best = ("compiled", f"{peer} compiled")
    kinds = {
        "forward": ({}, 15),
        "inverse": ({"inverse": True}, 15),
        "forward and backward": ({"gradients": True}, 20),
    }
    for kind, (options, over_peer) in kinds.items():
        bars = (Bar(over_peer, (peer,)), Bar(5, best))
        title = f"{kind}, 16384×16, {BINS} bins, {peer}'s parameters"
        cases.case("rational_quadratic_spline", title, cpu_bars=bars)(
            partial(spline_workload, peer=peer, shape=(16384, 16), **options)
        )


spline_cases("nflows")
spline_cases("zuko")


@cases.case(
    "rational_quadratic_spline", "forward, 2²² elements, 8 bins", cuda_bars=(Bar(0.75),), devices=("cuda",)
)  # fmt: skip
def spline_large(device):
    return spline_workload(device, "nflows", (1 << 16, 64))


# Affine couplings


@cases.case(
    "affine_coupling", "tanh clamp, 65536×64",
    cpu_bars=(Bar(5, ("eager",)), Bar(1.7, ("compiled",)), Bar(0.6)), cuda_bars=(Bar(0.75),),
)  # fmt: skip
def affine(device):
    x, limit = normal(65536, 64, device=device), 2.0
    shift, log_scale = normal(2, *x.shape, device=device, seed=1).unbind()

    def formula(x, shift, log_scale):
        s = limit * torch.tanh(log_scale / limit)
        return torch.addcmul(shift, x, torch.exp(s)), s.sum(1)

    fused = compiled(formula)
    return Workload(
        providers={
            OURS: lambda: genssl_fast.affine_coupling(x, shift, log_scale, clamp="tanh", limit=limit),
            "eager": lambda: formula(x, shift, log_scale),
            "compiled": lambda: fused(x, shift, log_scale),
        },
        reference=lambda dtype: formula(*(t.to(dtype) for t in (x, shift, log_scale))),
        bytes=4 * x.nbytes,
        ceilings=ceilings.stream([x, shift, log_scale], 1),
    )


# Neural spline flows

FEATURES, LAYERS, HIDDEN = 16, 8, (128, 128)


def spline_flow(device: str) -> NeuralSplineFlow:
    """Weights as `torch.nn.Linear` starts with, not the zeros of a new flow."""
    torch.manual_seed(0)
    flow = NeuralSplineFlow(FEATURES, LAYERS, HIDDEN, bins=BINS, bound=BOUND, linear=False)
    for module in flow.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return flow.to(device).eval()


class PlainSplineFlow(nn.Module):
    """The same flow in the fewest PyTorch operations: its checkerboard masks are strided views."""

    def __init__(self, flow: NeuralSplineFlow):
        super().__init__()
        self.networks = nn.ModuleList(copy.deepcopy(layer.network.layers) for layer in flow.layers)

    def forward(self, x: Tensor, inverse: bool = False):
        total = 0.0
        couplings = list(enumerate(self.networks))
        for i, network in reversed(couplings) if inverse else couplings:
            halves = [x[:, 0::2], x[:, 1::2]]
            given, moved = halves if i % 2 == 0 else halves[::-1]
            h = given
            for linear in network[:-1]:
                h = torch.relu(linear(h))
            moved, log_abs_det = plain_spline(moved, network[-1](h).unflatten(1, (-1, 3 * BINS - 1)), inverse)
            x = torch.stack((given, moved) if i % 2 == 0 else (moved, given), -1).flatten(1)
            total = total + log_abs_det
        return x, total

    def log_prob(self, x):
        z, log_abs_det = self(x)
        return log_abs_det - 0.5 * (z * z + math.log(2 * math.pi)).sum(1)

    def sample(self, noise):
        return self(noise, inverse=True)[0]


class WithoutContext(nn.Sequential):
    """A perceptron as nflows calls it."""

    def forward(self, x, context=None):
        return super().forward(x)


def nflows_spline_flow(flow: NeuralSplineFlow):
    """nflows' flow with the weights of ours."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform

    def coupling(layer):
        first, second, last = copy.deepcopy(layer.network.layers)
        network = WithoutContext(first, nn.ReLU(), second, nn.ReLU(), last)
        mask = torch.zeros(FEATURES)
        mask[layer.transformed.cpu()] = 1
        return PiecewiseRationalQuadraticCouplingTransform(
            mask, lambda *sizes: network, num_bins=BINS, tails="linear", tail_bound=BOUND
        )

    warnings.filterwarnings("ignore", message="Inputs to the softmax")  # as ours, whose weights these are
    transform = CompositeTransform([coupling(layer) for layer in flow.layers])
    return Flow(transform, StandardNormal([FEATURES])).to(next(flow.parameters()).device).eval()


def zuko_spline_flow(device: str):
    """zuko's flow of the same sizes; its spline has other parameters, so its values are its own."""
    from zuko.distributions import DiagNormal
    from zuko.flows import Flow, GeneralCouplingTransform, UnconditionalDistribution
    from zuko.transforms import MonotonicRQSTransform

    torch.manual_seed(0)
    masks = [torch.arange(FEATURES) % 2 == i % 2 for i in range(LAYERS)]
    transforms = [
        GeneralCouplingTransform(
            FEATURES, 0, mask, partial(MonotonicRQSTransform, bound=BOUND),
            [(BINS,), (BINS,), (BINS - 1,)], hidden_features=HIDDEN,
        )
        for mask in masks
    ]  # fmt: skip
    zeros, ones = torch.zeros(FEATURES), torch.ones(FEATURES)
    return Flow(transforms, UnconditionalDistribution(DiagNormal, zeros, ones, buffer=True)).to(device)


FLOW_PEERS = ("eager", "compiled", "nflows", "zuko")


def log_prob_workload(device: str, batch: int) -> Workload:
    flow = spline_flow(device)
    plan, plain = genssl_fast.FlowPlan(flow), PlainSplineFlow(flow).to(device)
    x = normal(batch, FEATURES, device=device)
    fused = compiled(plain.log_prob)

    def nflows():
        peer = nflows_spline_flow(flow)
        return lambda: peer.log_prob(x)

    def zuko():
        peer = zuko_spline_flow(device)
        return lambda: peer().log_prob(x)

    return Workload(
        providers={
            OURS: lambda: plan.log_prob(x),
            "eager": lambda: plain.log_prob(x),
            "compiled": lambda: fused(x),
            "nflows": lazily(nflows),
            "zuko": lazily(zuko),
        },
        reference=lambda dtype: PlainSplineFlow(flow).to(device, dtype).log_prob(x.to(dtype)),
        flops=network_flops(flow, batch),
        ceilings=ceilings.micro_kernel(network_flops(flow, batch), HIDDEN[0], device) if batch > 1 else {},
        own_values=("zuko",),
        whole_loop=True,
    )


def sample_workload(device: str, batch: int) -> Workload:
    flow = spline_flow(device)
    plan, plain = genssl_fast.FlowPlan(flow), PlainSplineFlow(flow).to(device)
    fused = compiled(plain.sample)

    def noise():
        return torch.randn(batch, FEATURES, device=device)

    def nflows():
        peer = nflows_spline_flow(flow)
        return lambda: peer.sample(batch)

    def zuko():
        peer = zuko_spline_flow(device)
        return lambda: peer().sample((batch,))

    def reference_values(dtype):
        drawn = random_values(NORMAL, (batch, FEATURES), SEED, PRIOR, 0, device).to(dtype)
        return PlainSplineFlow(flow).to(device, dtype).sample(drawn)

    return Workload(
        providers={
            OURS: lambda: plan.sample(batch, seed=SEED),
            "eager": lambda: plain.sample(noise()),
            "compiled": lambda: fused(noise()),
            "nflows": lazily(nflows),
            "zuko": lazily(zuko),
        },
        reference=reference_values,
        flops=network_flops(flow, batch),
        ceilings=ceilings.micro_kernel(network_flops(flow, batch), HIDDEN[0], device) if batch > 1 else {},
        own_values=FLOW_PEERS,
        whole_loop=True,
    )


def network_flops(flow: NeuralSplineFlow, batch: int) -> int:
    """Matrix multiplications of the conditioners."""
    return 2 * batch * sum(p.numel() for p in flow.parameters() if p.ndim == 2)


def training_step(parameters, log_prob):
    """Loss, gradients and Adam; its learning rate is 0, so that every step finds the same weights."""
    optimizer = torch.optim.Adam(parameters, lr=0.0, fused=True)

    def step():
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = -log_prob().mean()
            loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def register_spline_flow() -> None:
    for batch, bar in ((4096, 5), (1, 12)):
        samples = f"{batch} sample{'s' * (batch > 1)}"
        for kind, workload in (("log_prob", log_prob_workload), ("sampling", sample_workload)):
            title = f"{kind} {samples}, {LAYERS} couplings, 2×{HIDDEN[0]} hidden, D = {FEATURES}"
            bars = (Bar(bar, FLOW_PEERS),)
            cases.case("NeuralSplineFlow", title, cpu_bars=bars)(partial(workload, batch=batch))


register_spline_flow()


@cases.case(
    "NeuralSplineFlow", "a training step, batch 512, 8 couplings, 2×128 hidden, D = 16",
    cpu_bars=(Bar(3, ("nflows", "zuko")),), cuda_bars=(Bar(5, ("nflows",)),),
)  # fmt: skip
def spline_flow_training(device):
    flow = spline_flow(device)
    ours, plain = copy.deepcopy(flow).train(), PlainSplineFlow(flow).to(device)
    x = normal(512, FEATURES, device=device)
    fused = compiled(plain.log_prob)

    def nflows():
        peer = nflows_spline_flow(flow).train()
        return training_step(peer.parameters(), lambda: peer.log_prob(x))

    def zuko():
        peer = zuko_spline_flow(device)
        return training_step(peer.parameters(), lambda: peer().log_prob(x))

    return Workload(
        providers={
            OURS: training_step(ours.parameters(), lambda: ours.log_prob(x)),
            "eager": training_step(plain.parameters(), lambda: plain.log_prob(x)),
            "compiled": training_step(plain.parameters(), lambda: fused(x)),
            "nflows": lazily(nflows),
            "zuko": lazily(zuko),
        },
        reference=lambda dtype: -PlainSplineFlow(flow).to(device, dtype).log_prob(x.to(dtype)).mean(),
        own_values=("zuko",),
        whole_loop=True,
    )


# A step of Glow

CHANNELS, SIDE, GLOW_HIDDEN = 12, 32, 64


class PlainGlowStep(nn.Module):
    """Normalization, 1×1 convolution and affine coupling in PyTorch, the matrix and its inverse at hand."""

    def __init__(self, step):
        super().__init__()
        normalization, mixing, coupling = copy.deepcopy(step)
        self.network, self.normalization = coupling.network, normalization
        matrix = mixing.weight().detach().double()
        self.register_buffer("matrix", matrix[:, :, None, None])
        self.register_buffer("inverse_matrix", torch.linalg.inv(matrix)[:, :, None, None])
        self.log_abs_det = torch.linalg.slogdet(matrix).logabsdet.item()

    def forward(self, x: Tensor, inverse: bool = False):
        shift, log_scale = (
            v.view(-1, 1, 1) for v in (self.normalization.shift, self.normalization.log_scale)
        )
        constant = x[0, 0].numel() * (log_scale.sum() + self.log_abs_det)
        if not inverse:
            x = F.conv2d(torch.addcmul(shift, x, torch.exp(log_scale)), self.matrix.to(x.dtype))
        given, moved = x.chunk(2, 1)
        translation, raw = self.network(given).chunk(2, 1)
        scale = torch.sigmoid(raw + 2) + 1e-3
        log_abs_det = constant + scale.log().flatten(1).sum(1)
        if not inverse:
            return torch.cat([given, torch.addcmul(translation, moved, scale)], 1), log_abs_det
        x = F.conv2d(torch.cat([given, (moved - translation) / scale], 1), self.inverse_matrix.to(x.dtype))
        return (x - shift) * torch.exp(-log_scale), -log_abs_det


def normflows_glow_step():
    """normflows' step of the same sizes; its coupling has another formula, so its values are its own."""
    from normflows.flows import GlowBlock

    with warnings.catch_warnings():  # PyTorch's, about the factorization it uses
        warnings.simplefilter("ignore")
        step = GlowBlock(CHANNELS, GLOW_HIDDEN).eval()
    step.flows[-1].data_dep_init_done = torch.tensor(1.0)
    return step


def glow_workload(device: str, *, inverse: bool) -> Workload:
    torch.manual_seed(0)
    step = glow_step(CHANNELS, partial(genssl_fast.nn.ConvNet, hidden=GLOW_HIDDEN))
    step[2].network.last.reset_parameters()
    nn.init.normal_(step[0].log_scale, std=0.1)
    step = step.to(device).eval()
    plan = genssl_fast.FlowPlan(Flow((CHANNELS, SIDE, SIDE), [step], flat=False).to(device).eval())
    x = normal(16, CHANNELS, SIDE, SIDE, device=device)
    plain = PlainGlowStep(step).to(device)
    plain.matrix, plain.inverse_matrix = plain.matrix.float(), plain.inverse_matrix.float()
    fused = compiled(plain)

    def normflows():
        peer = normflows_glow_step().to(device)
        return lambda: (peer if inverse else peer.inverse)(x)

    return Workload(
        providers={
            OURS: lambda: (plan.inverse if inverse else plan.transform)(x),
            "eager": lambda: plain(x, inverse),
            "compiled": lambda: fused(x, inverse),
            "normflows": lazily(normflows),
        },
        reference=lambda dtype: PlainGlowStep(step).to(device, dtype)(x.to(dtype), inverse),
        own_values=("normflows",),
        whole_loop=True,
    )


GLOW_TITLE = f"{CHANNELS}×{SIDE}×{SIDE}, hidden width {GLOW_HIDDEN}, batch 16"


@cases.case("Glow step", f"forward, {GLOW_TITLE}", cpu_bars=(Bar(2, ("normflows",)),))
def glow_forward(device):
    return glow_workload(device, inverse=False)


@cases.case("Glow step", f"inverse, {GLOW_TITLE}", cpu_bars=(Bar(2, ("normflows",)),))
def glow_inverse(device):
    return glow_workload(device, inverse=True)
