"""Classifier-free guidance as a wrapper around a network, which never knows of it (Ho and Salimans 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snapgen.flow.timesteps import TIMESTEP_SCALE
from snapgen.text.encoder import TextStates

# x (B C H W) and sigma in [0, 1] -> velocity B C H W
Velocity = Callable[[Tensor, float], Tensor]


def conditional(network: Callable[..., Tensor], text: TextStates) -> Velocity:
    """The velocity under `text`. `network` takes x, timestep (a scalar tensor), states, mask."""

    def velocity(x: Tensor, sigma: float) -> Tensor:
        return network(x, torch.tensor(TIMESTEP_SCALE * sigma, device=x.device), text.states, text.mask)

    return velocity


def guided(
    network: Callable[..., Tensor],
    text: TextStates,
    negative: TextStates,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
    """`v_negative + scale (v_text - v_negative)`, both halves evaluated in one batch.

    Outside `interval` (of sigma, both ends included; Kynkaanniemi et al. 2024) and for scale 1 only the
    conditional half is evaluated. `text` and `negative` must have the same number of tokens.
    """
    with_text, with_both = conditional(network, text), conditional(network, TextStates.cat([negative, text]))

    def velocity(x: Tensor, sigma: float) -> Tensor:
        if scale == 1.0 or not interval[0] <= sigma <= interval[1]:
            return with_text(x, sigma)
        v_negative, v_text = with_both(torch.cat([x, x]), sigma).chunk(2)
        return v_negative + scale * (v_text - v_negative)

    return velocity
