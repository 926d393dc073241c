"""Cross-entropy of softmaxes: against the reference, lightly's DINO and iBOT, and what autograd keeps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import genssl_fast
from bench.peers import import_past_init
from genssl_fast.ops.soft_cross_entropy import raw_soft_cross_entropy
from genssl_fast.reference.integrate import compute_dtype
from tests.battery import Battery, Case, assert_close_enough, cotangent, gradients, make_inputs, to_fp64

CHUNK = 1024  # columns that the kernel takes at a time


def draw(*shape, seed=0, scale=1.0, dtype=torch.float32):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def one_pair(columns):
    """Student, teacher, center and both temperatures, which are mild: fp64 must agree to 4 ulp."""

    def inputs(dtype, size, generator):
        numbers = compute_dtype(dtype)
        logits = [torch.randn(3 * size, columns, generator=generator).to(dtype) for _ in range(2)]
        center = torch.randn(columns, generator=generator).to(numbers)
        return *logits, center, torch.tensor(0.5, dtype=numbers), torch.tensor(0.8, dtype=numbers)

    return inputs


def crops(dtype, size, generator):
    """Five views of a student, two of a teacher."""
    student, teacher = (torch.randn(views, size + 1, 9, generator=generator).to(dtype) for views in (5, 2))
    return student, teacher, torch.randn(9, generator=generator).to(compute_dtype(dtype))


def losses(student, teacher, center, student_temperature, teacher_temperature):
    """The definition, in one expression."""
    numbers = compute_dtype(student.dtype)
    teacher = teacher.to(numbers) if center is None else teacher.to(numbers) - center
    log_p = F.log_softmax(student.to(numbers) / student_temperature, -1)
    return -(torch.softmax(teacher / teacher_temperature, -1) * log_p).sum(-1)


def plain_dino(student, teacher, center, student_temperature=0.5, teacher_temperature=0.8):
    pairs = [
        losses(s, t, center, student_temperature, teacher_temperature)
        for i, t in enumerate(teacher)
        for j, s in enumerate(student)
        if i != j
    ]
    return torch.stack(pairs).mean()


def ours(student, teacher, center, student_temperature, teacher_temperature):
    return genssl_fast.soft_cross_entropy(
        student,
        teacher,
        center=center,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        reduction="none",
    )


def our_dino(student, teacher, center):
    return genssl_fast.dino_loss(
        student, teacher, center=center, student_temperature=0.5, teacher_temperature=0.8
    )


def raw_arguments(student, teacher, *rest):
    return raw_soft_cross_entropy, (student[None], teacher[None], *rest, True)


# In fp64 the reference is no more exact than the kernel: test_fp64 compares both with more digits.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TestSoftCrossEntropy(Battery):
    cases = {
        "pair": Case(ours, losses, one_pair(19), differentiable=(0, 1, 2), raw=raw_arguments, dtypes=DTYPES),
        # The accuracy of one number is luck: test_gradients_of_temperatures takes a mean.
        "temperatures": Case(ours, losses, one_pair(5), differentiable=(0, 3, 4), dtypes=()),
        "crops": Case(our_dino, plain_dino, crops, differentiable=(0, 1, 2), dtypes=DTYPES, sizes=(1, 3, 5)),
    }
    errors = {
        "dtype": (
            lambda: genssl_fast.soft_cross_entropy(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)),
            TypeError,
            "student_logits: expected dtype float32.*got torch.int64",
        ),
        "teacher": (
            lambda: genssl_fast.soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4)),
            ValueError,
            r"teacher_logits: expected the shape of student_logits, \[2, 3\], got \[2, 4\]",
        ),
        "no classes": (
            lambda: genssl_fast.soft_cross_entropy(torch.zeros(2, 0), torch.zeros(2, 0)),
            ValueError,
            "student_logits: expected at least one class",
        ),
        "center": (
            lambda: genssl_fast.soft_cross_entropy(*torch.zeros(2, 2, 3), center=torch.zeros(2)),
            ValueError,
            r"center: expected 3 entries, got \[2\]",
        ),
        "weights": (
            lambda: genssl_fast.soft_cross_entropy(*torch.zeros(2, 2, 3), weights=torch.zeros(3)),
            ValueError,
            r"weights: expected shape that of the rows of student_logits = \[2\], got \[3\]",
        ),
        "reduction": (
            lambda: genssl_fast.soft_cross_entropy(*torch.zeros(2, 2, 3), reduction="max"),
            ValueError,
            "reduction: expected one of 'mean', 'sum', 'none', got 'max'",
        ),
        "temperature": (
            lambda: genssl_fast.soft_cross_entropy(*torch.zeros(2, 2, 3), student_temperature=0.0),
            ValueError,
            "student_temperature: expected a positive number, got 0.0",
        ),
        "tensor of temperature": (
            lambda: genssl_fast.soft_cross_entropy(
                *torch.zeros(2, 2, 3), teacher_temperature=torch.tensor(-1.0)
            ),
            ValueError,
            "teacher_temperature: expected a positive number, got -1.0",
        ),
        "one view": (
            lambda: genssl_fast.dino_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)),
            ValueError,
            "student_logits, teacher_logits: expected at least two views, got 1 and 1",
        ),
        "views": (
            lambda: genssl_fast.dino_loss(torch.zeros(2, 2, 3), torch.zeros(2, 4, 3)),
            ValueError,
            r"teacher_logits: expected shape \[T, B, K\] = \[2, 2, 3\], got \[2, 4, 3\]",
        ),
        "update of center": (
            lambda: genssl_fast.update_center(torch.zeros(3), torch.zeros(2, 4)),
            ValueError,
            r"teacher_logits: expected shape \[..., 3\], like center, got \[2, 4\]",
        ),
    }


def assert_equals_fp64(tensors, positions=(0, 1)):
    """Values and gradients of losses without reduction, within the battery's bounds."""
    exact, plain = losses(*to_fp64(tensors)), losses(*tensors)
    assert_close_enough(ours(*tensors), plain, exact, 2, "losses")
    exact, plain = gradients(losses, to_fp64(tensors), positions), gradients(losses, tensors, positions)
    for i, found in enumerate(gradients(ours, tensors, positions)):
        assert_close_enough(found, plain[i], exact[i], 3, f"gradient {positions[i]}")


