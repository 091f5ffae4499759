"""Sampling: plain functions that follow a velocity from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from snapgen.flow.guidance import Velocity


# Eq. 3
def euler(
    velocity: Velocity,
    x: Tensor,
    sigmas: Sequence[float],
    on_step: Callable[[int, float, Tensor], Tensor] | None = None,
) -> Tensor:
    """`x_{t-1} = x_t + (sigma_{t-1} - sigma_t) v(x_t, t)` along falling `sigmas`, the last of which is reached.

    `x` is fp32 and starts at the noise level `sigmas[0]`. `on_step(index, sigma, x)` is called after every step
    with the level that was left and the new x, and returns the x to go on with.
    """
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        x = x + (following - sigma) * velocity(x, sigma).to(x.dtype)
        if on_step is not None:
            x = on_step(index, sigma, x)
    return x
