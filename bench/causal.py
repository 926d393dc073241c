"""Benchmarks of masked autoregressive flows: the direction that needs one dimension after the other."""

import functools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genssl_fast
from bench.baselines import lazily
from bench.case import OURS, Bar, Family, Workload
from genssl_fast import MADEWeights, Stream, step_counter
from genssl_fast.flows import MAF
from genssl_fast.ops.random import NORMAL
from genssl_fast.ops.transforms import AffineTransform, apply_transform
from genssl_fast.reference.random import random_values

cases = Family("causal")

SEED = 1234
PRIOR = step_counter(Stream.PRIOR, 0)


class PlainMADE:
    """A plain ReLU network with its masks multiplied in, and the inverse of its transform by D passes."""

    def __init__(self, weights: MADEWeights, degrees, transform, dtype=torch.float32):
        outputs = degrees[0].repeat_interleave(len(weights.weights[-1]) // len(degrees[0])) - 1
        rows = (*degrees[1:], outputs)
        self.matrices = [
            (weight * (above[:, None] >= below)).detach().to(dtype)
            for weight, above, below in zip(weights.weights, rows, degrees, strict=True)
        ]
        self.biases = [bias.detach().to(dtype) for bias in weights.biases]
        self.transform = transform

    def parameters(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.matrices[0], self.biases[0])
        for matrix, bias in zip(self.matrices[1:], self.biases[1:], strict=True):
            h = F.linear(torch.relu(h), matrix, bias)
        return h.unflatten(1, (x.shape[1], -1))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.zeros_like(y)
        for _ in range(y.shape[1]):
            x, log_abs_det = apply_transform(self.transform, y, self.parameters(x), inverse=True)
        return x, log_abs_det


def set_masked_network(made: nn.Module, weights: MADEWeights) -> None:
    """Our weights in nflows' MADE without residual blocks, whose degrees are the same."""
    layers = [made.initial_layer, *(block.linear for block in made.blocks), made.final_layer]
    with torch.no_grad():
        for layer, weight, bias in zip(layers, weights.weights, weights.biases, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


@cases.case(
    "made_inverse", "16×784, two hidden layers of 1024",
    cpu_bars=(Bar(300, ("nflows",)), Bar(1 / 6, ("its own forward",))),
)  # fmt: skip
def made_inverse(device):
    dim, hidden = 784, 1024
    transform = AffineTransform("softplus", layout="interleaved_scale_first")
    torch.manual_seed(0)
    layers = [nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * dim)]
    tensors = ((layer.weight.detach().to(device), layer.bias.detach().to(device)) for layer in layers)
    weights = MADEWeights(*zip(*tensors, strict=True))
    degrees = tuple(degree.to(device) for degree in genssl_fast.made_degrees(dim, (hidden, hidden)))
    y = torch.randn(16, dim).to(device)

    def nflows():
        from nflows.transforms import MaskedAffineAutoregressiveTransform

        peer = MaskedAffineAutoregressiveTransform(dim, hidden, num_blocks=1, use_residual_blocks=False)
        set_masked_network(peer.autoregressive_net, weights)
        peer = peer.to(device).eval()
        return lambda: peer.inverse(y)

    @functools.cache  # many passes
    def reference(dtype):
        return PlainMADE(weights, degrees, transform, dtype).inverse(y.to(dtype))

    return Workload(
        providers={
            OURS: lambda: genssl_fast.made_inverse(y, weights, degrees, transform=transform),
            "its own forward": lambda: genssl_fast.made_transform(y, weights, degrees, transform=transform),
            "nflows": lazily(nflows),
        },
        reference=reference,
        flops=2 * 16 * sum(weight.numel() for weight in weights.weights),
        own_values=("its own forward",),
        whole_loop=True,
    )


MAF_FEATURES, MAF_LAYERS, MAF_HIDDEN = 64, 5, (512, 512)
PEERS = ("nflows", "zuko", "normflows")


def nflows_sampler(device: str, count: int) -> Callable:
    from nflows.flows import MaskedAutoregressiveFlow

    peer = MaskedAutoregressiveFlow(
        MAF_FEATURES, MAF_HIDDEN[0], MAF_LAYERS, num_blocks_per_layer=1, use_residual_blocks=False
    )
    peer = peer.to(device).eval()
    return lambda: peer.sample(count)


def zuko_sampler(device: str, count: int) -> Callable:
    from zuko.flows import MAF

    peer = MAF(MAF_FEATURES, transforms=MAF_LAYERS, hidden_features=MAF_HIDDEN).to(device).eval()
    return lambda: peer().sample((count,))


def normflows_sampler(device: str, count: int) -> Callable:
    """Its layers map noise to data by one pass; in the other direction they are a MAF's sampler."""
    from normflows.flows import MaskedAffineAutoregressive

    layer = partial(MaskedAffineAutoregressive, num_blocks=1, use_residual_blocks=False)
    layers = [layer(MAF_FEATURES, MAF_HIDDEN[0]).to(device).eval() for _ in range(MAF_LAYERS)]

    def sample():
        x = torch.randn(count, MAF_FEATURES, device=device)
        for one in layers:
            x, _ = one.inverse(x)
        return x

    return sample


@cases.case("MAF", "256 samples, D = 64, 5 layers of 2×512", cpu_bars=(Bar(30, PEERS),))
def maf_sampling(device):
    count = 256
    torch.manual_seed(0)
    flow = MAF(MAF_FEATURES, MAF_LAYERS, MAF_HIDDEN, actnorm=False)
    for module in flow.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    flow = flow.to(device).eval()

    def reference(dtype):
        x = random_values(NORMAL, (count, MAF_FEATURES), SEED, PRIOR, 0, device).to(dtype)
        for layer in reversed(flow.layers):
            x, _ = PlainMADE(layer.weights(), layer.degrees(), layer.transform, dtype).inverse(x)
        return x

    samplers = {"nflows": nflows_sampler, "zuko": zuko_sampler, "normflows": normflows_sampler}
    return Workload(
        providers={
            OURS: lambda: flow.sample(count, seed=SEED),
            **{name: lazily(partial(build, device, count)) for name, build in samplers.items()},
        },
        reference=reference,
        flops=2 * count * sum(p.numel() for p in flow.parameters() if p.ndim == 2),
        own_values=PEERS,
        whole_loop=True,
    )
