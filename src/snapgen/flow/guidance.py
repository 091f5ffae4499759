"""Classifier-free guidance (Ho and Salimans 2022) as pure functions, outside of the network."""

from __future__ import annotations

from torch import Tensor


def guide(v_text: Tensor, v_negative: Tensor, scale: float) -> Tensor:
    """`v_negative + scale (v_text - v_negative)`: away from the negative text. All B C H W; scale 1 gives `v_text`."""
    return v_negative + scale * (v_text - v_negative)


def is_guided(sigma: float, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> bool:
    """Whether guidance acts at the noise level `sigma`; if not, only `v_text` is needed.

    It is off at scale 1, and for `sigma` outside `interval` (ends included; Kynkaanniemi et al. 2024).
    """
    return scale != 1.0 and interval[0] <= sigma <= interval[1]
