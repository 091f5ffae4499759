"""The noise levels that sampling visits, in plain numbers: the same with and without torch."""

from __future__ import annotations

import numpy as np

TIMESTEP_SCALE = 1000.0  # the network is given 1000 * sigma


def sampling_levels(steps: int, shift: float) -> list[float]:
    """The levels that `steps` Euler steps visit, `steps + 1` numbers: from 1, evenly spaced before the shift, to 0.

    The shift is `s sigma / (1 + (s - 1) sigma)` (Stable Diffusion 3, Eq. 23). Each level is rounded to fp32, in which
    networks compute. With shift 3 and 4 steps: 1, 0.9, 0.75, 0.5, 0.
    """
    if steps < 1:
        raise ValueError(f"number of steps is {steps}, expected at least 1")
    even = [(steps - index) / steps for index in range(steps)]
    return [float(np.float32(shift * sigma / (1 + (shift - 1) * sigma))) for sigma in even] + [0.0]
