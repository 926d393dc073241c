"""Cross-entropy between the softmaxes of a teacher and a student: the losses of DINO and iBOT."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from genssl_fast import reference
from genssl_fast._autograd import differentiable, rules_by_autograd, wants_gradient
from genssl_fast._checks import (
    check,
    check_choice,
    check_dtype,
    check_same,
    check_shape,
    check_tensor,
    values_are_checked,
)
from genssl_fast._library import define, implement_triton
from genssl_fast.ops.fixed_sums import mean, total
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["dino_loss", "soft_cross_entropy", "update_center"]

# teacher_moves says whether derivatives by teacher, center or the teacher's temperature are wanted.
INPUTS = (
    "Tensor student, Tensor teacher, Tensor? center, Tensor student_temperature, "
    "Tensor teacher_temperature, bool teacher_moves"
)
REDUCTIONS = ("mean", "sum", "none")


def _fake(student, teacher, center, student_temperature, *args):
    (students, samples, _), teachers = student.shape, len(teacher)
    shapes = (teachers, students, samples), (students, samples, 2), (teachers, samples, 2)
    return tuple(student_temperature.new_empty(shape) for shape in shapes)


def _fake_backward(grad, student, teacher, center, student_temperature, _, teacher_moves, *args):
    teacher_shape = teacher.shape if teacher_moves else (0,)
    slope_shape = teacher.shape[:2] if teacher_moves else (0,)
    return (
        student.new_empty(student.shape),
        student_temperature.new_empty(student.shape[:2]),
        student_temperature.new_empty(teacher_shape),
        student_temperature.new_empty(slope_shape),
    )


raw_soft_cross_entropy = define(
    f"_soft_cross_entropy({INPUTS}) -> (Tensor, Tensor, Tensor)",
    reference=reference.contrast.soft_cross_entropy,
    fake=_fake,
)
raw_soft_cross_entropy_backward = define(
    f"_soft_cross_entropy_backward(Tensor grad, {INPUTS}, Tensor student_rows, Tensor teacher_rows) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.contrast.soft_cross_entropy_backward,
    fake=_fake_backward,
)
for _name in ("soft_cross_entropy", "soft_cross_entropy_backward"):
    implement_triton(f"_{_name}", "contrast.soft_cross_entropy", _name)

# Its reference computes from the logits what the kernel takes from the rows, so second derivatives are whole
# although the first ones take those for constants.
_soft_cross_entropy_backward = differentiable(
    raw_soft_cross_entropy_backward, **rules_by_autograd(reference.contrast.soft_cross_entropy_backward)
)


def _backward(inputs, outputs, grads):
    found = _soft_cross_entropy_backward(grads[0], *inputs, *outputs[1:])
    to_student, student_slope, to_teacher, teacher_slope = found
    gradients = {
        "student": to_student,
        "student_temperature": -total(student_slope) / inputs.student_temperature,
    }
    if inputs.teacher_moves:
        gradients["teacher"] = to_teacher.to(inputs.teacher.dtype)
        gradients["teacher_temperature"] = -total(teacher_slope) / inputs.teacher_temperature
        if inputs.center is not None:
            gradients["center"] = -to_teacher.sum((0, 1))
    return gradients


_soft_cross_entropy = differentiable(
    raw_soft_cross_entropy,
    backward=_backward,
    jvp=rules_by_autograd(reference.contrast.soft_cross_entropy)["jvp"],
    save_outputs=True,
)


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.04,
    center: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of the student's softmax under the teacher's, in one pass over both (DINO, iBOT).

    .. math::
        L = -\sum_k q_k \log p_k, \qquad
        q = \mathrm{softmax}\left(\frac{t - c}{T_t}\right), \quad
        p = \mathrm{softmax}\left(\frac{s}{T_s}\right)

    The derivatives by the student are :math:`(p - q) / T_s`; those by teacher, center and temperatures are
    exact too, and computed only where they are wanted: compute the teacher under ``torch.no_grad()``. Nothing
    of the size of the logits is kept for the backward pass but the logits themselves.

    Arguments:
        student_logits: [..., K], fp32, fp64, bf16 or fp16; 16-bit logits are computed in fp32.
        teacher_logits: like ``student_logits``.
        student_temperature: :math:`T_s`, positive, a number or a tensor of one element.
        teacher_temperature: :math:`T_t`, likewise.
        center: :math:`c`, K entries, as [K] or [1, ..., 1, K]; None for none. See :func:`update_center`.
        weights: of the rows [...]; iBOT's are 1 / (number of masked patches of the image), with
            ``reduction="sum"``.
        reduction: ``"mean"`` over the rows (whatever their weights), ``"sum"`` or ``"none"``.

    Returns:
        The loss in fp32 (fp64 for fp64): a scalar, or [...] without reduction.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or range; the message names it. The value
            of a tensor of temperature is checked on the CPU, and on CUDA under ``GENSSL_CHECK=1``.

    References:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers,
        https://arxiv.org/abs/2104.14294; Zhou et al., iBOT, https://arxiv.org/abs/2111.07832

    Example:
        >>> student = torch.tensor([[0.3, 0.1, -0.2]], requires_grad=True)
        >>> teacher = torch.tensor([[0.2, 0.1, 0.0]])
        >>> genssl_fast.soft_cross_entropy(student, teacher)
        tensor(0.3146, grad_fn=<MeanBackward0>)
    """
    check_dtype("student_logits", student_logits)
    check(student_logits.ndim >= 1, "student_logits", "shape [..., K]", list(student_logits.shape))
    check_same("teacher_logits", teacher_logits, student_logits, "student_logits")
    check_choice("reduction", reduction, REDUCTIONS)
    rows, columns = student_logits.shape[:-1], student_logits.shape[-1]
    if weights is not None:
        check_tensor("weights", weights)
        check_shape("weights", weights, rows, "that of the rows of student_logits")
    student, teacher = (t.reshape(1, rows.numel(), columns) for t in (student_logits, teacher_logits))
    losses = _losses(student, teacher, center, student_temperature, teacher_temperature).reshape(rows)
    losses = losses if weights is None else losses * weights
    return losses if reduction == "none" else mean(losses) if reduction == "mean" else total(losses)


