"""Averaged weights follow their formula, at a momentum that follows its own."""

import math

import pytest
import torch

from genssl_fast.ssl import Teacher, cosine_schedule
from tests.ssl.models import small_model, views_of


def test_the_average_is_exact():
    student = torch.nn.Linear(3, 2).double()
    teacher = Teacher(student, decay=0.9, final_decay=1.0)
    expected = [parameter.detach().clone() for parameter in student.parameters()]
    for step in range(5):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        progress = step / 4
        decay = 1 - 0.1 * (1 + math.cos(math.pi * progress)) / 2
        expected = [
            decay * average + (1 - decay) * parameter.detach()
            for average, parameter in zip(expected, student.parameters())
        ]
        teacher.update(student, progress=progress)
    for average, wanted in zip(teacher.parameters(), expected):
        torch.testing.assert_close(average, wanted, rtol=1e-14, atol=1e-14)


def test_a_constant_decay_stays():
    assert cosine_schedule(0.99, 0.99, 0.3) == 0.99


@pytest.mark.parametrize("progress", [-1.0, 2.0])
def test_the_schedule_stays_between_its_ends(progress):
    assert cosine_schedule(0.9, 1.0, progress) in (0.9, 1.0)


@pytest.mark.parametrize("name", ["moco", "byol", "dino"])
def test_teachers_follow_and_learn_nothing_themselves(name):
    model = small_model(name, decay=0.5)
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    model.training_step(views_of(16)).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(1.0)
    model.after_step(0.0)
    changed = [not torch.equal(old, new) for old, new in zip(before, model.teacher.parameters())]
    assert all(changed[: len(list(model.backbone.parameters()))])


def test_its_statistics_are_its_own():
    """Batch normalization in the teacher sees what the teacher makes of the batch."""
    model = small_model("byol")
    model.training_step(views_of(16))
    statistics = model.teacher.networks[0][1].running_mean
    torch.testing.assert_close(statistics, model.backbone[1].running_mean)  # equal weights before a step
    assert not torch.equal(statistics, torch.zeros_like(statistics))


def test_decays_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"^decay: expected a number in \[0, 1\], got 1.5"):
        Teacher(torch.nn.Linear(1, 1), decay=1.5)
