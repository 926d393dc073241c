"""Feature decorrelation: Barlow Twins and VICReg, forward and backward."""

from functools import partial

import torch
from torch import Tensor, nn

import genssl_fast
from bench import ceilings
from bench.baselines import compiled, lazily, multiply_onednn, with_gradients
from bench.case import OURS, Bar, Family, Workload
from bench.peers import import_past_init
from genssl_fast import reference

cases = Family("contrast")

WEIGHT, EPS = 0.0051, 1e-5  # of Barlow Twins
INVARIANCE, VARIANCE, COVARIANCE, GAMMA, VICREG_EPS = 25.0, 25.0, 1.0, 1.0, 1e-4


def views(n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Two correlated views."""
    generator = torch.Generator().manual_seed(0)
    shared, *noises = torch.randn(3, n, d, generator=generator)
    return tuple((shared + 0.5 * noise).to(device).requires_grad_() for noise in noises)


def plain_barlow_twins(z1, z2):
    return reference.contrast.barlow_twins(z1, z2, WEIGHT, 1.0, EPS)


def plain_vicreg(z1, z2):
    options = (INVARIANCE, VARIANCE / 2, COVARIANCE, GAMMA, VICREG_EPS)
    return reference.contrast.vicreg(z1, z2, *options)


def gram_barlow_twins(z1, z2, multiply=torch.mm):
    """Gram matrices; through autograd a product more costs two, which the derived gradients save."""
    a, b = (standardized(z) for z in (z1, z2))
    n, diagonal = len(a), (a * b).mean(0)
    squares = (multiply(a, a.T) * multiply(b, b.T)).sum() / n**2
    return (1 - diagonal).square().sum() + WEIGHT * (squares - diagonal.square().sum())


def standardized(z):
    return (z - z.mean(0)) * torch.rsqrt(z.var(0, correction=0) + EPS)


def derived_barlow_twins(z1, z2, multiply=torch.mm):
    """The loss and its gradients written out, with Gram matrices: 8 N²D operations."""
    n = len(z1)
    mean, scale = zip(*((z.mean(0), torch.rsqrt(z.var(0, correction=0) + EPS)) for z in (z1, z2)))
    a, b = (z1 - mean[0]) * scale[0], (z2 - mean[1]) * scale[1]
    of_a, of_b = multiply(a, a.T), multiply(b, b.T)
    c = (a * b).mean(0)
    loss = (1 - c).square().sum() + WEIGHT * ((of_a * of_b).sum() / n**2 - c.square().sum())
    along = -2 / n * (1 - c) - 2 * WEIGHT / n * c
    to_a = 2 * WEIGHT / n**2 * multiply(of_b, a) + along * b
    to_b = 2 * WEIGHT / n**2 * multiply(of_a, b) + along * a
    return (
        loss,
        scale[0] * (to_a - a * (to_a * a).mean(0)),
        scale[1] * (to_b - b * (to_b * b).mean(0)),
    )


def gram_vicreg(z1, z2, multiply=torch.mm):
    (n, d), loss = z1.shape, INVARIANCE * (z1 - z2).square().mean()
    for z in (z1, z2):
        x, variance = z - z.mean(0), z.var(0)
        squares = multiply(x, x.T).square().sum() / (n - 1) ** 2 - variance.square().sum()
        hinge = torch.relu(GAMMA - torch.sqrt(variance + VICREG_EPS))
        loss = loss + VARIANCE / 2 * hinge.mean() + COVARIANCE * squares / d
    return loss


def derived_vicreg(z1, z2, multiply=torch.mm):
    """The loss and its gradients written out, with Gram matrices: 8 N²D operations."""
    (n, d), apart = z1.shape, z1 - z2
    loss, found, coupling = INVARIANCE * apart.square().mean(), [], 4 * COVARIANCE / d / (n - 1)
    for z, sign in ((z1, 1), (z2, -1)):
        x, variance = z - z.mean(0), z.var(0)
        std = torch.sqrt(variance + VICREG_EPS)
        gram = multiply(x, x.T)
        squares = gram.square().sum() / (n - 1) ** 2 - variance.square().sum()
        loss = loss + VARIANCE / 2 * torch.relu(GAMMA - std).mean() + COVARIANCE * squares / d
        along = -VARIANCE / 2 / d / (n - 1) * (std < GAMMA) / std - coupling * variance
        pull = sign * 2 * INVARIANCE / (n * d) * apart
        found.append(coupling / (n - 1) * multiply(gram, x) + along * x + pull)
    return loss, *found


def lightly_barlow_twins() -> nn.Module:
    return import_past_init("lightly.loss.barlow_twins_loss").BarlowTwinsLoss(lambda_param=WEIGHT)


def lightly_vicreg() -> nn.Module:
    return import_past_init("lightly.loss.vicreg_loss", "lightly.utils").VICRegLoss()


GRAM = ("Gram compiled", "Gram compiled, derived", "Gram eager")


def workload(device: str, shape, ours, plain, gram, derived, peer) -> Workload:
    n, d = shape
    z = views(n, d, device)
    detached = tuple(v.detach() for v in z)
    products = n**2 * d if 2 * n < d else n * d**2
    providers = {
        OURS: lambda: with_gradients(ours, *z),
        "D×D": lambda: with_gradients(plain, *z),
        "D×D compiled": partial(with_gradients, compiled(plain), *z),
        "lightly": lazily(lambda: partial(with_gradients, peer(), *z)),
        "Gram eager": lambda: with_gradients(gram, *z),
        "Gram compiled": partial(with_gradients, compiled(gram), *z),
        "Gram compiled, derived": partial(compiled(derived), *detached),
    }
    if device == "cpu":
        onednn = compiled(partial(derived, multiply=multiply_onednn))
        providers["Gram compiled, derived, oneDNN"] = partial(onednn, *detached)
    return Workload(
        providers=providers,
        reference=lambda dtype: with_gradients(plain, *(v.to(dtype).detach().requires_grad_() for v in z)),
        flops=6 * products,
        ceilings=ceilings.micro_kernel(6 * products, min(n, 512), device),
    )


barlow_twins_workload = partial(
    workload, ours=genssl_fast.barlow_twins, plain=plain_barlow_twins, gram=gram_barlow_twins,
    derived=derived_barlow_twins, peer=lightly_barlow_twins,
)  # fmt: skip
vicreg_workload = partial(
    workload, ours=genssl_fast.vicreg, plain=plain_vicreg, gram=gram_vicreg,
    derived=derived_vicreg, peer=lightly_vicreg,
)  # fmt: skip


@cases.case(
    "barlow_twins", "forward and backward, 256×8192",
    cpu_bars=(Bar(15, ("D×D",)), Bar(1.8, GRAM)),
)  # fmt: skip
def barlow_twins_wide(device):
    return barlow_twins_workload(device, (256, 8192))


@cases.case(
    "vicreg", "forward and backward, 512×4096",
    cpu_bars=(Bar(8, ("D×D",)), Bar(1.5, GRAM)),
)  # fmt: skip
def vicreg_wide(device):
    return vicreg_workload(device, (512, 4096))


@cases.case("barlow_twins", "forward and backward, 1024×1024", cpu_bars=(Bar(1, ("D×D",)),))
def barlow_twins_square(device):
    return barlow_twins_workload(device, (1024, 1024))


@cases.case("vicreg", "forward and backward, 1024×1024", cpu_bars=(Bar(1, ("D×D",)),))
def vicreg_square(device):
    return vicreg_workload(device, (1024, 1024))