def dino_loss(
    student_logits: Tensor | Sequence[Tensor],
    teacher_logits: Tensor | Sequence[Tensor],
    *,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor = 0.04,
    center: Tensor | None = None,
) -> Tensor:
    """DINO's loss of all crops: :func:`soft_cross_entropy` of each view of the student with every other view
    of the teacher, averaged over these pairs and the samples.

    All pairs come from one pass over the logits: each view is read once, not once per pair.

    Arguments:
        student_logits: S views of B samples, those that the teacher sees first: [S, B, K], or a sequence of
            [B, K], which is stacked. The output [S B, K] of a head that was given all crops at once needs no
            copy: ``.view(S, B, K)``.
        teacher_logits: T views likewise, [T, B, K].
        student_temperature: positive, a number or a tensor of one element.
        teacher_temperature: likewise.
        center: K entries, or None. DINO updates it after the loss: :func:`update_center`.

    Returns:
        The loss, a scalar in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or range, or no pair of different views;
            the message names it.

    References:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers,
        https://arxiv.org/abs/2104.14294

    Example:
        >>> center = torch.zeros(8)
        >>> student = torch.zeros(4 * 2, 8).view(4, 2, 8)  # 2 global and 2 local crops of 2 images
        >>> teacher = torch.zeros(2, 2, 8)
        >>> loss = genssl_fast.dino_loss(student, teacher, center=center)
        >>> center = genssl_fast.update_center(center, teacher)
        >>> loss
        tensor(2.0794)
    """
    student, teacher = _stacked("student_logits", student_logits), _stacked("teacher_logits", teacher_logits)
    check_same("teacher_logits", teacher, student, "student_logits", shape=False)
    check_shape("teacher_logits", teacher, (len(teacher), *student.shape[1:]), "[T, B, K]")
    losses = _losses(student, teacher, center, student_temperature, teacher_temperature)
    teachers, students, samples = losses.shape
    pairs = teachers * students - min(teachers, students)
    check(pairs > 0, "student_logits, teacher_logits", "at least two views", f"{students} and {teachers}")
    different = 1 - torch.eye(teachers, students, dtype=losses.dtype, device=losses.device)
    return total(losses * different[..., None]) / (pairs * samples)


