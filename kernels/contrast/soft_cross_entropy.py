"""Cross-entropy between softmaxes in Triton; soft_cross_entropy.h has the formulas.

Forward: a program takes one student's row and streams it beside all teachers' rows of the sample,
[TEACHERS, COLUMNS] at a time, with running maxima per teacher. Backward: a program takes COLUMNS of a
sample, raises the teachers' powers once and goes through the students; every row is read and written once.
Where teachers have gradients, a launch before finds the means that they are relative to.
"""

import torch
import triton
import triton.language as tl

from ..common.functions import lowest
from ..common.tile import NUM_WARPS, unit_of

LOG2_OF_E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
COLUMNS = 512
DO_NOT_SPECIALIZE = ["num_students", "num_teachers", "num_samples", "num_units"]


@triton.jit
def _teacher_tile(teacher, center, rows, columns, mask, num_columns, dtype: tl.constexpr):
    """Logits less the center [TEACHERS, COLUMNS], -inf outside."""
    tile = tl.load(teacher + rows * num_columns + columns[None, :], mask=mask, other=float("-inf")).to(dtype)
    if center is not None:
        tile -= tl.load(center + columns, mask=columns < num_columns, other=0.0)[None, :]
    return tile


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def soft_cross_entropy_kernel(
    student,
    teacher,
    center,
    student_temperature,
    teacher_temperature,
    losses,
    student_rows,
    teacher_rows,
    num_students: tl.int64,
    num_teachers: tl.int64,
    num_samples: tl.int64,
    num_units: tl.int64,
    UNIT: tl.constexpr,
    TEACHERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    dtype = losses.dtype.element_ty
    num_columns = num_units * UNIT
    student_scale = LOG2_OF_E / tl.load(student_temperature)
    teacher_scale = LOG2_OF_E / tl.load(teacher_temperature)
    sample = tl.program_id(0).to(tl.int64)
    view = tl.program_id(1).to(tl.int64)
    t = tl.arange(0, TEACHERS).to(tl.int64)
    row, rows = view * num_samples + sample, t[:, None] * num_samples + sample
    maximum = tl.full((), lowest(dtype), dtype)
    total = tl.zeros((), dtype)
    maxima = tl.full((TEACHERS,), lowest(dtype), dtype)
    totals = tl.zeros((TEACHERS,), dtype)
    dots = tl.zeros((TEACHERS,), dtype)
    for start in range(0, num_columns, COLUMNS):
        columns = start + tl.arange(0, COLUMNS).to(tl.int64)
        inside = columns < num_columns
        s = tl.load(student + row * num_columns + columns, mask=inside, other=float("-inf")).to(dtype)
        highest = tl.maximum(maximum, tl.max(s, axis=0))
        exponents = (s - highest) * student_scale
        total = total * tl.exp2((maximum - highest) * student_scale) + tl.sum(tl.exp2(exponents), axis=0)
        mask = (t[:, None] < num_teachers) & inside[None, :]
        z = _teacher_tile(teacher, center, rows, columns, mask, num_columns, dtype)
        largest = tl.maximum(maxima, tl.max(z, axis=1))
        powers = tl.exp2((z - largest[:, None]) * teacher_scale)
        factors = tl.exp2((maxima - largest) * teacher_scale)
        # A product moves to a lower maximum of the student by the sum of the teacher's powers.
        step = tl.where(start == 0, 0.0, (maximum - highest) * student_scale)
        products = powers * tl.where(inside, exponents, 0.0)[None, :]
        dots = factors * (dots + totals * step) + tl.sum(products, axis=1)
        totals = totals * factors + tl.sum(powers, axis=1)
        maximum, maxima = highest, largest
    present = t < num_teachers
    loss = LN2 * (tl.log2(total) - dots / totals)
    tl.store(losses + (t * num_students + view) * num_samples + sample, loss, mask=present)
    tl.store(student_rows + 2 * row, maximum)
    tl.store(student_rows + 2 * row + 1, total)
    first = present & (view == 0)
    tl.store(teacher_rows + 2 * (t * num_samples + sample), maxima, mask=first)
    tl.store(teacher_rows + 2 * (t * num_samples + sample) + 1, totals, mask=first)


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def soft_cross_entropy_means_kernel(
    student,
    teacher,
    center,
    teacher_temperature,
    student_rows,
    teacher_rows,
    means,
    num_students: tl.int64,
    num_teachers: tl.int64,
    num_samples: tl.int64,
    num_units: tl.int64,
    UNIT: tl.constexpr,
    TEACHERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """fp64 means [T, S, B] of a student's logits, less their maximum, under every teacher.

    A sharp teacher's class is near the mean, whose rounding would show in the difference.
    """
    dtype = student_rows.dtype.element_ty
    num_columns = num_units * UNIT
    teacher_scale = LOG2_OF_E / tl.load(teacher_temperature)
    sample = tl.program_id(0).to(tl.int64)
    view = tl.program_id(1).to(tl.int64)
    t = tl.arange(0, TEACHERS).to(tl.int64)
    row, rows = view * num_samples + sample, t[:, None] * num_samples + sample
    maximum = tl.load(student_rows + 2 * row)
    maxima = tl.load(teacher_rows + 2 * rows, mask=t[:, None] < num_teachers, other=0.0)
    totals, dots = tl.zeros((TEACHERS, COLUMNS), dtype), tl.zeros((TEACHERS, COLUMNS), dtype)
    for start in range(0, num_columns, COLUMNS):
        columns = start + tl.arange(0, COLUMNS).to(tl.int64)
        inside = columns < num_columns
        s = tl.load(student + row * num_columns + columns, mask=inside, other=0.0).to(dtype)
        mask = (t[:, None] < num_teachers) & inside[None, :]
        z = _teacher_tile(teacher, center, rows, columns, mask, num_columns, dtype)
        powers = tl.exp2((z - maxima) * teacher_scale)
        totals += powers
        dots += powers * tl.where(inside, s - maximum, 0.0)[None, :]
    mean = tl.sum(dots.to(tl.float64), axis=1) / tl.sum(totals.to(tl.float64), axis=1)
    tl.store(means + (t * num_students + view) * num_samples + sample, mean, mask=t < num_teachers)


@triton.jit(do_not_specialize=DO_NOT_SPECIALIZE)
def soft_cross_entropy_backward_kernel(
    grad,
    student,
    teacher,
    center,
    student_temperature,
    teacher_temperature,
    student_rows,
    teacher_rows,
    means,
    grad_student,
    student_slopes,
    grad_teacher,
    teacher_slopes,
    num_students: tl.int64,
    num_teachers: tl.int64,
    num_samples: tl.int64,
    num_units: tl.int64,
    UNIT: tl.constexpr,
    TEACHERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Slopes [views, B, chunks] are the parts of a chunk; `means` is None without gradients of teachers."""
    dtype = grad.dtype.element_ty
    num_columns = num_units * UNIT
    student_inverse, teacher_inverse = 1.0 / tl.load(student_temperature), 1.0 / tl.load(teacher_temperature)
    chunk, chunks = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    columns = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < num_columns
    t = tl.arange(0, TEACHERS).to(tl.int64)
    present = t < num_teachers
    rows = t * num_samples + sample
    mask = present[:, None] & inside[None, :]
    z = _teacher_tile(teacher, center, rows[:, None], columns, mask, num_columns, dtype)
    maxima = tl.load(teacher_rows + 2 * rows, mask=present, other=0.0)
    totals = tl.load(teacher_rows + 2 * rows + 1, mask=present, other=1.0)
    z = tl.where(mask, z - maxima[:, None], 0.0)
    q = tl.where(mask, tl.exp2(z * teacher_inverse * LOG2_OF_E), 0.0) / totals[:, None]
    inner = tl.zeros((TEACHERS, COLUMNS), dtype)
    for view in range(0, num_students):
        row = view * num_samples + sample
        g = tl.load(grad + (t * num_students + view) * num_samples + sample, mask=present, other=0.0)
        maximum, total = tl.load(student_rows + 2 * row), tl.load(student_rows + 2 * row + 1)
        s = tl.load(student + row * num_columns + columns, mask=inside, other=0.0).to(dtype) - maximum
        s = tl.where(inside, s, 0.0)
        p = tl.exp2(s * student_inverse * LOG2_OF_E) / total
        gradient = (tl.sum(g, axis=0) * p - tl.sum(g[:, None] * q, axis=0)) * student_inverse
        target = grad_student + row * num_columns + columns
        tl.store(target, gradient.to(grad_student.dtype.element_ty), mask=inside)
        slope = tl.sum(tl.where(inside, gradient * s, 0.0), axis=0)
        tl.store(student_slopes + row * chunks + chunk, slope)
        if means is not None:
            mean = tl.load(means + (t * num_students + view) * num_samples + sample, mask=present, other=0.0)
            high = mean.to(dtype)
            low = (mean - high.to(tl.float64)).to(dtype)
            inner += (g * student_inverse)[:, None] * ((high[:, None] - s[None, :]) + low[:, None])
    if means is not None:
        gradient = q * inner * teacher_inverse
        tl.store(grad_teacher + rows[:, None] * num_columns + columns[None, :], gradient, mask=mask)
        tl.store(teacher_slopes + rows * chunks + chunk, tl.sum(gradient * z, axis=1), mask=present)


def _sizes(student, teacher):
    students, samples, columns = student.shape
    unit = unit_of(columns)
    return {
        "num_students": students,
        "num_teachers": len(teacher),
        "num_samples": samples,
        "num_units": columns // unit,
        "UNIT": unit,
        "TEACHERS": triton.next_power_of_2(len(teacher)),
        "COLUMNS": COLUMNS,
        "num_warps": NUM_WARPS,
    }


def _contiguous(*tensors):
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def soft_cross_entropy(student, teacher, center, student_temperature, teacher_temperature, teacher_moves):
    """Losses [T, S, B], and maxima and sums of the rows of students [S, B, 2] and teachers [T, B, 2]."""
    student, teacher, center = _contiguous(student, teacher, center)
    (students, samples, _), teachers = student.shape, len(teacher)
    shapes = (teachers, students, samples), (students, samples, 2), (teachers, samples, 2)
    outputs = [student_temperature.new_empty(shape) for shape in shapes]
    if samples:
        with torch.cuda.device_of(student):
            soft_cross_entropy_kernel[(samples, students)](
                student, teacher, center, student_temperature, teacher_temperature, *outputs,
                **_sizes(student, teacher),
            )  # fmt: skip
    return tuple(outputs)


def soft_cross_entropy_backward(
    grad, student, teacher, center, student_temperature, teacher_temperature, teacher_moves,
    student_rows, teacher_rows,
):  # fmt: skip
    """Gradients of students and teachers, each followed by its slopes."""
    grad, student, teacher, center, student_rows, teacher_rows = _contiguous(
        grad, student, teacher, center, student_rows, teacher_rows
    )
    (students, samples, columns), teachers = student.shape, len(teacher)
    chunks = triton.cdiv(columns, COLUMNS)
    grad_student = torch.empty_like(student)
    student_slopes = grad.new_empty(students, samples, chunks)
    grad_teacher = grad.new_empty(teacher.shape if teacher_moves else 0)
    teacher_slopes = grad.new_empty((teachers, samples, chunks) if teacher_moves else (0, 1))
    means = torch.empty_like(grad, dtype=torch.float64) if teacher_moves else None
    if samples:
        sizes, rows = _sizes(student, teacher), (student_rows, teacher_rows)
        with torch.cuda.device_of(student):
            if teacher_moves:
                soft_cross_entropy_means_kernel[(samples, students)](
                    student, teacher, center, teacher_temperature, *rows, means, **sizes
                )
            soft_cross_entropy_backward_kernel[(chunks, samples)](
                grad, student, teacher, center, student_temperature, teacher_temperature, *rows, means,
                grad_student, student_slopes, grad_teacher, teacher_slopes, **sizes,
            )  # fmt: skip
    return grad_student, student_slopes.sum(-1), grad_teacher, teacher_slopes.sum(-1)
