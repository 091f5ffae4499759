from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from snapgen.world.captions import write_caption
from snapgen.world.composition import draw_scene
from snapgen.world.questions import KINDS, UNSTATED, WHOLE, Question, ask, choices, encode_questions, subjects
from snapgen.world.scene import CATEGORIES, Placed, Scene
from snapgen.world.vocabulary import COLORS, NOUNS

NAMES = [noun.name for noun in NOUNS]


def test_a_position_scene_is_asked_about_from_both_sides() -> None:
    things = Placed("cat", "red", 0.2, 0.5, 0.3), Placed("dog", "blue", 0.7, 0.5, 0.3)
    scene = Scene("position", things, "white", True, "left")
    assert set(ask(scene, ["cat", "frog"])) == {
        *(Question("there", *pair) for pair in (("cat", ("yes",)), ("dog", ("yes",)), ("frog", ("no",)))),
        Question("background", WHOLE, ("white",)),
        Question("nouns", WHOLE, ("cat", "dog")),
        Question("at", "left", ("cat",)),
        Question("at", "right", ("dog",)),
        *(Question("color", *pair) for pair in (("cat", ("red",)), ("dog", ("blue",)))),
        *(Question("place", *pair) for pair in (("cat", ("left",)), ("dog", ("right",)))),
        *(Question("colored", *pair) for pair in (("red", ("cat",)), ("blue", ("dog",)))),
        *(Question("count", name, ("1",)) for name in ("cat", "dog")),
        *(Question("size", name, (UNSTATED,)) for name in ("cat", "dog")),
    }


def test_what_no_caption_says_is_unstated() -> None:
    things = tuple(Placed("apple", None, x, 0.5, 0.2) for x in (0.2, 0.5, 0.8))
    answers = {question.kind: question.answers for question in ask(Scene("counting", things, "red", False))}
    expected = {"color": UNSTATED, "place": UNSTATED, "size": UNSTATED, "background": UNSTATED, "count": "3"}
    assert {kind: answers[kind] for kind in expected} == {kind: (answer,) for kind, answer in expected.items()}
    assert answers["nouns"] == ("apple",) and "at" not in answers


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_answer_but_unstated_stands_in_the_caption(category: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = draw_scene(rng, category, "train")  # type: ignore[arg-type]
        words = set(re.findall(r"[a-z]+", write_caption(rng, scene, "train").lower()))
        stated = [a for q in ask(scene) if q.kind == "color" for a in q.answers if a in COLORS and a != "purple"]
        assert words.issuperset(stated)


def test_encoded_questions_are_the_asked_ones() -> None:
    rng = np.random.default_rng(1)
    scenes = [draw_scene(rng, category, "train") for category in CATEGORIES]
    encoded, about, given = encode_questions(scenes, NAMES), subjects(NAMES), choices(NAMES)
    assert list(given) == list(KINDS) and set(encoded) == set(KINDS)
    decoded = set()
    for kind, (samples, numbers, truth) in encoded.items():
        for sample, subject, right in zip(samples.tolist(), numbers.tolist(), truth, strict=True):
            places = [int(right)] if truth.ndim == 1 else torch.nonzero(right).flatten().tolist()
            answers = frozenset(given[kind][place] for place in places)
            decoded.add((sample, kind, about[subject], answers))
    asked = {(i, q.kind, q.subject, frozenset(q.answers)) for i, scene in enumerate(scenes) for q in ask(scene)}
    assert decoded >= asked
    absent = {(i, subject) for i, kind, subject, answers in decoded - asked if (kind, answers) == ("there", {"no"})}
    assert len(absent) == len(decoded - asked) > 0
    assert all(subject not in {placed.name for placed in scenes[i].objects} for i, subject in absent)
