"""The task loss of flow matching (Eq. 2), one value per sample."""

from __future__ import annotations

from torch import Tensor

from snapgen.flow.path import velocity_target


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each sample, in fp32: B ... -> B."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


# Eq. 2
def flow_matching(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """`||(eps - x_0) - v||^2` for each sample: velocities, data and noise B C H W -> B."""
    return squared_error(velocity, velocity_target(x0, noise))
