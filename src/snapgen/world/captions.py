"""Captions of scenes: a small English grammar that paraphrases each scene in many ways.

    [frame] [a|one|two|...] [size] [colour] noun [and | relation] [a] [colour] noun [background]

Held-out templates use only words of other templates, and appear in no training caption.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snapgen.detection import Relation
from snapgen.world.scene import OPPOSITE, Scene
from snapgen.world.splits import Split
from snapgen.world.vocabulary import (
    BACKGROUND,
    COLOR_SYNONYMS,
    NOUN,
    NUMBERS,
    article,
    plural,
)


@dataclass(frozen=True)
class Template:
    """A sentence pattern, its weight among the alternatives, and whether it is held out from training."""

    text: str
    weight: float = 1
    held_out: bool = False


# Around the whole content; {be} is "is" or "are".
FRAMES = (
    Template("{content}", 24),
    Template("a picture of {content}", 2),
    Template("an image of {content}", 2),
    Template("an emoji of {content}", 2),
    Template("a drawing of {content}"),
    Template("a photo of {content}"),
    Template("a picture with {content}"),
    Template("there {be} {content}", 2),
    Template("here {be} {content}"),
    Template("draw {content}"),
    Template("show me {content}"),
    Template("the picture shows {content}"),
    Template("an image with {content}", 1.5, held_out=True),
    Template("a drawing with {content}", 1.5, held_out=True),
    Template("draw a picture of {content}", 1.5, held_out=True),
    Template("show me an emoji of {content}", 1.5, held_out=True),
    Template("here is a picture of {content}", 1.5, held_out=True),
)

# Two objects whose places are not stated.
PAIRS = (
    Template("{a} and {b}", 8),
    Template("{b} and {a}", 4),
    Template("{a} with {b}"),
    Template("{a} together with {b}", 0.5),
    Template("both {a} and {b}", 2, held_out=True),
    Template("{a} and also {b}", 0.5),
)

# The same for objects that are side by side.
SIDE_BY_SIDE = (
    Template("{a} and {b}", 6),
    Template("{b} and {a}", 3),
    Template("{a} next to {b}", 2),
    Template("{a} beside {b}"),
    Template("{a} and {b} side by side"),
    Template("{a} and {b} next to each other", 2, held_out=True),
    Template("{b} with {a}"),
)

# Two objects and their relation; {r} is that of a to b, {s} that of b to a.
POSITIONS = (
    Template("{a} {r} {b}", 8),
    Template("{b} {s} {a}", 3),
    Template("{a} is {r} {b}"),
    Template("{a} {a_place} and {b} {b_place}", 2),
    Template("{b} {b_place} and {a} {a_place}"),
    Template("{a_place} is {a}, {b_place} is {b}", 1.5),
    Template("{b} is {s} {a}", 1, held_out=True),
    Template("{a_place} {a} and {b_place} {b}", 1, held_out=True),
)

RELATION_PHRASES: dict[Relation, tuple[Template, ...]] = {
    "left": (
        Template("to the left of", 4),
        Template("left of", 2),
        Template("on the left of"),
        Template("on the left side of", 1, held_out=True),
    ),
    "right": (
        Template("to the right of", 4),
        Template("right of", 2),
        Template("on the right of"),
        Template("on the right side of", 1, held_out=True),
    ),
    "above": (Template("above", 4), Template("over", 2), Template("on top of", 2)),
    "below": (Template("below", 4), Template("under", 3), Template("beneath"), Template("underneath")),
}

PLACES: dict[Relation, tuple[str, ...]] = {
    "left": ("on the left",),
    "right": ("on the right",),
    "above": ("on top", "at the top"),
    "below": ("at the bottom", "on the bottom"),
}

# Behind the content.
BACKGROUND_PHRASES = (
    Template("{content} on {a_color} background", 6),
    Template("{content} against {a_color} background", 1.5),
    Template("{content} with {a_color} background", 1.5),
    Template("{content} in front of {a_color} background"),
    Template("{content}, {color} background", 1.5),
    Template("{content} with {a_color} background behind", 1, held_out=True),
)

# Before the content, where it has no frame.
BACKGROUND_OPENINGS = (
    Template("{a_color} background with {content}", 2),
    Template("on {a_color} background, {content}"),
    Template("{a_color} background and {content}", 0.5, held_out=True),
)

SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}

# A count before a plural; {n} is the word, {d} the digit.
COUNTS = (
    Template("{n} {things}", 12),
    Template("{d} {things}", 3),
    Template("a group of {n} {things}"),
    Template("a set of {n} {things}", 0.5),
    Template("a group of {d} {things}", 0.5, held_out=True),
)
TWOS = (*COUNTS, Template("a pair of {things}", 2), Template("a couple of {things}"))

# One coloured thing, or several.
COLORED = (
    Template("{color} {thing}", 20),
    Template("{color}-colored {thing}"),
    Template("{thing} that {be} {color}"),
    Template("{thing} colored {color}", 0.5, held_out=True),
)

SYNONYM_SHARE = 0.4  # of mentions of a noun that has synonyms
BARE_SHARE = 0.2  # of unframed captions: no articles ("red apple on white background")


class _Writer:
    """Makes the random choices of one caption, from one generator and one split's templates."""

    def __init__(self, rng: np.random.Generator, split: Split) -> None:
        self._rng = rng
        self._split = split

    def chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self._rng.random() * len(options))]

    def template(self, templates: Sequence[Template], only_held_out: bool = False) -> str:
        """The text of a random template, by weight; "train" gets no held-out ones."""
        usable = [t for t in templates if t.held_out or not only_held_out]
        if self._split == "train":
            usable = [t for t in usable if not t.held_out]
        point = self._rng.random() * sum(t.weight for t in usable)
        for template in usable:
            point -= template.weight
            if point < 0:
                break
        return template.text

    def thing(self, name: str, color: str | None, size_word: str | None, many: bool) -> str:
        """The noun with its adjectives, but without article or number."""
        synonyms = NOUN[name].synonyms
        noun = self.pick(synonyms) if synonyms and self.chance(SYNONYM_SHARE) else name
        phrase = plural(noun) if many else noun
        if color:
            colored = self.template(COLORED)
            phrase = colored.format(color=self.color(color), thing=phrase, be="are" if many else "is")
        if size_word:
            phrase = f"{self.pick(SIZE_WORDS[size_word])} {phrase}"
        return phrase

    def color(self, color: str) -> str:
        synonyms = COLOR_SYNONYMS.get(color, ())
        return self.pick(synonyms) if synonyms and self.chance(0.25) else color

    def count(self, number: int, things: str) -> str:
        return self.template(TWOS if number == 2 else COUNTS).format(n=NUMBERS[number], d=number, things=things)

    def pair(self, scene: Scene, a: str, b: str) -> str:
        first, second = scene.objects
        level = abs(first.x - second.x) > abs(first.y - second.y)
        return self.template(SIDE_BY_SIDE if level else PAIRS).format(a=a, b=b)

    def position(self, relation: Relation, a: str, b: str) -> str:
        opposite = OPPOSITE[relation]
        return self.template(POSITIONS).format(
            a=a,
            b=b,
            r=self.template(RELATION_PHRASES[relation]),
            s=self.template(RELATION_PHRASES[opposite]),
            a_place=self.pick(PLACES[relation]),
            b_place=self.pick(PLACES[opposite]),
        )

    def background(self, name: str, content: str, opening: bool, bare: bool) -> str:
        phrases = BACKGROUND[name].phrases
        if phrases and self.chance(0.5):
            return f"{content} {self.pick(phrases)}"
        templates = (*BACKGROUND_PHRASES, *BACKGROUND_OPENINGS) if opening else BACKGROUND_PHRASES
        color = self.color(name)
        return self.template(templates).format(content=content, color=color, a_color=color if bare else article(color))


