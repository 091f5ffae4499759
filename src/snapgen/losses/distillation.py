"""Knowledge distillation (Sec. 3.3): output and feature losses, and how they are weighted against the task loss.

All losses have one value per sample, shape B, each a mean over elements; the expectation in the equations is
the mean over the batch. `t` in [0, 1], shape B, is the timestep before the shift of the noise levels: what training
samples logit-normally, and what Eq. 7 weights by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
def timestep_aware(task: Tensor, scaled: Tensor, t: Tensor) -> Tensor:
    """`S`: `lambda(t) L_task + (1 - lambda(t)) |L_task| / |L_kd| L_kd`; `scaled` is the last product, `at_scale`."""
    share = task_share(t)
    return share * task + (1 - share) * scaled


def at_scale(distillation: Tensor, magnitudes: tuple[Tensor, Tensor], max_ratio: float | None = None) -> Tensor:
    """`|L_task| / |L_kd| L_kd`: a distillation loss at the task's scale; the ratio carries no gradient.

    Args:
        distillation: `L_kd` of each sample, B.
        magnitudes: `|L_task|` and `|L_kd|` at each sample's t, B each.
        max_ratio: upper bound of the ratio; None: no bound. Near its teacher a student's `L_kd` vanishes. The gradient
            of a squared error, however, only vanishes with its root, so the scaled one grows like the root of the
            ratio: under a bound of 100, to ten times the task's.
    """
    of_task, of_distillation = (magnitude.detach().abs() for magnitude in magnitudes)
    ratio = of_task / of_distillation.clamp(min=SMALLEST)
    return (ratio if max_ratio is None else ratio.clamp(max=max_ratio)) * distillation


# Eq. 8
def multi_level(task: Tensor, scaled: Iterable[Tensor], t: Tensor) -> Tensor:
    """`L_md`: the sum of `S` over the distillation losses, each `at_scale`."""
    return torch.stack([timestep_aware(task, loss, t) for loss in scaled]).sum(dim=0)


class RunningMagnitudes(nn.Module):
    """The mean magnitude of each loss at every timestep, as in Fig. 6: running means in equal bins of t.

    They are buffers, hence part of a checkpoint. A mean is over all batches at first, and forgets later.
    """

    means: Tensor  # L K, for L losses and K bins
    visits: Tensor  # L K: batches with a sample in the bin

    def __init__(self, names: Sequence[str], bins: int = 16, keep: float = 0.99):
        """`names`: the losses; `keep`: the weight of the past in a mean, per batch with a sample in its bin."""
        super().__init__()
        self.names = tuple(names)
        self.keep = keep
        for buffer in ("means", "visits"):
            self.register_buffer(buffer, torch.zeros(len(names), bins))

    @torch.no_grad()
    def update(
        self, losses: Mapping[str, Tensor], t: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> None:
        """Adds the losses of a batch at `t`, shape B each; values that are not finite do not count.

        `total` sums a tensor over all processes: all must have the same means.
        """
        values = torch.stack([losses[name].abs().float() for name in self.names])  # L B
        finite = values.isfinite()
        places = F.one_hot(self._bins(t), self.means.shape[1]).float()  # B K
        sums, counts = total(torch.stack([torch.where(finite, values, 0.0) @ places, finite.float() @ places]))
        keep = (self.visits / (self.visits + 1)).clamp(max=self.keep)
        found = counts > 0
        mean = sums / counts.clamp(min=1)
        self.means.copy_(torch.where(found, keep * self.means + (1 - keep) * mean, self.means))
        self.visits.add_(found)

    def at(self, name: str, t: Tensor) -> Tensor:
        """The mean magnitude of the loss `name` at each `t`, B. A bin without a sample yet has the mean of the others.

        All are 0 before the first `update`.
        """
        row = self.names.index(name)
        means, seen = self.means[row], self.visits[row] > 0
        others = means.sum() / seen.sum().clamp(min=1)
        return torch.where(seen, means, others)[self._bins(t)]

    def _bins(self, t: Tensor) -> Tensor:
        bins = self.means.shape[1]
        return (t * bins).long().clamp(0, bins - 1)
