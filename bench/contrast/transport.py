"""Sinkhorn's codes, cross-entropy between softmaxes (DINO), and averages of parameters."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import genssl_fast
from bench import ceilings
from bench.baselines import compiled, lazily
from bench.case import OURS, Bar, Family, Workload
from bench.peers import import_past_init
from genssl_fast import reference

cases = Family("contrast")

EPSILON, ITERATIONS = 0.05, 3


def uniform(*shape: int, device: str, seed: int = 0) -> Tensor:
    """Cosines lie in [-1, 1], and so do these."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(device)


# Sinkhorn


def exponential_sinkhorn(logits: Tensor) -> Tensor:
    """SwAV's own form, on the transposed matrix of exponentials."""
    q = torch.exp(logits / EPSILON).t()
    q = q / q.sum()
    for _ in range(ITERATIONS):
        q = q / q.sum(1, keepdim=True)
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).t()


def scaling_sinkhorn(logits: Tensor, product) -> Tensor:
    """One exponential; then `product(matrix, vector)` with scalings of rows and columns alone."""
    powers = torch.exp(logits / EPSILON)
    rows = powers.new_ones(len(powers))
    for _ in range(ITERATIONS):
        columns = 1 / product(powers.t(), rows)
        rows = 1 / product(powers, columns)
    return powers * rows[:, None] * columns


def product_by_sum(matrix: Tensor, vector: Tensor) -> Tensor:
    """What Inductor fuses into loops of its own."""
    return (matrix * vector).sum(1)


def lightly_sinkhorn():
    theirs = import_past_init("lightly.loss.swav_loss").sinkhorn
    return lambda logits: theirs(logits, iterations=ITERATIONS, epsilon=EPSILON)


@cases.case(
    "sinkhorn", "4096×3000, 3 iterations",
    cpu_bars=(
        Bar(5, ("eager", "lightly")),
        Bar(2, ("compiled",)),
        Bar(1.3, ("scaling vectors compiled, mv", "scaling vectors compiled, sums")),
    ),
)  # fmt: skip
def sinkhorn(device):
    logits = uniform(4096, 3000, device=device)
    vectors = {"mv": torch.mv, "sums": product_by_sum}
    forms = {name: partial(scaling_sinkhorn, product=product) for name, product in vectors.items()}

    def on_logits(function):
        return lambda: function(logits)

    return Workload(
        providers={
            OURS: lambda: genssl_fast.sinkhorn(logits, epsilon=EPSILON, iterations=ITERATIONS),
            "eager": on_logits(exponential_sinkhorn),
            "compiled": on_logits(compiled(exponential_sinkhorn)),
            "lightly": lazily(lambda: on_logits(lightly_sinkhorn())),
            "scaling vectors, mv": on_logits(forms["mv"]),
            **{f"scaling vectors compiled, {n}": on_logits(compiled(f)) for n, f in forms.items()},
        },
        reference=lambda dtype: reference.contrast.sinkhorn(logits.to(dtype), EPSILON, ITERATIONS),
        # The logits once per iteration and once before, and the codes.
        bytes=(ITERATIONS + 2) * logits.nbytes,
        ceilings=ceilings.stream([logits], 1),
    )


# Cross-entropy of softmaxes

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}


