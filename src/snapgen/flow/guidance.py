"""Classifier-free guidance (Ho and Salimans 2022) as pure functions, outside of the network."""

from __future__ import annotations

from snapgen.flow.arrays import Array


def guide(v_text: Array, v_negative: Array, scale: float) -> Array:
    """`v_negative + scale (v_text - v_negative)`: away from the negative text. All B C H W; scale 1 gives `v_text`."""
    return v_negative + scale * (v_text - v_negative)


def has_guidance(scale: float) -> bool:
    """Whether guidance of this scale acts at all: above 1, as everywhere in diffusers."""
    return scale > 1.0


def is_guided(sigma: float, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> bool:
    """Whether guidance acts at the noise level `sigma`; if not, only `v_text` is needed.

    It is off up to scale 1, and for `sigma` outside `interval` (ends included; Kynkaanniemi et al. 2024).
    """
    return has_guidance(scale) and interval[0] <= sigma <= interval[1]
