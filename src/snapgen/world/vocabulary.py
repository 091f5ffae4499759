"""The words of the scene world and what they look like: nouns, colours, backgrounds; articles and plurals.

Names follow Unicode's CLDR short names where people would type them; synonyms follow CLDR keywords
and common usage. No two nouns share a synonym.

The nouns are the lines of emoji.tsv: first `NOUNS`, the world of the bundled models, then every other glyph of the font
that depicts a distinguishable thing. For those, `scripts/measure_vocabulary.py` fills and checks the last column.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Noun:
    """A thing that a scene can show; one glyph of Noto Color Emoji depicts it."""

    name: str  # canonical, singular
    glyph: str  # the emoji
    synonyms: tuple[str, ...] = ()  # singular
    tones: tuple[str, ...] = ()  # those of its own colours that hide it on a background of that colour


def _read_emoji() -> tuple[Noun, ...]:
    """The nouns of emoji.tsv."""
    lines = (files(__package__) / "emoji.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(
        Noun(row["name"], row["glyph"], *(tuple(filter(None, row[key].split(", "))) for key in ("synonyms", "tones")))
        for row in csv.DictReader(lines, delimiter="\t")
    )


EVERYTHING: tuple[Noun, ...] = _read_emoji()
NOUNS: tuple[Noun, ...] = EVERYTHING[:64]  # the bundled models' world: the first lines of the file

NOUN: dict[str, Noun] = {noun.name: noun for noun in EVERYTHING}


def named_nouns(names: Iterable[str]) -> tuple[str, ...]:
    """`names` without repetitions; "everything" stands for the whole vocabulary.

    ValueError if one is not in the vocabulary, or if there are fewer than two.
    """
    nouns = tuple(dict.fromkeys(noun for name in names for noun in (NOUN if name == "everything" else (name,))))
    for noun in nouns:
        if noun not in NOUN:
            near = difflib.get_close_matches(noun, NOUN) or [noun.name for noun in NOUNS]
            raise ValueError(f"{noun} is not in the vocabulary: {', '.join(near)}, ... or everything")
    if len(nouns) < 2:
        raise ValueError("at least two different nouns are needed")
    return nouns


def known_nouns(names: Iterable[str] | None) -> tuple[str, ...]:
    """The nouns that a judge of scenes of `names` must tell apart: `NOUNS`, then those of `names` beyond them."""
    return tuple(dict.fromkeys((*(noun.name for noun in NOUNS), *(names or ()))))


# Tints: the sRGB colour at the middle of a black -> colour -> white ramp.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 42),
    "orange": (246, 128, 18),
    "yellow": (250, 208, 28),
    "green": (42, 160, 62),
    "blue": (38, 98, 228),
    "purple": (138, 56, 190),
    "pink": (250, 112, 178),
    "brown": (126, 76, 42),
}

# The looks of a noun: its own colours, or a tint.
LOOKS: tuple[str | None, ...] = (None, *COLORS)

COLOR_SYNONYMS: dict[str, tuple[str, ...]] = {"purple": ("violet",), "gray": ("grey",)}


@dataclass(frozen=True)
class Background:
    """What lies behind the objects: one sRGB colour, or several from the top edge to the bottom edge."""

    name: str
    stops: tuple[tuple[int, int, int], ...]  # evenly spaced from top to bottom
    hides: tuple[str, ...]  # tints and tones that do not stand out from it
    phrases: tuple[str, ...] = ()  # alternatives to "on a ... background"


BACKGROUNDS: tuple[Background, ...] = (
    Background("white", ((255, 255, 255),), ()),
    Background("black", ((16, 16, 20),), ("black", "brown")),
    Background("gray", ((176, 179, 184),), ("gray",)),
    Background("red", ((226, 92, 88),), ("red", "orange", "pink", "brown")),
    Background("orange", ((250, 178, 104),), ("orange", "yellow")),
    Background("yellow", ((253, 230, 128),), ("yellow",)),
    Background("green", ((150, 212, 136),), ("green",)),
    Background("blue", ((122, 176, 244),), ("blue",)),
    Background("purple", ((190, 160, 228),), ("purple",)),
    Background("pink", ((250, 186, 210),), ("pink",)),
    Background("sky", ((110, 178, 250), (226, 243, 255)), ("sky", "blue"), ("in the sky", "against the sky")),
    Background(
        "sunset",
        ((120, 84, 160), (238, 128, 118), (253, 206, 126)),
        ("sunset", "orange", "red", "pink", "purple", "yellow"),
        ("at sunset", "against the sunset"),
    ),
    Background(
        "night",
        ((16, 20, 56), (66, 58, 122)),
        ("night", "black", "blue", "purple", "brown"),
        ("at night", "against the night sky"),
    ),
)

BACKGROUND: dict[str, Background] = {background.name: background for background in BACKGROUNDS}

NUMBERS: dict[int, str] = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}

_IRREGULAR_PLURALS = {
    **{word: word for word in ("deer", "moose", "bison", "shrimp", "squid", "sheep", "buffalo", "moai")},
    **{word: f"{word}es" for word in ("tomato", "potato", "volcano", "mosquito", "superhero", "tornado")},
    **{word: f"{word[:-1]}ves" for word in ("wolf", "elf", "leaf", "scarf", "loaf", "sheaf")},
    "cactus": "cacti",
    "child": "children",
    "die": "dice",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "tooth": "teeth",
    "bow and arrow": "bows and arrows",
    "nut and bolt": "nuts and bolts",
    "thumbs up": "thumbs up",
    "thumbs down": "thumbs down",
}

# "face with tears of joy", "person climbing": only the head noun takes the plural.
_HEAD = re.compile(r"(.+?)( (?:of|with|without|in|on) .*)|(face|man|person|woman)( \w+ing\b.*)")

_NO_VOWEL, _VOWEL = ("one", "uni", "ufo"), ("hour", "x-ray")  # by their sound, unlike their first letters


def plural(noun: str) -> str:
    """The plural of a noun of the vocabulary or one of its synonyms."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if match := _HEAD.fullmatch(noun):
        head, rest = (part for part in match.groups() if part is not None)
        return plural(head) + rest
    before, space, last = noun.rpartition(" ")
    if last in _IRREGULAR_PLURALS:
        return before + space + _IRREGULAR_PLURALS[last]
    if last.endswith("fish"):
        return noun
    if last.endswith("man"):
        return noun[:-2] + "en"
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(phrase: str) -> str:
    """`phrase` with its indefinite article: "an apple", "a red apple"; right for this vocabulary."""
    word = phrase.lower()
    vowel = word.startswith(_VOWEL) or (word[0] in "aeiou" and not word.startswith(_NO_VOWEL))
    return ("an " if vowel else "a ") + phrase


def visible(name: str, color: str | None, background: str) -> bool:
    """Whether the noun `name`, in its own colours (`color` None) or tinted, stands out from `background`."""
    hidden = BACKGROUND[background].hides
    return color not in hidden if color else not any(tone in hidden for tone in NOUN[name].tones)
