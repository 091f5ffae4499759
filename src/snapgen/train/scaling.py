"""How the stages `distill` and `step` weight the task against a teacher (Eq. 7), where the paper leaves room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from snapgen.config import Settings
from snapgen.flow.timesteps import shift_sigma
from snapgen.losses.distillation import RunningMagnitudes, at_scale, multi_level

TASK = "task"  # the name of the task loss among a stage's losses


class ScalingSettings(Settings):
    """Readings of Eq. 7."""

    # Where lambda is evaluated: at t, which is sampled logit-normally (lambda is that density), or at the noise level
    # sigma, which the shift makes of t. In four steps with a shift of 3, lambda is 0, .73, 1 and .73 by t; by sigma it
    # is 0, .25, .73 and 1, and the last step has no teacher.
    share_at: Literal["t", "sigma"] = "t"
    # |L|: running means by timestep (Fig. 6 shows such means), or each sample's own loss. By samples, the scaled loss
    # always equals the task's, so it shows neither progress nor trouble.
    magnitudes: Literal["running", "sample"] = "running"
    max_ratio: float | None = Field(default=100.0, gt=0)  # bound of |L_task| / |L_kd|; null: none


class TimestepScaling(nn.Module):
    """Eq. 7 and 8 under some settings; its running magnitudes belong to a stage's model, and so to its checkpoints."""

    def __init__(self, settings: ScalingSettings, shift: float, distillations: tuple[str, ...]) -> None:
        """`shift`: of the noise levels; `distillations`: the names of the distillation losses."""
        super().__init__()
        self.settings = settings
        self.shift = shift
        self.running = RunningMagnitudes((TASK, *distillations)) if settings.magnitudes == "running" else None

    def timesteps(self, sigmas: Tensor) -> Tensor:
        """Where lambda and the magnitudes are evaluated for noise levels `sigmas`, B."""
        return shift_sigma(sigmas, 1 / self.shift) if self.settings.share_at == "t" else sigmas

    def update(self, losses: Mapping[str, Tensor], sigmas: Tensor) -> None:
        """Takes note of a training batch: the losses of its samples, B each. All processes must call it together."""
        if self.running is not None:
            self.running.update(losses, self.timesteps(sigmas), total)

    def _scaled(self, losses: Mapping[str, Tensor], sigmas: Tensor) -> dict[str, Tensor]:
        """The distillation losses among `losses` at the task's scale, B each."""
        t, bound = self.timesteps(sigmas), self.settings.max_ratio

        def magnitude(name: str) -> Tensor:
            return losses[name] if self.running is None else self.running.at(name, t)

        return {
            name: at_scale(loss, (magnitude(TASK), magnitude(name)), bound)
            for name, loss in losses.items()
            if name != TASK
        }

    def forward(self, losses: Mapping[str, Tensor], sigmas: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`L_md` (Eq. 8) of each sample, B, given its losses, and what it weights against the task, as `<name>_scaled`.

        With one distillation loss, `L_md` is `S` (Eq. 7).
        """
        scaled = self._scaled(losses, sigmas)
        total = multi_level(losses[TASK], scaled.values(), self.timesteps(sigmas))
        return total, {f"{name}_scaled": loss for name, loss in scaled.items()}


def total(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor
