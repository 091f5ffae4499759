"""The words of the scene world and what they look like: nouns, colours, backgrounds; articles and plurals.

Names follow Unicode's CLDR short names where people would type them; synonyms follow CLDR keywords
and common usage. A noun's synonyms are said of that noun alone.

`NOUNS` is the world of the bundled models. `EVERYTHING` adds what else of the font depicts a thing that can be told
from the others (emoji.tsv, whose last column `scripts/measure_vocabulary.py` fills and checks).
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
    """A thing that a scene can show, drawn by one glyph of Noto Color Emoji."""

    name: str  # canonical, singular
    glyph: str  # the emoji
    synonyms: tuple[str, ...] = ()  # singular
    tones: tuple[str, ...] = ()  # its own colours, where a background of that colour would hide it


NOUNS: tuple[Noun, ...] = (
    # Animals.
    Noun("cat", "\U0001f408", ("kitten", "kitty"), ("orange",)),
    Noun("dog", "\U0001f415", ("puppy", "doggy"), ("pink",)),
    Noun("rabbit", "\U0001f407", ("bunny", "hare"), ("gray", "pink", "sky")),
    Noun("bear", "\U0001f43b"),
    Noun("panda", "\U0001f43c", ("panda bear",), ("black",)),
    Noun("fox", "\U0001f98a", (), ("orange", "red")),
    Noun("lion", "\U0001f981", (), ("orange",)),
    Noun("pig", "\U0001f416", ("piglet", "piggy"), ("pink",)),
    Noun("cow", "\U0001f404", (), ("gray", "black")),
    Noun("frog", "\U0001f438", ("toad",), ("green",)),
    Noun("monkey", "\U0001f412", ("ape",)),
    Noun("penguin", "\U0001f427", (), ("black", "night")),
    Noun("rooster", "\U0001f413", ("chicken", "hen")),
    Noun("owl", "\U0001f989", (), ("orange", "sunset")),
    Noun("horse", "\U0001f40e", ("pony",), ("orange",)),
    Noun("elephant", "\U0001f418", (), ("gray", "purple")),
    Noun("fish", "\U0001f41f", (), ("blue", "sky")),
    Noun("whale", "\U0001f40b", (), ("blue", "sky", "gray")),
    Noun("octopus", "\U0001f419", ("squid",), ("red", "pink")),
    Noun("butterfly", "\U0001f98b", (), ("black", "night")),
    Noun("bee", "\U0001f41d", ("honeybee", "bumblebee"), ("yellow",)),
    Noun("snail", "\U0001f40c", (), ("orange", "yellow", "sunset")),
    Noun("turtle", "\U0001f422", ("tortoise",), ("green",)),
    Noun("crab", "\U0001f980", (), ("red", "orange", "sunset")),
    # Food.
    Noun("apple", "\U0001f34e", (), ("red",)),
    Noun("banana", "\U0001f34c", (), ("yellow",)),
    Noun("strawberry", "\U0001f353", (), ("red",)),
    Noun("lemon", "\U0001f34b", (), ("yellow",)),
    Noun("watermelon", "\U0001f349", ("melon",), ("red", "green")),
    Noun("pineapple", "\U0001f34d", (), ("yellow",)),
    Noun("carrot", "\U0001f955", (), ("orange", "sunset")),
    Noun("mushroom", "\U0001f344", ("toadstool",), ("red",)),
    Noun("pizza", "\U0001f355", ("pizza slice", "slice of pizza"), ("orange",)),
    Noun("hamburger", "\U0001f354", ("burger", "cheeseburger"), ("orange",)),
    Noun("cupcake", "\U0001f9c1", ("muffin",)),
    Noun("doughnut", "\U0001f369", ("donut",)),
    Noun("ice cream", "\U0001f366", ("ice cream cone",), ("orange",)),
    # Vehicles.
    Noun("car", "\U0001f697", ("automobile",), ("red",)),
    Noun("bus", "\U0001f68c", ("coach",), ("gray",)),
    Noun("truck", "\U0001f69a", ("lorry",), ("orange",)),
    Noun("bicycle", "\U0001f6b2", ("bike",), ("gray", "blue")),
    Noun("train", "\U0001f682", ("steam train", "locomotive"), ("black", "night")),
    Noun("airplane", "\u2708\ufe0f", ("plane", "aeroplane", "jet"), ("blue", "gray")),
    Noun("rocket", "\U0001f680", ("spaceship",), ("red", "gray")),
    Noun("boat", "\u26f5", ("sailboat", "ship"), ("orange", "red", "sunset")),
    # Nature and places.
    Noun("house", "\U0001f3e0", ("home",)),
    Noun("tree", "\U0001f333", (), ("green",)),
    Noun("cactus", "\U0001f335", (), ("green",)),
    Noun("rose", "\U0001f339", (), ("red",)),
    Noun("sunflower", "\U0001f33b", (), ("yellow",)),
    Noun("moon", "\U0001f319", ("crescent moon",), ("yellow",)),
    Noun("star", "\u2b50", (), ("yellow",)),
    # Things.
    Noun("heart", "\u2764\ufe0f", ("love heart",), ("red",)),
    Noun("umbrella", "\u2602\ufe0f", ("parasol",), ("blue", "purple", "night")),
    Noun("balloon", "\U0001f388", (), ("red",)),
    Noun("key", "\U0001f511", (), ("yellow",)),
    Noun("book", "\U0001f4d5", (), ("red",)),
    Noun("guitar", "\U0001f3b8", ("electric guitar",), ("red",)),
    Noun("clock", "\u23f0", ("alarm clock",), ("red",)),
    Noun("ball", "\u26bd", ("soccer ball", "football"), ("black",)),
    Noun("robot", "\U0001f916", ("bot", "android"), ("gray", "blue")),
    Noun("gift", "\U0001f381", ("present", "gift box"), ("orange", "red")),
    Noun("hat", "\U0001f3a9", ("top hat",), ("black", "night")),
    Noun("shoe", "\U0001f45f", ("sneaker",), ("blue",)),
)


def _read_emoji() -> tuple[Noun, ...]:
    """The nouns of emoji.tsv."""
    lines = (files(__package__) / "emoji.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(
        Noun(row["name"], row["glyph"], *(tuple(filter(None, row[key].split(", "))) for key in ("synonyms", "tones")))
        for row in csv.DictReader(lines, delimiter="\t")
    )


EVERYTHING: tuple[Noun, ...] = (*NOUNS, *_read_emoji())

NOUN: dict[str, Noun] = {noun.name: noun for noun in EVERYTHING}


def named_nouns(names: Iterable[str]) -> tuple[str, ...]:
    """`names`, each once, "everything" standing for all.

    ValueError for one that is not in the vocabulary, and unless there are two.
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
    """What a judge of scenes of `names` (None: of `NOUNS`) must tell apart: `NOUNS`, then the others."""
    return tuple(dict.fromkeys((*(noun.name for noun in NOUNS), *(names or ()))))


# Tints: the sRGB colour at mid luminance of a black -> colour -> white ramp.
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

COLOR_SYNONYMS: dict[str, tuple[str, ...]] = {"purple": ("violet",), "gray": ("grey",)}


@dataclass(frozen=True)
class Background:
    """What lies behind the objects: one sRGB colour, or several from the top edge to the bottom edge."""

    name: str
    stops: tuple[tuple[int, int, int], ...]  # evenly spaced from top to bottom
    hides: tuple[str, ...]  # tints and tones that must not meet it
    phrases: tuple[str, ...] = ()  # further ways to say it than "on a ... background"


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

# "face with tears of joy", "person climbing": what stands before is what there are several of.
_HEAD = re.compile(r"(.+?)( (?:of|with|without|in|on) .*)|(face|man|person|woman)( \w+ing\b.*)")

_NO_VOWEL, _VOWEL = ("one", "uni", "ufo"), ("hour", "x-ray")  # by their sound, unlike their first letters


def plural(noun: str) -> str:
    """The plural of a singular noun of the vocabulary, synonyms included."""
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
