"""GenEval's rules on detections that are made up, one test a rule."""

import numpy as np
import pytest

from snapgen.detection import Detection, Relation, Verdict, relations
from snapgen.evaluation.statistics import effective_tally, interval_of_mean, wilson
from snapgen.world.judge.detector import Sighting
from snapgen.world.judge.verdicts import alike, judge
from snapgen.world.scene import Category, Placed, Scene


def seen(name: str, color: str | None = None, x: float = 0.5, y: float = 0.5, size: float = 0.2) -> Detection:
    return Detection(name, color, (x - size / 2, y - size / 2, x + size / 2, y + size / 2), 0.9)


def asked(category: Category, *things: tuple[str, str | None], relation: Relation | None = None) -> Scene:
    return Scene(category, tuple(Placed(*thing, 0.5, 0.5, 0.2) for thing in things), "white", False, relation)


def verdict(scene: Scene, *objects: Detection) -> Verdict:
    return judge(scene, Sighting(objects, "white"))


def test_a_single_object_may_have_company_and_any_colour() -> None:
    scene = asked("single", ("cat", None))
    assert verdict(scene, seen("cat")) == Verdict(True)
    assert verdict(scene, seen("dog"), seen("cat", "blue"), seen("cat")).correct
    assert verdict(scene, seen("dog", "red")) == Verdict(False, "missing", "expected 1 cat, found red dog")
    assert verdict(scene).reason == "expected 1 cat, found nothing"


def test_two_objects_must_both_be_there() -> None:
    scene = asked("two", ("cat", None), ("dog", None))
    assert verdict(scene, seen("dog"), seen("cat")).correct
    assert verdict(scene, seen("dog"), seen("dog")).rule == "missing"


@pytest.mark.parametrize(("number", "rule"), [(0, "count"), (2, "count"), (3, ""), (4, "count")])
def test_counting_is_exact(number: int, rule: str) -> None:
    scene = asked("counting", *[("cat", None)] * 3)
    assert verdict(scene, *[seen("cat")] * number, seen("dog")).rule == rule


def test_the_colour_is_that_of_the_best_object_of_the_noun() -> None:
    scene = asked("color", ("cat", "blue"))
    assert verdict(scene, seen("cat", "blue"), seen("cat", "red")).correct
    wrong = verdict(scene, seen("cat", "red"), seen("cat", "blue"))
    assert wrong == Verdict(False, "color", "expected cat in blue, found it in red")
    assert verdict(scene, seen("cat")).reason == "expected cat in blue, found it in its own colours"


def test_attribution_takes_each_colour_to_its_own_object() -> None:
    scene = asked("attribution", ("cat", "blue"), ("dog", "red"))
    assert verdict(scene, seen("dog", "red"), seen("cat", "blue")).correct
    assert verdict(scene, seen("dog", "blue"), seen("cat", "red")).rule == "color"
    assert verdict(scene, seen("cat", "blue")).rule == "missing"


def test_own_colours_that_are_like_a_tint_count_as_it() -> None:
    assert alike("heart", "red")
    assert not alike("frog", "yellow")
    assert verdict(asked("color", ("heart", "red")), seen("heart")).correct
    assert not verdict(asked("color", ("heart", "blue")), seen("heart")).correct


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.2, 0.5, {"left"}),
        (0.8, 0.5, {"right"}),
        (0.5, 0.2, {"above"}),
        (0.5, 0.8, {"below"}),
        (0.5, 0.5, set()),
        (0.465, 0.5, set()),  # closer than 0.1 of both widths together
        (0.46, 0.5, set()),  # 0.04 threshold: nothing is beyond it
        (0.42, 0.5, set()),  # half of the way is beyond it: more than half is needed
        (0.41, 0.5, {"left"}),
        (0.1, 0.1, {"left", "above"}),  # a diagonal is both
        (0.1, 0.4, {"left"}),
    ],
)
def test_relations_are_by_centres_beyond_a_tenth_of_both_sizes(x: float, y: float, expected: set[str]) -> None:
    assert relations(seen("cat", x=x, y=y), seen("dog")) == expected


def test_position() -> None:
    scene = asked("position", ("cat", None), ("dog", None), relation="left")
    assert verdict(scene, seen("dog", x=0.8), seen("cat", x=0.2)).correct
    wrong = verdict(scene, seen("dog", x=0.2), seen("cat", x=0.8))
    assert wrong == Verdict(False, "position", "expected cat left of dog, found right")
    assert "no clear relation" in verdict(scene, seen("dog"), seen("cat")).reason
    assert verdict(scene, seen("dog", x=0.8)).rule == "missing"


def test_wilson_intervals() -> None:
    # Newcombe 1998, Table I, method 3: 81 of 263, and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    low, high = interval_of_mean([(50, 50)] * 3 + [(0, 50)] * 3)
    assert 0.46 < low < 0.5 < high < 0.54
    assert interval_of_mean([(81, 263)]) == pytest.approx(wilson(81, 263))


def test_pictures_of_one_prompt_count_as_far_as_they_differ() -> None:
    assert effective_tally([[True], [False], [False], [True]]) == pytest.approx((2, 4))  # one each: all independent
    assert effective_tally([[True] * 5, [False] * 5, [False] * 5]) == pytest.approx((1, 3))  # copies: only the prompts
    assert effective_tally([[True, False], [False, True]]) == pytest.approx((2, 4))  # prompts are alike: all pictures
    assert effective_tally([[False] * 3] * 4) == (0, 4)  # nothing is known of the spread: the prompts
    assert effective_tally([[True, False, True]]) == pytest.approx((2 / 3, 1))  # nor of one prompt


def test_the_effective_count_gives_the_spread_of_simulated_benchmarks() -> None:
    generator = np.random.default_rng(0)
    means, spreads = [], []
    for _ in range(2000):
        chances = generator.beta(0.6, 0.9, size=40)  # easy prompts and hard ones
        groups = (generator.random((40, 4)) < chances[:, None]).tolist()
        right, count = effective_tally(groups)
        share = right / count
        assert share == pytest.approx(np.mean(groups))
        means.append(share)
        spreads.append(share * (1 - share) / count)
    assert np.mean(spreads) == pytest.approx(np.var(means), rel=0.1)
    assert np.var(means) > 1.5 * np.mean(means) * (1 - np.mean(means)) / 160  # what independent pictures would have
