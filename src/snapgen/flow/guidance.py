"""Classifier-free guidance as a wrapper around a network, which never knows of it (Ho and Salimans 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snapgen.flow.timesteps import TIMESTEP_SCALE

# x (B C H W) and sigma in [0, 1] -> velocity B C H W
Velocity = Callable[[Tensor, float], Tensor]


def conditional(network: Callable[..., Tensor], states: Any, mask: Tensor) -> Velocity:
    """The velocity under a text. `network` takes x, timestep (a scalar tensor), `states`, `mask`."""

    def velocity(x: Tensor, sigma: float) -> Tensor:
        return network(x, torch.tensor(TIMESTEP_SCALE * sigma, device=x.device), states, mask)

    return velocity


def guided(
    with_text: Velocity, with_both: Velocity, scale: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Velocity:
    """`v_negative + scale (v_text - v_negative)`.

    `with_both` is the velocity of a batch of two halves, under the negative text and under the text. Outside
    `interval` (of sigma, both ends included; Kynkaanniemi et al. 2024) and for scale 1 only `with_text` is evaluated.
    """

    def velocity(x: Tensor, sigma: float) -> Tensor:
        if scale == 1.0 or not interval[0] <= sigma <= interval[1]:
            return with_text(x, sigma)
        v_negative, v_text = with_both(torch.cat([x, x]), sigma).chunk(2)
        return v_negative + scale * (v_text - v_negative)

    return velocity
