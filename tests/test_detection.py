"""GenEval's rule for positions, by hand."""

from __future__ import annotations

import pytest

from snapgen.detection import POSITION_THRESHOLD, Detection, Relation, relations


def thing(left: float, top: float, side: float = 10.0) -> Detection:
    return Detection("apple", None, (left, top, left + side, top + side), 1.0)


@pytest.mark.parametrize(
    ("left", "top", "expected"),
    [
        (-50, 0, {"left"}),
        (50, 0, {"right"}),
        (0, -50, {"above"}),
        (0, 50, {"below"}),
        (-50, -50, {"left", "above"}),
        (50, 50, {"right", "below"}),
        (50, 5, {"right"}),  # a little lower: no more than the threshold
        (0, 0, set()),
    ],
)
def test_where_the_first_is_from_the_second(left: float, top: float, expected: set[Relation]) -> None:
    assert relations(thing(left, top), thing(0, 0)) == expected


def test_the_way_beyond_the_threshold_must_be_more_than_half() -> None:
    threshold = POSITION_THRESHOLD * 20  # of two things of 10 px
    assert relations(thing(2 * threshold, 0), thing(0, 0)) == set()
    assert relations(thing(2 * threshold + 0.1, 0), thing(0, 0)) == {"right"}


def test_relations_are_the_same_in_pixels_and_in_fractions() -> None:
    small, large = thing(0.5, 0.375, 0.125), thing(0, 0, 0.125)
    scaled = [Detection("apple", None, tuple(128 * value for value in each.box), 1.0) for each in (small, large)]
    assert relations(small, large) == relations(*scaled) == {"right", "below"}
