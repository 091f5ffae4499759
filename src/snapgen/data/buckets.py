"""Aspect-ratio buckets: a few sizes of about the same area; every picture is cropped to the nearest one.

SDXL trains with such a list (Podell et al. 2023, appendix I): pictures lose only a narrow border, and those of one
size share a batch.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from snapgen.config import Settings


class BucketSettings(Settings):
    """The choice of bucket sizes."""

    step: int = Field(default=64, gt=0, multiple_of=32)  # px; both sides are multiples of it
    max_ratio: float = Field(default=4.0, ge=1)  # longer side / shorter side; more extreme pictures are cropped to it


def bucket_sizes(resolution: int, settings: BucketSettings) -> list[tuple[int, int]]:
    """Widths and heights in px, from the tallest to the widest, with the square in the middle.

    The longer side grows by `step`. The shorter is the largest multiple of `step` that keeps the area within that of
    the square of `resolution` px (a multiple of `step`), so that no bucket needs more memory than the square.
    """
    side, step = resolution // settings.step, settings.step
    pairs = [(longer, side**2 // longer) for longer in range(side, side**2 + 1)]
    wide = [(longer * step, shorter * step) for longer, shorter in pairs if longer <= settings.max_ratio * shorter]
    return [(height, width) for width, height in reversed(wide[1:])] + wide


def nearest_buckets(sizes: np.ndarray, buckets: list[tuple[int, int]]) -> np.ndarray:
    """The index of the nearest bucket by log aspect ratio (N) for each picture size (N 2: width, height).

    `buckets` are sorted from tall to wide; half-way between two, the taller one wins. A size of 0 (a picture whose
    header cannot be read) counts as a square.
    """
    ratios = np.log([width / height for width, height in buckets])
    known = np.where((sizes > 0).all(axis=1, keepdims=True), sizes, 1).astype(np.float64)
    return np.searchsorted((ratios[1:] + ratios[:-1]) / 2, np.log(known[:, 0] / known[:, 1]))