def write_caption(rng: np.random.Generator, scene: Scene, split: Split) -> str:
    """A true and complete caption of `scene`: names, colours, counts, and what the scene marks as stated."""
    writer = _Writer(rng, split)
    # A lone object in its own colours is never held out: there the held-out sentences are the test.
    frame = writer.template(FRAMES, only_held_out=split == "heldout" and scene.category == "single")
    unframed = frame == FRAMES[0].text
    bare = unframed and writer.chance(BARE_SHARE)
    if scene.category == "counting":
        first = scene.objects[0]
        content = writer.count(len(scene.objects), writer.thing(first.name, first.color, None, many=True))
    else:
        things = [writer.thing(placed.name, placed.color, scene.size_word, many=False) for placed in scene.objects]
        if not bare:
            things = [article(thing) for thing in things]
        if len(things) == 1:
            content = things[0] + (" emoji" if unframed and writer.chance(0.08) else "")
        elif scene.relation:
            content = writer.position(scene.relation, *things)
        else:
            content = writer.pair(scene, *things)
    sentence = scene.relation is not None and " is " in re.sub(r"that is", "", content)
    if scene.background_stated:
        content = writer.background(scene.background, content, unframed and not sentence, bare)
    many = scene.category == "counting" and not content.startswith("a ")
    caption = content if sentence else frame.format(content=content, be="are" if many else "is")
    if writer.chance(0.15):
        caption = caption[0].upper() + caption[1:]
    elif writer.chance(0.02):
        caption = caption.upper()
    return caption + ("." if writer.chance(0.12) else "")


def words_of(text: str) -> list[str]:
    """The lower-case words and digits of `text`, without punctuation."""
    return re.findall(r"[a-z]+|[0-9]", text.lower())