SHARP = torch.tensor(0.1), torch.tensor(0.04)


def softmax_parts(logits, temperature):
    """Scores, log-normaliser and softmax in the precision of numpy's array."""
    scores = (logits - logits.max(-1, keepdims=True)) / temperature
    powers = np.exp(scores)
    total = powers.sum(-1, keepdims=True)
    return scores, np.log(total), powers / total


def test_fp64():
    """The battery's bounds, with numpy's extended precision in the place of fp64."""
    tensors = draw(4, 2 * CHUNK + 3).double(), draw(4, 2 * CHUNK + 3, seed=1).double()
    (w, log_sum, p), (_, _, q) = (
        softmax_parts(t.numpy().astype(np.longdouble), np.longdouble(temperature.double().item()))
        for t, temperature in zip(tensors, SHARP)
    )
    mean = (q * w).sum(-1, keepdims=True)
    weights = cotangent(torch.zeros(4)).numpy()[:, None]
    of_student, of_teacher = (np.longdouble(temperature.double().item()) for temperature in SHARP)
    exact = [(log_sum - mean)[:, 0], weights * (p - q) / of_student, weights * q * (mean - w) / of_teacher]
    arguments = (*tensors, None, *to_fp64(SHARP))
    found, plain = ([f(*arguments), *gradients(f, arguments, (0, 1))] for f in (ours, losses))
    for y, y_torch, y_exact, factor in zip(found, plain, exact, (2, 3, 3)):
        error, allowed = (np.abs(value.detach().numpy() - y_exact).max() for value in (y, y_torch))
        assert error <= factor * allowed + 4 * np.spacing(float(np.abs(y_exact).max()))


@pytest.mark.parametrize("columns", [1, 16, CHUNK - 1, CHUNK, 2 * CHUNK + 17, 131072])
def test_columns(columns):
    tensors = draw(3, columns), draw(3, columns, seed=1), draw(columns, seed=2)
    assert_equals_fp64((*tensors, *SHARP), (0,) if columns > 4096 else (0, 1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_temperatures(dtype):
    """Within the battery's bound, in the mean of 20 draws."""
    case, errors = TestSoftCrossEntropy.cases["pair"], []
    for seed in range(20):
        tensors = make_inputs(case, dtype, 5, seed=seed)
        exact = torch.stack(gradients(losses, to_fp64(tensors), (3, 4)))
        both = (torch.stack(gradients(f, tensors, (3, 4))) for f in (ours, losses))
        errors.append(torch.stack([(found - exact).abs() for found in both]))
    found, plain = torch.stack(errors).mean(0)
    assert (found <= 3 * plain + 4 * torch.finfo(torch.float32).eps).all(), (found, plain)


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e5])
def test_large_logits(scale):
    """Exponentials overflow from 88.7 on; the largest logits come late in one row and early in the other."""
    student, teacher = draw(2, 2 * CHUNK + 5, scale=scale), draw(2, 2 * CHUNK + 5, scale=scale, seed=1)
    student[0, -1] = teacher[1, -1] = 6 * scale
    student[1, 0] = teacher[0, 0] = 6 * scale
    assert_equals_fp64((student, teacher, None, *SHARP))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2, 19])
def test_temperature_of_low_logits(dtype, columns):
    """e^(0 − maximum) overflows: what registers hold past the end of a row must not reach the sum."""
    student, teacher = (draw(3, columns, seed=seed, dtype=dtype) - 90.0 for seed in (0, 1))
    found, exact = (
        gradients(f, arguments, (0, 3))
        for f, arguments in (
            (ours, (student, teacher, None, *SHARP)),
            (losses, to_fp64((student, teacher, None, *SHARP))),
        )
    )
    for gradient, expected in zip(found, exact):
        bound = 4 * torch.finfo(gradient.dtype).eps * expected.abs().max() + 1e-5
        assert (gradient - expected).abs().max() <= bound


