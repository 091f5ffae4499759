"""Sampling: the Euler step that follows the velocity from noise to data."""

from __future__ import annotations

from snapgen.flow.arrays import Array


# Eq. 3
def euler_step(x: Array, velocity: Array, sigma: float, following: float) -> Array:
    """`x_{t-1} = x_t + (sigma_{t-1} - sigma_t) v(x_t, t)`: from the noise level `sigma` to the `following` one.

    x, velocity: B C H W, both fp32: a velocity in half precision would be scaled in it.
    """
    return x + (following - sigma) * velocity
