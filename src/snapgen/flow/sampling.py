"""Sampling: the Euler step that follows the velocity from noise to data."""

from __future__ import annotations

from torch import Tensor


# Eq. 3
def euler_step(x: Tensor, velocity: Tensor, sigma: float, following: float) -> Tensor:
    """`x_{t-1} = x_t + (sigma_{t-1} - sigma_t) v(x_t, t)`: from the noise level `sigma` to the `following` one.

    x, velocity: B C H W; the step is taken in the dtype of `x`.
    """
    return x + (following - sigma) * velocity.to(x.dtype)
