"""Noise levels: those that training samples, and the shift; `schedule` has those that sampling visits.

`sigma` in [0, 1] is the share of noise; the network is given `1000 * sigma`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """`s sigma / (1 + (s - 1) sigma)` (Stable Diffusion 3, Eq. 23): moves levels towards noise for s > 1.

    Keeps 0 and 1. Apply it once: shifts compose, and shift 3 twice is shift 9.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_sigmas(count: int, generator: torch.Generator, shift: float, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """`count` training noise levels, shape (count,), on the CPU: logit-normal(mean, std), then shifted."""
    return shift_sigma(torch.sigmoid(torch.randn(count, generator=generator) * std + mean), shift)


def shifted_schedule(sigmas: Tensor, shift: float) -> Tensor:
    """The falling levels `sigmas` (N,) shifted, and 0 after them, shape (N + 1,): a schedule for N Euler steps.

    As `FlowMatchEulerDiscreteScheduler.set_timesteps(sigmas=...)` makes it.
    """
    return torch.cat([shift_sigma(sigmas, shift), sigmas.new_zeros(1)]).float()