@torch.no_grad()
def update_center(
    center: Tensor,
    teacher_logits: Tensor | Sequence[Tensor],
    *,
    momentum: float = 0.9,
    group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """Moves DINO's center towards the mean of the teacher's logits, in place.

    Arguments:
        center: K entries of any shape, fp32 or fp64.
        teacher_logits: [..., K], or a sequence of them.
        momentum: the share of the old center, in [0, 1].
        group: a group of ``torch.distributed`` whose processes each hold some of the samples: the mean is
            that of all of them. None for the samples at hand alone.

    Returns:
        The center itself.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or range; the message names it.

    Example:
        >>> genssl_fast.update_center(torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), momentum=0.5)
        tensor([1.0000, 1.5000])
    """
    check_dtype("center", center, (torch.float32, torch.float64))
    check(0 <= momentum <= 1, "momentum", "a number in [0, 1]", momentum)
    views = [teacher_logits] if isinstance(teacher_logits, Tensor) else teacher_logits
    total = center.new_zeros(center.numel() + 1)
    for logits in views:
        check_tensor("teacher_logits", logits)
        expected = f"shape [..., {center.numel()}], like center"
        check(logits.shape[-1:] == (center.numel(),), "teacher_logits", expected, list(logits.shape))
        rows = logits.reshape(-1, center.numel())
        total[:-1] += rows.sum(0, dtype=center.dtype)
        total[-1] += len(rows)
    if group is not None:
        dist.all_reduce(total, group=group)
    mean = (total[:-1] / total[-1]).reshape(center.shape)
    return center.lerp_(mean, 1 - momentum)


def _losses(student, teacher, center, student_temperature, teacher_temperature) -> Tensor:
    """[T, S, B] from checked logits [S, B, K] and [T, B, K]."""
    columns, dtype = student.shape[-1], compute_dtype(student.dtype)
    check(columns > 0, "student_logits", "at least one class", list(student.shape))
    if center is not None:
        check_tensor("center", center)
        check(center.numel() == columns, "center", f"{columns} entries", list(center.shape))
        check(center.device == student.device, "center", f"a tensor on {student.device}", center.device)
        # A copy: the center may move, in place, before the backward pass.
        center = center.reshape(columns).to(dtype, copy=True)
    of_student = _temperature("student_temperature", student_temperature, student, dtype)
    of_teacher = _temperature("teacher_temperature", teacher_temperature, student, dtype)
    moving = [tensor for tensor in (teacher, center, of_teacher) if tensor is not None]
    teacher_moves = _may_have_tangents() or wants_gradient(moving)
    return _soft_cross_entropy(student, teacher, center, of_student, of_teacher, teacher_moves)[0]


def _may_have_tangents() -> bool:
    """Inside dual numbers and torch.func's transforms no tensor tells whether its derivatives are wanted."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _temperature(name: str, temperature, logits: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of one element, on the device of the logits."""
    if isinstance(temperature, Tensor):
        check_dtype(name, temperature)
        check(temperature.numel() == 1, name, "one element", list(temperature.shape))
        check(temperature.device == logits.device, name, f"a tensor on {logits.device}", temperature.device)
        if values_are_checked(temperature):
            value = temperature.detach().item()
            check(value > 0, name, "a positive number", value)
        return temperature.reshape(()).to(dtype)
    check(temperature > 0, name, "a positive number", temperature)
    return torch.full((), temperature, dtype=dtype, device=logits.device)


def _stacked(name: str, views: Tensor | Sequence[Tensor]) -> Tensor:
    """[V, B, K]."""
    if not isinstance(views, Tensor):
        views = list(views)
        check(len(views) > 0, name, "at least one view", "none")
        for view in views:
            check_tensor(name, view)
            check_shape(name, view, views[0].shape, "that of its first view")
        views = torch.stack(views)
    check_dtype(name, views)
    check(views.ndim == 3, name, "shape [V, B, K] or a sequence of [B, K]", list(views.shape))
    return views
