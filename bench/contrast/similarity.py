"""Losses over all pairs of rows, forward and backward."""

import functools
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import genssl_fast
from bench import ceilings
from bench.baselines import compiled, lazily, multiply_onednn, with_gradients
from bench.case import OURS, Bar, Family, Workload
from bench.peers import import_past_init
from genssl_fast.reference.contrast import losses as plain

cases = Family("contrast")

TEMPERATURE = 0.5
SHORT = f"{OURS}, 2×4096×128"
LIGHTLY = ("lightly.loss.ntx_ent_loss", "lightly.models.utils")


def unit_rows(seed: int, count: int, dim: int, device: str) -> Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows).to(device).requires_grad_()


def scalar(value: float, device: str) -> Tensor:
    return torch.tensor(value, device=device, requires_grad=True)


def as_type(dtype, tensors):
    return [t.detach().to(dtype).requires_grad_(t.requires_grad) for t in tensors]


def workload(tensors, ours, formula, flops, depth, device, **others) -> Workload:
    """Ours against a formula in PyTorch, eager and compiled, and others on the same tensors."""

    @functools.cache
    def reference(dtype):
        return with_gradients(formula, *as_type(dtype, tensors))

    providers = {
        OURS: partial(with_gradients, ours, *tensors),
        "eager": partial(with_gradients, formula, *tensors),
        "torch.compile": partial(with_gradients, compiled(formula), *tensors),
    }
    return Workload(
        providers=providers | others,
        reference=reference,
        flops=flops,
        ceilings=ceilings.micro_kernel(flops, depth, device),
    )


def without_diagonal(logits: Tensor) -> Tensor:
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return logits.masked_fill(itself, -math.inf)


def plain_nt_xent(z1, z2):
    """The matrix once, its diagonal masked, and cross_entropy."""
    count, z = len(z1), F.normalize(torch.cat([z1, z2]))
    logits = (z @ z.T / TEMPERATURE).masked_fill(
        torch.eye(2 * count, dtype=torch.bool, device=z.device), -math.inf
    )
    return F.cross_entropy(logits, torch.arange(2 * count, device=z.device).roll(count))


def derived_nt_xent(z1, z2, multiply=torch.mm):
    """The loss and its gradients written out: 4 (2N)² D operations on a stored matrix."""
    both = torch.cat([z1, z2])
    norm = both.norm(dim=1, keepdim=True)
    z, count = both / norm, len(z1)
    logits = multiply(z, z.T) / TEMPERATURE
    logits = without_diagonal(logits)
    log_sum, other = logits.logsumexp(1), z.roll(count, 0)
    loss = (log_sum - (z * other).sum(1) / TEMPERATURE).mean()
    weights = torch.exp(logits - log_sum[:, None]) + torch.exp(logits - log_sum)
    grad = (multiply(weights, z) - 2 * other) / (TEMPERATURE * 2 * count)
    grad = (grad - (grad * z).sum(1, keepdim=True) * z) / norm
    return loss, *grad.chunk(2)


@cases.case(
    "nt_xent", "forward and backward, 2×4096×128",
    cpu_bars=(Bar(3.2, ("eager", "torch.compile", "lightly")), Bar(0.5)),
)  # fmt: skip
def nt_xent(device):
    count, dim = 4096, 128
    views = [unit_rows(seed, count, dim, device) for seed in range(2)]
    detached = [v.detach() for v in views]
    others = {
        "lightly": lazily(
            lambda: partial(with_gradients, import_past_init(*LIGHTLY).NTXentLoss(TEMPERATURE), *views)
        ),
        "torch.compile, derived": partial(compiled(derived_nt_xent), *detached),
    }
    if device == "cpu":
        onednn = compiled(partial(derived_nt_xent, multiply=multiply_onednn))
        others["torch.compile, derived, oneDNN"] = partial(onednn, *detached)
    flops = 4 * (2 * count) ** 2 * dim
    return workload(
        views,
        partial(genssl_fast.nt_xent, temperature=TEMPERATURE),
        plain_nt_xent,
        flops,
        dim,
        device,
        **others,
    )


@cases.case("nt_xent", "forward and backward, 2×32768×128", cpu_bars=(Bar(1 / 64, (SHORT,)),))
def nt_xent_long(device):
    count, dim = 32768, 128
    views = [unit_rows(seed, count, dim, device) for seed in range(2)]
    short = [v[:4096].detach().requires_grad_() for v in views]
    shown = 256  # losses that the gate looks at: the matrix would take 16 GB

    def run(first, second):
        with torch.enable_grad():
            losses = genssl_fast.nt_xent(first, second, TEMPERATURE, reduction="none")
            torch.autograd.grad(losses.mean(), (first, second))
        return losses[:shown].detach()

    def reference(dtype):
        z = torch.cat([v.detach().to(dtype) for v in views])
        logits = z[:shown] @ z.T / TEMPERATURE
        positive = logits.diagonal(count)
        itself = torch.arange(shown, device=device)[:, None] == torch.arange(len(z), device=device)
        return logits.masked_fill(itself, -math.inf).logsumexp(1) - positive

    return Workload(
        providers={OURS: lambda: run(*views), SHORT: lambda: run(*short)},
        reference=reference,
        flops=4 * (2 * count) ** 2 * dim,
        own_values=(SHORT,),
    )


