"""Knowledge distillation (Sec. 3.3): output and feature losses, and how they are weighted against the task loss.

All losses have one value per sample, shape B, each a mean over elements; the expectation in the equations is
the mean over the batch. `t` in [0, 1] is the noise level that the network sees, shape B.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from snapgen.losses.task import squared_error

SMALLEST = 1e-12  # lower bound of a loss used as a divisor


# Eq. 4
def output_distillation(velocity: Tensor, teacher_velocity: Tensor) -> Tensor:
    """`||v_T - v||^2` for velocities B C H W."""
    return squared_error(velocity, teacher_velocity.detach())


# Eq. 5
def feature_distillation(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum over layers of `||f_T - psi(f)||^2`; pairs: projected student and teacher features, each B C H W."""
    losses = [squared_error(projected, feature.detach()) for projected, feature in pairs]
    return torch.stack(losses).sum(dim=0)


# Eq. 6
def constant_weights(task: Tensor, distillations: Iterable[tuple[float, Tensor]]) -> Tensor:
    """The baseline: `L_task + sum of weight * L`."""
    total = task
    for weight, loss in distillations:
        total = total + weight * loss
    return total


def task_share(t: Tensor) -> Tensor:
    """`lambda(t)`: the density of the standard logit-normal distribution, scaled to a maximum of 1 at t = 1/2.

    It is 0 at t = 0 and t = 1, where only the teacher counts. Computed in fp64, returned in t's dtype.
    """
    level = t.double().clamp(1e-9, 1 - 1e-9)
    density = torch.exp(-torch.logit(level).square() / 2) / (level * (1 - level)) / math.sqrt(2 * math.pi)
    return (density * math.sqrt(2 * math.pi) / 4).to(t.dtype)


# Eq. 7
def timestep_aware(task: Tensor, distillation: Tensor, t: Tensor) -> Tensor:
    """`S`: `lambda(t) L_task + (1 - lambda(t)) |L_task| / |L_kd| L_kd`; the ratio of magnitudes carries no gradient."""
    share = task_share(t)
    ratio = task.detach().abs() / distillation.detach().abs().clamp(min=SMALLEST)
    return share * task + (1 - share) * ratio * distillation


# Eq. 8
def multi_level(task: Tensor, distillations: Iterable[Tensor], t: Tensor) -> Tensor:
    """`L_md`: the sum of `S(L_task, L)` over the distillation losses."""
    return torch.stack([timestep_aware(task, distillation, t) for distillation in distillations]).sum(dim=0)
