"""Detected objects in a picture, verdicts on it, and GenEval's rule for the relation between two objects."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from typing import Literal

Relation = Literal["left", "right", "above", "below"]
Box = tuple[float, float, float, float]  # left, top, right, bottom; y grows downwards

POSITION_THRESHOLD = 0.1  # GenEval's: centres must differ by this fraction of the sum of both boxes' sides


@dataclass(frozen=True)
class Detection:
    """One detected object."""

    name: str  # its class
    color: str | None  # None: no colour was recognised
    box: Box  # in px, or in fractions of the picture's side
    score: float  # confidence, at most 1


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is correct, and if not, the first rule that it breaks."""

    correct: bool
    rule: str = ""  # "" if correct; "missing", "count", "color" or "position"
    reason: str = ""


def relations(first: Detection, second: Detection) -> set[Relation]:
    """Where `first` is relative to `second`; empty if the centres are closer than the threshold along both axes."""
    (left, top, right, bottom), (left_2, top_2, right_2, bottom_2) = first.box, second.box
    dx, dy = (left + right - left_2 - right_2) / 2, (top + bottom - top_2 - bottom_2) / 2
    distance = hypot(dx, dy)
    beyond_x = abs(dx) - POSITION_THRESHOLD * (right - left + right_2 - left_2)
    beyond_y = abs(dy) - POSITION_THRESHOLD * (bottom - top + bottom_2 - top_2)
    found: set[Relation] = set()
    # More than half of the distance between the centres must lie beyond the threshold along the axis.
    if distance > 0 and beyond_x / distance > 0.5:
        found.add("left" if dx < 0 else "right")
    if distance > 0 and beyond_y / distance > 0.5:
        found.add("above" if dy < 0 else "below")
    return found
