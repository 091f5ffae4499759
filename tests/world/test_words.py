"""The list of words, compared with captions: all of theirs, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from snapgen.pipeline.words import unknown_words
from snapgen.world.captions import words_of, write_caption
from snapgen.world.scene import CATEGORIES
from snapgen.world.source import SceneSettings, SceneSource
from snapgen.world.vocabulary import NOUNS

ALL = dict.fromkeys(CATEGORIES, 1.0)
KINDS = ["nouns", "plurals", "colors", "backgrounds", "numbers", "sizes", "positions", "other"]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"mixture": ALL}, KINDS),
        ({"mixture": ALL, "split": "all"}, KINDS),
        ({"mixture": {"single": 1.0}}, ["nouns", "backgrounds", "sizes", "other"]),
        ({"mixture": {"color": 1.0, "two": 0.0}}, ["nouns", "colors", "backgrounds", "sizes", "other"]),
        ({"mixture": {"counting": 1.0}}, ["nouns", "plurals", "colors", "backgrounds", "numbers", "other"]),
        ({"mixture": {"two": 1.0}}, ["nouns", "backgrounds", "other"]),
        ({"mixture": {"position": 1.0}}, ["nouns", "colors", "backgrounds", "positions", "other"]),
        ({"mixture": {"attribution": 1.0}}, ["nouns", "colors", "backgrounds", "other"]),
    ],
)
def test_the_list_holds_the_words_of_captions(changes: dict[str, Any], kinds: list[str]) -> None:
    settings = SceneSettings(nouns=("frog", "ice cream", "key", "rabbit", "penguin"), count=6_000, **changes)
    source = SceneSource(settings)
    words = source.words()
    assert list(words) == kinds
    captions = [source.caption(index, 0) for index in range(len(source))]
    assert unknown_words(captions, words) == []
    # The singular of a plural is listed even where all captions count.
    found = {word for text in (*captions, *words["nouns"]) for word in words_of(text)}
    assert {part for listed in words.values() for word in listed for part in words_of(word)} - found == set()


def test_the_nouns_are_those_of_the_recipe() -> None:
    words = SceneSource(SceneSettings(nouns=("wolf", "rabbit"))).words()
    assert words["nouns"] == ["wolf", "rabbit", "bunny", "hare"]
    assert words["plurals"] == ["wolves", "rabbits", "bunnies", "hares"]
    assert words["colors"] == ["red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown"]
    assert {noun.name for noun in NOUNS} <= set(SceneSource(SceneSettings()).words()["nouns"])


def test_everything_can_be_listed() -> None:
    source = SceneSource(SceneSettings(nouns=("everything",), count=3_000))
    words, rng = source.words(), np.random.default_rng(0)
    assert len(words["nouns"]) > 716
    captions = [write_caption(rng, source.scene(index), "train") for index in range(len(source))]
    assert unknown_words(captions, words) == []