def test_small_losses_keep_their_digits():
    """A student that agrees with a sharp teacher: the loss is no difference of large numbers."""
    student = draw(4, 300)
    student[:, 7] = 5e3
    found = ours(student, student, None, *SHARP)
    assert torch.equal(found, torch.zeros(4))
    student = torch.tensor([[1e4, 1e4 - 1.0, 0.0]])
    exact = losses(*to_fp64((student, student, None)), *SHARP)
    torch.testing.assert_close(ours(student, student, None, *SHARP).double(), exact, rtol=0, atol=1e-7)


def test_equal_and_masked_logits():
    torch.testing.assert_close(
        ours(torch.zeros(2, 8), torch.zeros(2, 8), None, *SHARP), torch.full((2,), 8.0).log()
    )
    student, teacher = draw(2, CHUNK + 40).requires_grad_(), draw(2, CHUNK + 40, seed=1)
    teacher[:, :CHUNK] = -torch.inf
    value = ours(student, teacher, None, *SHARP)
    torch.testing.assert_close(value, losses(student, teacher, None, *SHARP))
    value.sum().backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_shapes_weights_and_reductions(shape, reduction):
    student, teacher, weights = draw(*shape), draw(*shape, seed=1), draw(*shape[:-1], seed=2)
    options = {"weights": weights, "reduction": reduction}
    expected = weights * losses(student, teacher, None, 0.1, 0.04)
    expected = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    torch.testing.assert_close(genssl_fast.soft_cross_entropy(student, teacher, **options), expected)


def saved_bytes(function, *tensors):
    """What autograd keeps, without the inputs."""
    own, kept = {t.untyped_storage().data_ptr() for t in tensors}, []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*tensors)
    return sum(kept)


def test_nothing_of_the_size_of_the_logits_is_kept():
    rows, columns = 16, 4096
    student, teacher = draw(rows, columns).requires_grad_(), draw(rows, columns, seed=1)
    center = draw(columns, seed=2)
    kept = saved_bytes(
        lambda *logits: genssl_fast.soft_cross_entropy(*logits, center=center), student, teacher
    )
    assert kept <= center.nbytes + 64 * rows
    views = student.view(8, 2, -1), teacher.view(8, 2, -1)
    kept = saved_bytes(lambda *logits: our_dino(*logits, center), *views)
    assert kept <= center.nbytes + 16 * 8 * 8 * 2
    assert saved_bytes(lambda s, t: losses(s, t, None, 0.1, 0.04), student, teacher) > student.nbytes


def test_derivatives_of_a_fixed_teacher_are_not_computed():
    student, teacher = draw(4, 50).requires_grad_(), draw(4, 50, seed=1)
    for fixed in (True, False):
        loss = genssl_fast.soft_cross_entropy(student, teacher.requires_grad_(not fixed))
        gradient = loss.grad_fn.next_functions[0][0].next_functions[0][0]
        assert fixed != gradient.others[5]
        loss.backward()
        assert (teacher.grad is None) == fixed


# lightly


def dino_of_lightly(**options):
    return pytest.importorskip("lightly") and import_past_init(
        "lightly.loss.dino_loss", "lightly.models.modules"
    ).DINOLoss(**options)


@pytest.mark.parametrize(("students", "teachers"), [(2, 2), (6, 2), (1, 2), (3, 1)])
def test_dino_of_lightly(students, teachers):
    """Losses, gradients and centers of three steps."""
    theirs = dino_of_lightly(output_dim=40, student_temp=0.2, teacher_temp=0.07, center_momentum=0.8)
    center = torch.zeros(1, 1, 40)
    for step in range(3):
        student = list(draw(students, 5, 40, seed=step).unbind())
        teacher = list(draw(teachers, 5, 40, seed=step + 9).unbind())
        for view in student:
            view.requires_grad_()
        expected = theirs(teacher, student, teacher_temp=0.07)
        found = genssl_fast.dino_loss(
            student, teacher, center=center, student_temperature=0.2, teacher_temperature=0.07
        )
        center = genssl_fast.update_center(center, teacher, momentum=0.8)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(center, theirs.center, rtol=1e-5, atol=1e-7)
        for a, b in zip(torch.autograd.grad(found, student), torch.autograd.grad(expected, student)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_ibot_of_lightly():
    module = pytest.importorskip("lightly") and import_past_init(
        "lightly.loss.ibot_loss", "lightly.models.modules"
    )
    mask = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    student, teacher = draw(int(mask.sum()), 40), draw(int(mask.sum()), 40, seed=1)
    expected = module.IBOTPatchLoss(output_dim=40)(teacher, student, mask)
    weights = (1 / mask.sum((1, 2), keepdim=True).clamp(min=1)).expand_as(mask)[mask]
    found = genssl_fast.soft_cross_entropy(student, teacher, weights=weights / 3, reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