def plain_clip(image, text, scale):
    """One product for both directions."""
    logits = scale * image @ text.T
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def derived_clip(image, text, scale, multiply=torch.mm):
    """The loss and its gradients written out: 6 N² D operations on a stored matrix."""
    products = multiply(image, text.T)
    logits, count = scale * products, len(image)
    rows, columns = logits.logsumexp(1), logits.logsumexp(0)
    loss = (rows.mean() + columns.mean()) / 2 - logits.diagonal().mean()
    weights = torch.exp(logits - rows[:, None]) + torch.exp(logits - columns)
    weights = (weights - 2 * torch.eye(count, device=image.device)) / (2 * count)
    return (
        loss,
        scale * multiply(weights, text),
        scale * multiply(weights.T, image),
        (weights * products).sum(),
    )


@cases.case(
    "clip_loss", "forward and backward, 4096×512",
    cpu_bars=(Bar(2.3, ("open_clip",)), Bar(1.25, ("eager", "torch.compile"))),
)  # fmt: skip
def clip_loss(device):
    count, dim = 4096, 512
    tensors = *(unit_rows(seed, count, dim, device) for seed in range(2)), scalar(1 / 0.07, device)
    detached = [t.detach() for t in tensors]
    others = {
        "open_clip": lazily(
            lambda: partial(with_gradients, import_past_init("open_clip.loss").ClipLoss(), *tensors)
        ),
        "torch.compile, derived": partial(compiled(derived_clip), *detached),
    }
    if device == "cpu":
        onednn = compiled(partial(derived_clip, multiply=multiply_onednn))
        others["torch.compile, derived, oneDNN"] = partial(onednn, *detached)
    return workload(tensors, genssl_fast.clip_loss, plain_clip, 6 * count**2 * dim, dim, device, **others)


def plain_siglip(image, text, scale, bias):
    logits = scale * image @ text.T + bias
    signs = 2 * torch.eye(len(image), device=image.device, dtype=image.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(image)


@cases.case(
    "siglip_loss", "forward and backward, 4096×512",
    cpu_bars=(Bar(1.7, ("eager", "torch.compile", "open_clip")),),
)  # fmt: skip
def siglip_loss(device):
    count, dim = 4096, 512
    rows = (unit_rows(seed, count, dim, device) for seed in range(2))
    tensors = *rows, scalar(10.0, device), scalar(-10.0, device)
    peer = lazily(lambda: partial(with_gradients, import_past_init("open_clip.loss").SigLipLoss(), *tensors))
    flops = 6 * count**2 * dim
    return workload(tensors, genssl_fast.siglip_loss, plain_siglip, flops, dim, device, open_clip=peer)


@cases.case(
    "sup_con", "forward and backward, 8192×128, 100 classes",
    cpu_bars=(Bar(4, ("eager", "torch.compile", "pytorch-metric-learning")),),
)  # fmt: skip
def sup_con(device):
    count, dim, temperature = 8192, 128, 0.1
    z, labels = unit_rows(0, count, dim, device), torch.arange(count, device=device) % 100

    def formula(z):
        return plain.sup_con(z, labels, torch.tensor(temperature, dtype=z.dtype, device=z.device)).mean()

    def peer():
        from pytorch_metric_learning.losses import SupConLoss

        return partial(with_gradients, lambda z: SupConLoss(temperature)(z, labels), z)

    return workload(
        [z], lambda z: genssl_fast.sup_con(z, labels, temperature), formula, 4 * count**2 * dim, dim, device,
        **{"pytorch-metric-learning": lazily(peer)},
    )  # fmt: skip


@cases.case(
    "generalized_contrastive", "soft triplet, forward and backward, 4096×128",
    cpu_bars=(Bar(5, ("eager", "torch.compile")),),
)  # fmt: skip
def generalized_contrastive(device):
    count, dim, margin = 4096, 128, 0.2
    rows = [unit_rows(seed, count, dim, device) for seed in range(2)]

    def formula(z, positive):
        """Distances from one product, as torch.cdist makes them, and a log-sum-exp."""
        near, squares = (z - positive).square().sum(1), z.square().sum(1)
        differences = near[:, None] - (squares[:, None] + squares - 2 * z @ z.T) + margin
        return F.softplus(without_diagonal(differences).logsumexp(1)).sum()

    ours = partial(genssl_fast.generalized_contrastive, margin=margin)
    return workload(rows, ours, formula, 4 * count**2 * dim, dim, device)
