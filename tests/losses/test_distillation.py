"""Eq. 4 to 8 against float64 transcriptions, and what the timestep-aware scaling promises."""

import math

import numpy as np
import pytest
import torch

from snapgen.losses.distillation import (
    constant_weights,
    feature_distillation,
    multi_level,
    output_distillation,
    squared_error,
    task_share,
    timestep_aware,
)


def density(t: float) -> float:
    """The standard logit-normal density: that of a normal variable's logistic function."""
    logit = math.log(t / (1 - t))
    return math.exp(-(logit**2) / 2) / math.sqrt(2 * math.pi) / (t * (1 - t))


def batch(count: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(count, generator=generator) for _ in range(3))


def test_errors_of_each_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 2, 4, 5, generator=generator) for _ in range(2))
    expected = [np.mean((teacher[i].double().numpy() - student[i].double().numpy()) ** 2) for i in range(3)]
    torch.testing.assert_close(output_distillation(student, teacher), torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(squared_error(student, teacher), output_distillation(teacher, student))
    pairs = [(student, teacher), (student[:, :1], teacher[:, :1])]
    both = output_distillation(student, teacher) + output_distillation(student[:, :1], teacher[:, :1])
    torch.testing.assert_close(feature_distillation(pairs), both)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    output_distillation(student, teacher).sum().backward()
    assert student.grad is not None and teacher.grad is None


def test_the_share_of_the_task_is_the_normalised_density() -> None:
    levels = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    expected = torch.tensor([density(t) for t in levels.tolist()], dtype=torch.float64)
    torch.testing.assert_close(task_share(levels), expected / density(0.5), rtol=1e-12, atol=0)
    assert task_share(torch.tensor([0.5])).item() == 1
    assert levels[task_share(levels).argmax()] == 0.5
    torch.testing.assert_close(task_share(levels), task_share(1 - levels), rtol=1e-9, atol=0)
    assert (task_share(levels)[:50].diff() > 0).all()
    assert task_share(torch.tensor([0.0, 1.0])).tolist() == [0, 0]


def test_the_scaling_against_a_transcription() -> None:
    task, distillation, t = batch()
    expected = []
    for l_task, l_kd, level in zip(task.tolist(), distillation.tolist(), t.tolist(), strict=True):
        share = density(level) / density(0.5)
        expected.append(share * l_task + (1 - share) * abs(l_task) / abs(l_kd) * l_kd)
    torch.testing.assert_close(timestep_aware(task, distillation, t), torch.tensor(expected))
    torch.testing.assert_close(
        multi_level(task, [distillation, 3 * distillation], t), 2 * timestep_aware(task, distillation, t)
    )


def test_both_terms_have_the_magnitude_of_the_task_at_every_level() -> None:
    """So the value is the task's, whatever the scale of the distillation loss; only the gradient is shared out."""
    task, distillation, t = batch(64)
    for scale in (1e-4, 1.0, 1e4):
        torch.testing.assert_close(timestep_aware(task, scale * distillation, t), task)


@pytest.mark.parametrize("level", [0.02, 0.3, 0.5, 0.9])
def test_gradients_are_shared_out_by_lambda(level: float) -> None:
    task, distillation = torch.tensor([0.8], requires_grad=True), torch.tensor([0.002], requires_grad=True)
    timestep_aware(task, distillation, torch.tensor([level])).sum().backward()
    share = density(level) / density(0.5)
    assert task.grad is not None and distillation.grad is not None
    assert task.grad.item() == pytest.approx(share, rel=1e-5)
    assert distillation.grad.item() == pytest.approx((1 - share) * 0.8 / 0.002, rel=1e-4, abs=1e-4)


def test_a_student_that_is_the_teacher_is_no_division_by_zero() -> None:
    zero = torch.zeros(2, requires_grad=True)
    value = timestep_aware(torch.ones(2), zero, torch.tensor([0.0, 0.5]))
    value.sum().backward()
    assert value.tolist() == [0, 1] and zero.grad is not None and zero.grad.isfinite().all()


def test_constant_weights_are_a_plain_sum() -> None:
    task, first, second = batch()
    torch.testing.assert_close(constant_weights(task, [(0.5, first), (2.0, second)]), task + 0.5 * first + 2 * second)
