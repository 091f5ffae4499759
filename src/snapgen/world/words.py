"""The words that captions of scenes can contain: what a model that was trained on nothing else can have learned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from snapgen.world import captions
from snapgen.world.captions import Template, words_of
from snapgen.world.scene import Category
from snapgen.world.vocabulary import BACKGROUNDS, COLOR_SYNONYMS, COLORS, NOUN, NOUNS, NUMBERS, plural

if TYPE_CHECKING:
    from snapgen.world.source import SceneSettings

COUNTED = {number: word for number, word in NUMBERS.items() if number > 1}  # a lone thing has an article instead


def words_of_captions(settings: SceneSettings) -> dict[str, list[str]]:
    """The words and names in the captions of the scenes of `settings`, by kind; a kind without words is absent.

    Names of several words stand as they are: "ice cream" does not make "ice" a word.
    """
    shown = {category for category, weight in settings.mixture.items() if weight > 0}
    nouns = [NOUN[name] for name in settings.nouns or (noun.name for noun in NOUNS)]
    names = [name for noun in nouns for name in (noun.name, *noun.synonyms)]
    every = settings.split != "train"
    positions = _words(_positions(), every) if "position" in shown else []
    other = _words(_templates(shown), every)
    colored, counted, sized = (
        bool(shown & kind)
        for kind in ({"color", "counting", "position", "attribution"}, {"counting"}, {"single", "color"})
    )
    words = {
        "nouns": names,
        "plurals": [plural(name) for name in names] if counted else [],
        "colors": _with_synonyms(COLORS) if colored else [],
        "backgrounds": _with_synonyms(background.name for background in BACKGROUNDS),
        "numbers": [*COUNTED.values(), *map(str, COUNTED)] if counted else [],
        "sizes": [word for kind in captions.SIZE_WORDS.values() for word in kind] if sized else [],
        "positions": [word for word in positions if word not in other],
        "other": other,
    }
    return {kind: list(dict.fromkeys(found)) for kind, found in words.items() if found}


def _with_synonyms(colors: Iterable[str]) -> list[str]:
    return [word for color in colors for word in (color, *COLOR_SYNONYMS.get(color, ()))]


def _templates(shown: set[Category]) -> list[Template]:
    """The templates of captions of these categories, without those of `_positions`."""
    templates = [*captions.FRAMES, *captions.BACKGROUND_PHRASES, *captions.BACKGROUND_OPENINGS]
    templates += [Template(phrase) for background in BACKGROUNDS for phrase in background.phrases]
    templates += [Template("a an is"), Template("emoji")]  # articles, {be}, and what may follow a lone thing
    if "counting" in shown:
        templates += [*captions.TWOS, Template("are")]
    if shown & {"two", "attribution"}:
        templates += [*captions.PAIRS, *captions.SIDE_BY_SIDE]
    if shown & {"color", "counting", "position", "attribution"}:
        templates += captions.COLORED
    return templates


def _positions() -> list[Template]:
    """The templates that say what stands where."""
    phrases = [phrase for phrases in captions.RELATION_PHRASES.values() for phrase in phrases]
    places = [Template(place) for places in captions.PLACES.values() for place in places]
    return [*phrases, *places, *captions.POSITIONS]


def _words(templates: Sequence[Template], every: bool) -> list[str]:
    """The words of `templates`, in order, without their fields; of the held-out ones too with `every`."""
    texts = (template.text for template in templates if every or not template.held_out)
    return list(dict.fromkeys(word for text in texts for word in words_of(re.sub(r"\{\w+\}", " ", text))))
