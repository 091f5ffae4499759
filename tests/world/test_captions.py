"""Captions: grammatical, true, complete, varied, and without held-out templates in training."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import pytest

from snapgen.world.captions import (
    BACKGROUND_OPENINGS,
    BACKGROUND_PHRASES,
    COLORED,
    COUNTS,
    FRAMES,
    PAIRS,
    PLACES,
    POSITIONS,
    RELATION_PHRASES,
    SIDE_BY_SIDE,
    SIZE_WORDS,
    TWOS,
    Template,
    words_of,
)
from snapgen.world.scene import Scene
from snapgen.world.source import SceneSettings, SceneSource
from snapgen.world.splits import Split
from snapgen.world.vocabulary import (
    BACKGROUNDS,
    COLOR_SYNONYMS,
    COLORS,
    EVERYTHING,
    NOUN,
    NOUNS,
    NUMBERS,
    article,
    plural,
)

Told = tuple[Scene, str]

SPLITS: tuple[Split, ...] = get_args(Split)


def all_words() -> list[str]:
    """Every word that a caption may contain, in lower case, sorted; the tables are the whole grammar."""
    return sorted({word for text in _texts() for word in words_of(text)})


def _texts() -> Iterator[str]:
    tables: Iterable[Sequence[Template]] = (
        FRAMES,
        PAIRS,
        SIDE_BY_SIDE,
        POSITIONS,
        BACKGROUND_PHRASES,
        BACKGROUND_OPENINGS,
        TWOS,
        COLORED,
        *RELATION_PHRASES.values(),
    )
    for templates in tables:
        yield from (re.sub(r"{\w+}", " ", template.text) for template in templates)
    for noun in NOUN.values():
        for name in (noun.name, *noun.synonyms):
            yield from (name, plural(name))
    for background in BACKGROUNDS:
        yield from (background.name, *background.phrases)
    for words in (*PLACES.values(), *SIZE_WORDS.values(), *COLOR_SYNONYMS.values()):
        yield from words
    yield from COLORS
    for number, word in NUMBERS.items():
        yield from (word, str(number))
    yield "a an is are emoji"


@pytest.fixture(scope="module")
def told() -> list[Told]:
    """(scene, caption) of many scenes of every split."""
    told = []
    for split in SPLITS:
        source = SceneSource(SceneSettings(count=600, split=split))
        for index in range(600):
            scene = source.scene(index)
            told += [(scene, source.describe(scene, variant, index)) for variant in (0, 1)]
    return told


def test_the_vocabulary_has_no_clashes() -> None:
    words = [word for noun in EVERYTHING for word in (noun.name, *noun.synonyms)]
    assert (len(NOUNS), len(EVERYTHING)) == (64, 716)
    assert len(set(words)) == len(words)
    assert not {part for word in words for part in word.split()} & {*COLORS, *COLOR_SYNONYMS, "black", "white"}
    assert all(re.fullmatch("[a-z][a-z -]*[a-z]", word) for word in words)
    assert len({noun.glyph.replace("\ufe0f", "") for noun in EVERYTHING}) == 716
    assert len(all_words()) < 2000


def test_tones_are_colours_that_some_background_has() -> None:
    hidden = {tone for background in BACKGROUNDS for tone in background.hides}
    assert {tone for noun in EVERYTHING for tone in noun.tones} <= hidden


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("cat", "cats"),
        ("strawberry", "strawberries"),
        ("monkey", "monkeys"),
        ("bus", "buses"),
        ("fox", "foxes"),
        ("fish", "fish"),
        ("cactus", "cacti"),
        ("octopus", "octopuses"),
        ("slice of pizza", "slices of pizza"),
        ("ice cream", "ice creams"),
        ("puppy", "puppies"),
        ("old woman", "old women"),
        ("policeman", "policemen"),
        ("person in a tuxedo", "people in a tuxedo"),
        ("person lifting weights", "people lifting weights"),
        ("frying pan", "frying pans"),
        ("face with tears of joy", "faces with tears of joy"),
        ("loaf of bread", "loaves of bread"),
        ("jellyfish", "jellyfish"),
        ("kitchen knife", "kitchen knives"),
        ("tomato", "tomatoes"),
        ("radio", "radios"),
    ],
)
def test_plurals(noun: str, expected: str) -> None:
    assert plural(noun) == expected


def test_articles() -> None:
    assert article("apple") == "an apple"
    assert article("orange cat") == "an orange cat"
    assert article("umbrella") == "an umbrella"
    assert article("red apple") == "a red apple"
    for word in ("unicorn", "ufo", "one-piece", "house"):
        assert article(word) == f"a {word}"
    for word in ("hourglass", "x-ray", "old unicorn"):
        assert article(word) == f"an {word}"


def test_articles_agree_in_every_caption(told: list[Told]) -> None:
    for _, caption in told:
        text = caption.lower()
        assert not re.search(r"\ba [aeiou]", text), caption
        assert not re.search(r"\ban [^aeiou]", text), caption


def test_verbs_agree_in_every_caption(told: list[Told]) -> None:
    for scene, caption in told:
        text = caption.lower()
        if scene.category != "counting":
            assert " are " not in f" {text} ", caption
        assert not re.search(r"\b(there|here) is (two|three|four|five|\d)", text), caption
        assert not re.search(r"\b(there|here) are (a|an) ", text), caption


def forms(name: str, many: bool) -> set[str]:
    singular = (name, *NOUN[name].synonyms)
    return {plural(noun) for noun in singular} if many else set(singular)


def test_captions_are_true_and_complete(told: list[Told]) -> None:
    for scene, caption in told:
        text = caption.lower()
        words = words_of(text)
        counting = scene.category == "counting"
        for placed in scene.objects:
            assert any(re.search(rf"\b{form}\b", text) for form in forms(placed.name, counting)), caption
            if placed.color:
                assert any(c in words for c in (placed.color, *COLOR_SYNONYMS.get(placed.color, ()))), caption
        stated = {color for color in COLORS if color in words}
        assert stated <= {p.color for p in scene.objects} | {scene.background}, caption
        if counting:
            number = len(scene.objects)
            said = {NUMBERS[number], str(number)} | ({"pair", "couple"} if number == 2 else set())
            assert said & set(words), caption
        assert bool(set(words) & {w for ws in SIZE_WORDS.values() for w in ws}) == bool(scene.size_word), caption


def test_relations_are_told_from_either_side(told: list[Told]) -> None:
    """The phrase between the two nouns says where the first one named is; it must match the picture."""
    sides = {phrase.text: relation for relation, phrases in RELATION_PHRASES.items() for phrase in phrases}
    checked = 0
    for scene, caption in told:
        text = caption.lower()
        found = [phrase for phrase in sorted(sides, key=len, reverse=True) if f" {phrase} " in text]
        if scene.relation is None or not found:
            continue
        at = [min(text.find(f) for f in forms(p.name, False) if re.search(rf"\b{f}\b", text)) for p in scene.objects]
        first, second = scene.objects if at[0] < at[1] else scene.objects[::-1]
        dx, dy = first.x - second.x, first.y - second.y
        truth = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
        assert sides[found[0]] == truth, caption
        checked += 1
    assert checked > 150


def test_backgrounds_are_named_exactly_when_the_scene_says_so(told: list[Told]) -> None:
    for scene, caption in told:
        text = caption.lower()
        named = "background" in text or any(p in text for b in BACKGROUNDS for p in b.phrases)
        assert named == scene.background_stated, caption


def test_every_word_is_known_and_every_variant_can_differ(told: list[Told]) -> None:
    known = set(all_words())
    assert all(set(words_of(caption)) <= known for _, caption in told)
    source = SceneSource(SceneSettings(count=20))
    assert all(len({source.caption(i, v) for v in range(12)}) > 4 for i in range(20))
    assert source.caption(3, 1) == source.describe(source.scene(3), 1, 3)


@pytest.mark.slow
def test_training_captions_use_no_held_out_template() -> None:
    relations = [t for phrases in RELATION_PHRASES.values() for t in phrases]
    tables = (FRAMES, PAIRS, SIDE_BY_SIDE, BACKGROUND_PHRASES, COUNTS, COLORED, relations)
    texts = [t.text for table in tables for t in table if t.held_out]
    fixed = [
        re.sub(r"{(content|a|b|a_color|color|thing|things|n)}", ".+", text).replace("{d}", r"\d") for text in texts
    ]
    assert len(fixed) >= 10
    assert any(t.held_out for t in (*BACKGROUND_OPENINGS, *POSITIONS))
    source = SceneSource(SceneSettings(count=2500))
    captions = [source.caption(i, 0).lower() for i in range(2500)]
    heldout = SceneSource(SceneSettings(count=2500, split="heldout"))
    others = [heldout.caption(i, 0).lower() for i in range(2500)]
    for pattern in map(re.compile, fixed):
        assert not any(pattern.search(caption) for caption in captions), pattern
        assert any(pattern.search(caption) for caption in others), pattern


def test_heldout_scenes_of_one_plain_object_use_held_out_sentences() -> None:
    frames = [t.text.replace("{content}", "") for t in FRAMES if t.held_out]
    source = SceneSource(SceneSettings(count=200, split="heldout", mixture={"single": 1.0}))
    assert all(any(source.caption(i, 0).lower().startswith(f) for f in frames) for i in range(200))


def test_a_twin_is_told_in_other_words_than_its_scene() -> None:
    source = SceneSource(SceneSettings(count=500))
    for index in range(500):
        assert words_of(source.caption(index, 0)) != words_of(source.describe(source.twin(index), 0, index))
