"""The Triton cross-entropy of softmaxes and its gradients against the reference in fp64."""

import pytest
import torch
from genssl_fast.kernels.contrast import soft_cross_entropy as kernels

from genssl_fast import reference
from tests.battery import assert_close_enough, cotangent, to_fp64


def draw(students, teachers, samples, columns, dtype=torch.float32, scale=1.0, center=True):
    generator = torch.Generator().manual_seed(columns)
    numbers = torch.float64 if dtype == torch.float64 else torch.float32
    student = scale * torch.randn(students, samples, columns, generator=generator)
    teacher = scale * torch.randn(teachers, samples, columns, generator=generator)
    center = torch.randn(columns, generator=generator).to(numbers) if center else None
    temperatures = (torch.tensor(value, dtype=numbers) for value in (0.1, 0.04))
    return student.to(dtype), teacher.to(dtype), center, *temperatures


def check(*tensors):
    exact = reference.contrast.soft_cross_entropy(*to_fp64(tensors))
    plain = reference.contrast.soft_cross_entropy(*tensors)
    found = kernels.soft_cross_entropy(*tensors, True)
    for name, *values in zip(("losses", "student rows", "teacher rows"), found, plain, exact):
        assert_close_enough(*values, 2, name)
    grad = cotangent(plain[0]).to(plain[0].dtype)
    exact = reference.contrast.soft_cross_entropy_backward(grad.double(), *to_fp64(tensors), True)
    plain = reference.contrast.soft_cross_entropy_backward(grad, *tensors, True)
    both = kernels.soft_cross_entropy_backward(grad, *tensors, True, *found[1:])
    for name, *values in zip(("student", "slope", "teacher", "slope"), both, plain, exact):
        assert_close_enough(*values, 3, name)
    alone = kernels.soft_cross_entropy_backward(grad, *tensors, False, *found[1:])
    assert torch.equal(alone[0], both[0])
    assert torch.equal(alone[1], both[1])
    assert alone[2].numel() == alone[3].numel() == 0


@pytest.mark.parametrize("views", [(1, 1), (2, 2), (5, 3), (3, 1)])
@pytest.mark.parametrize("columns", [1, 33, kernels.COLUMNS + 9])
def test_shapes(views, columns):
    check(*draw(*views, 3, columns))


def test_fp16_and_no_center():
    check(*draw(2, 2, 3, 40, torch.float16))
    check(*draw(2, 1, 3, 40, center=False))


def test_large_logits():
    tensors = draw(1, 1, 2, 2 * kernels.COLUMNS + 5, scale=1e3)
    tensors[0][0, 0, -1] = tensors[1][0, 1, -1] = 6e3
    tensors[0][0, 1, 0] = tensors[1][0, 0, 0] = 6e3
    check(*tensors)


def test_no_samples():
    losses, *rows = kernels.soft_cross_entropy(*draw(2, 2, 0, 7), True)
    assert losses.shape == (2, 2, 0)
    found = kernels.soft_cross_entropy_backward(losses, *draw(2, 2, 0, 7), True, *rows)
    assert found[0].shape == found[2].shape == (2, 0, 7)
