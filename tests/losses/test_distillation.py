"""Eq. 4 to 8 against float64 transcriptions, and what the timestep-aware scaling promises."""

import math

import numpy as np
import pytest
import torch

from snapgen.losses.distillation import (
    RunningMagnitudes,
    at_scale,
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


def aware(task: torch.Tensor, distillation: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Eq. 7 with the magnitudes of each sample."""
    return timestep_aware(task, at_scale(distillation, (task, distillation)), t)


def test_the_scaling_against_a_transcription() -> None:
    task, distillation, t = batch()
    magnitudes = (torch.tensor([0.5, 1, 2, 3, 4]), torch.tensor([4.0, 3, 2, 1, 0.5]))
    for of_task, of_distillation in (magnitudes, (task, distillation)):
        expected = []
        for index, level in enumerate(t.tolist()):
            share, ratio = density(level) / density(0.5), of_task[index].item() / of_distillation[index].item()
            expected.append(share * task[index].item() + (1 - share) * ratio * distillation[index].item())
        scaled = at_scale(distillation, (of_task, of_distillation))
        torch.testing.assert_close(timestep_aware(task, scaled, t), torch.tensor(expected))
        torch.testing.assert_close(multi_level(task, [scaled, scaled], t), 2 * timestep_aware(task, scaled, t))


def test_by_samples_both_terms_have_the_magnitude_of_the_task_at_every_level() -> None:
    """So the value is the task's, whatever the scale of the distillation loss; only the gradient is shared out."""
    task, distillation, t = batch(64)
    for scale in (1e-4, 1.0, 1e4):
        torch.testing.assert_close(aware(task, scale * distillation, t), task)


@pytest.mark.parametrize("level", [0.02, 0.3, 0.5, 0.9])
def test_gradients_are_shared_out_by_lambda(level: float) -> None:
    task, distillation = torch.tensor([0.8], requires_grad=True), torch.tensor([0.002], requires_grad=True)
    aware(task, distillation, torch.tensor([level])).sum().backward()
    share = density(level) / density(0.5)
    assert task.grad is not None and distillation.grad is not None
    assert task.grad.item() == pytest.approx(share, rel=1e-5)
    assert distillation.grad.item() == pytest.approx((1 - share) * 0.8 / 0.002, rel=1e-4, abs=1e-4)


def test_a_student_that_is_the_teacher_is_no_division_by_zero() -> None:
    zero = torch.zeros(2, requires_grad=True)
    value = aware(torch.ones(2), zero, torch.tensor([0.0, 0.5]))
    value.sum().backward()
    assert value.tolist() == [0, 1] and zero.grad is not None and zero.grad.isfinite().all()


def relative_gradient(distance: float, max_ratio: float | None) -> float:
    """The gradient of the scaled output loss over the task's, for a student that far (rms) from its teacher."""
    student = torch.zeros(1, 64, dtype=torch.float64, requires_grad=True)
    task = output_distillation(student, torch.ones(1, 64, dtype=torch.float64))
    close = output_distillation(student, torch.full((1, 64), distance, dtype=torch.float64))
    scaled = at_scale(close, (task, close), max_ratio)
    there, here = (torch.autograd.grad(loss.sum(), student, retain_graph=True)[0].norm() for loss in (scaled, task))
    return (there / here).item()


def test_near_the_teacher_the_bound_holds_the_gradient() -> None:
    """Without a bound it grows like one over the distance; a ratio of at most 100 means ten times the task's."""
    assert [relative_gradient(distance, None) for distance in (1, 0.1, 0.01)] == pytest.approx([1, 10, 100], rel=1e-4)
    bounded = [relative_gradient(10**-power, 100.0) for power in (0, 0.5, 1, 1.5, 2, 3)]
    assert bounded == pytest.approx([1, 10**0.5, 10, 10**0.5, 1, 0.1], rel=1e-4)


def test_running_magnitudes_are_means_by_bin() -> None:
    magnitudes = RunningMagnitudes(["task", "output"], bins=4, keep=0.5)
    t = torch.tensor([0.0, 0.1, 0.3, 1.0])
    assert magnitudes.at("task", t).tolist() == [0, 0, 0, 0]
    magnitudes.update({"task": torch.tensor([1.0, 3, -5, 7]), "output": torch.full((4,), 0.5)}, t)
    # Bins 0, 1 and 3 are known; bin 2 has their mean.
    assert magnitudes.at("task", torch.tensor([0.2, 0.3, 0.5, 1.0])).tolist() == pytest.approx([2, 5, 14 / 3, 7])
    assert magnitudes.at("output", t).tolist() == [0.5] * 4
    for value in (4.0, 8.0, math.nan, math.inf):  # the mean of 2 and 4, then half of that and half of 8
        magnitudes.update({"task": torch.tensor([value]), "output": torch.tensor([0.5])}, torch.tensor([0.1]))
    assert magnitudes.at("task", torch.tensor([0.0, 0.3])).tolist() == pytest.approx([5.5, 5])
    other = RunningMagnitudes(["task", "output"], bins=4)
    other.load_state_dict(magnitudes.state_dict())
    assert torch.equal(other.at("task", t), magnitudes.at("task", t))


def test_running_magnitudes_of_a_shared_batch_are_those_of_the_whole() -> None:
    values, t = torch.rand(8), torch.rand(8)
    whole, shared = RunningMagnitudes(["task"]), RunningMagnitudes(["task"])
    whole.update({"task": values}, t)
    seen: list[torch.Tensor] = []
    for part in (slice(0, 3), slice(3, 8)):  # what a sum over processes is given in each of them
        RunningMagnitudes(["task"]).update({"task": values[part]}, t[part], lambda sums: seen.append(sums) or sums)
    shared.update({"task": values[:3]}, t[:3], lambda sums: seen[0] + seen[1])
    torch.testing.assert_close(shared.means, whole.means)
    assert torch.equal(shared.visits, whole.visits)


def test_by_running_means_the_loss_shows_the_distance_to_the_teacher() -> None:
    """Unlike by samples: a batch twice as far from the teacher as those before is seen."""
    task, distillation, t = batch(64)
    running = RunningMagnitudes(["task", "output"])
    running.update({"task": task, "output": distillation}, t)
    magnitudes = (running.at("task", t), running.at("output", t))
    usual, far = (at_scale(scale * distillation, magnitudes).mean() for scale in (1, 2))
    assert far.item() == pytest.approx(2 * usual.item(), rel=1e-5)


def test_constant_weights_are_a_plain_sum() -> None:
    task, first, second = batch()
    torch.testing.assert_close(constant_weights(task, [(0.5, first), (2.0, second)]), task + 0.5 * first + 2 * second)