def plain_soft_cross_entropy(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    log_p = F.log_softmax(student / TEMPERATURES["student_temperature"], -1)
    q = torch.softmax((teacher - center) / TEMPERATURES["teacher_temperature"], -1)
    return -(q * log_p).sum(-1).mean()


def plain_dino(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    """lightly's form: one product for all pairs of views [S, B, K], [T, B, K]."""
    log_p = F.log_softmax(student / TEMPERATURES["student_temperature"], -1)
    q = torch.softmax((teacher - center) / TEMPERATURES["teacher_temperature"], -1)
    pairs = -torch.einsum("tbk,sbk->ts", q, log_p)
    different = pairs.numel() - min(pairs.shape)
    return (pairs.sum() - pairs.diagonal().sum()) / (different * student.shape[1])


def lightly_dino(columns: int, device: str):
    module = import_past_init("lightly.loss.dino_loss", "lightly.models.modules")
    loss = module.DINOLoss(columns, student_temp=TEMPERATURES["student_temperature"]).to(device)
    loss.update_center = lambda teacher: None  # an update of the center is not timed
    return lambda student, teacher, center: loss(list(teacher), list(student))


def with_gradient(loss, student: Tensor, *fixed: Tensor):
    with torch.enable_grad():
        value = loss(student, *fixed)
        return value.detach(), *torch.autograd.grad(value, student)


def loss_workload(device: str, ours, plain, peer, students, teachers, columns) -> Workload:
    """Losses of logits [*students, K] and [*teachers, K], with the gradient by the student."""
    student = uniform(*students, columns, device=device).requires_grad_()
    teacher = uniform(*teachers, columns, device=device, seed=1)
    center = 0.1 * uniform(columns, device=device, seed=2)
    traffic = [student.detach(), teacher]
    providers = {
        OURS: lambda: with_gradient(ours, student, teacher, center),
        "eager": lambda: with_gradient(plain, student, teacher, center),
    }
    fused = compiled(plain)
    providers["compiled"] = lambda: with_gradient(fused, student, teacher, center)
    if peer:
        theirs = lazily(lambda: partial(with_gradient, peer(columns, device), student, teacher, center))
        providers["lightly"] = theirs

    def in_precision(dtype):
        return with_gradient(
            plain, student.detach().to(dtype).requires_grad_(), teacher.to(dtype), center.to(dtype)
        )

    return Workload(
        providers=providers,
        reference=in_precision,
        # Both are read forward and backward, and the gradient is written.
        bytes=2 * sum(t.nbytes for t in traffic) + student.nbytes,
        ceilings=ceilings.stream([student.detach()], 1),
        own_values=("lightly",),  # without the center
    )


@cases.case(
    "soft_cross_entropy", "512×65536, forward and backward",
    cpu_bars=(Bar(3, ("eager",)), Bar(1.3, ("compiled",)), Bar(0.6)),
)  # fmt: skip
def soft_cross_entropy(device):
    def ours(student, teacher, center):
        return genssl_fast.soft_cross_entropy(student, teacher, center=center, **TEMPERATURES)

    return loss_workload(device, ours, plain_soft_cross_entropy, None, (512,), (512,), 65536)


@cases.case(
    "dino_loss", "10 and 2 views of 32×65536, forward and backward", cpu_bars=(Bar(2, ("compiled",)),)
)
def dino(device):
    def ours(student, teacher, center):
        return genssl_fast.dino_loss(student, teacher, center=center, **TEMPERATURES)

    return loss_workload(device, ours, plain_dino, lightly_dino, (10, 32), (2, 32), 65536)


# Averages of parameters

SHAPES = [(2048, 2048)] * 6 + [(2048,)] * 12
DECAY = 0.996


def average_workload(device: str, dtype: torch.dtype, others) -> Workload:
    """Each provider has averages of its own, which approach the same parameters."""
    parameters = [uniform(*shape, device=device, seed=i).to(dtype) for i, shape in enumerate(SHAPES)]

    def provider(update):
        averages = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]

        def run():
            for average in averages[-1:]:  # the gate sees one step from zero
                average.zero_()
            update(averages, parameters)
            return averages[-1]

        return run

    size = sum(p.numel() for p in parameters)
    flat = torch.zeros(size, device=device)
    own = {OURS: lambda averages, parameters: genssl_fast.ema_update(averages, parameters, DECAY)}
    return Workload(
        providers={name: provider(update) for name, update in (own | others).items()},
        reference=lambda dtype: (1 - DECAY) * parameters[-1].to(dtype),
        bytes=size * (8 + dtype.itemsize),
        ceilings=ceilings.stream([flat, flat], 1),
    )


def foreach_lerp(averages, parameters):
    torch._foreach_lerp_(averages, [p.to(torch.float32) for p in parameters], 1 - DECAY)


def product_and_sum(averages, parameters):
    for average, parameter in zip(averages, parameters):
        average.mul_(DECAY).add_(parameter, alpha=1 - DECAY)


def lerp_of_each(averages, parameters):
    for average, parameter in zip(averages, parameters):
        average.lerp_(parameter.to(torch.float32), 1 - DECAY)


@cases.case("ema_update", "25 million parameters, fp32")
def ema_of_fp32(device):
    others = {"foreach lerp": foreach_lerp, "product and sum": product_and_sum}
    return average_workload(device, torch.float32, others)


@cases.case(
    "ema_update", "25 million parameters, bf16", cpu_bars=(Bar(1.3, ("foreach lerp", "product and sum")),)
)
def ema_of_bf16(device):
    others = {
        "foreach lerp": foreach_lerp,
        "product and sum": product_and_sum,
        "compiled": compiled(lerp_of_each),
    }
    return average_workload(device, torch.bfloat16, others)
