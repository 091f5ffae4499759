"""The straight path between data and noise that rectified flow follows (Sec. 3.3, Eq. 1-2)."""

from __future__ import annotations

from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """`values` of shape (B,), reshaped to broadcast over `like` (B ...)."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


# Eq. 1
def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """`x_t = (1 - sigma) x_0 + sigma eps`. x0, noise: B ...; sigma: (B,) in [0, 1]."""
    sigma = per_sample(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


# Eq. 2
def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """`eps - x_0`: what the network predicts; the derivative of Eq. 1 with respect to sigma."""
    return noise - x0


def predict_x0(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The data that `x` and its velocity point to: `x_t - sigma v`. sigma: (B,)."""
    return x - per_sample(sigma, x) * velocity
