"""Questions that every caption of a scene answers: they test what a text encoder has understood.

They ask for the colour, place, count and size of a noun; whether it is there at all; the noun at a place or of a
colour; the background; all nouns. Where the captions leave something open, the right answer is "unstated".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from snapgen.world.scene import OPPOSITE, RELATIONS, Scene
from snapgen.world.vocabulary import BACKGROUNDS, COLORS, NUMBERS

Kind = Literal["there", "color", "place", "count", "size", "at", "colored", "background", "nouns"]
KINDS: tuple[Kind, ...] = get_args(Kind)

UNSTATED = "unstated"
WHOLE = "the scene"  # what "background" and "nouns" ask about


@dataclass(frozen=True)
class Question:
    """One question and its answer."""

    kind: Kind
    subject: str  # a noun; for "at" a relation; for "colored" a colour; `WHOLE`
    answers: tuple[str, ...]  # a single one, except for "nouns": every different noun


def subjects(nouns: Sequence[str]) -> tuple[str, ...]:
    """Everything that questions about scenes of `nouns` can be about."""
    return (*nouns, *RELATIONS, *COLORS, WHOLE)


def choices(nouns: Sequence[str]) -> dict[Kind, tuple[str, ...]]:
    """All possible answers of each kind."""
    return {
        "there": ("no", "yes"),
        "color": (UNSTATED, *COLORS),
        "place": (UNSTATED, *RELATIONS),
        "count": tuple(str(number) for number in NUMBERS),
        "size": (UNSTATED, "small", "big"),
        "at": tuple(nouns),
        "colored": tuple(nouns),
        "background": (UNSTATED, *(background.name for background in BACKGROUNDS)),
        "nouns": tuple(nouns),
    }


def ask(scene: Scene, others: Iterable[str] = ()) -> list[Question]:
    """All questions about `scene`; "at" only if a relation is stated, "colored" only for stated colours.

    "there" is asked for its own nouns and for `others`.
    """
    things = {placed.name: placed for placed in scene.objects}  # in the order of the caption
    questions = [
        Question("background", WHOLE, (scene.background if scene.background_stated else UNSTATED,)),
        Question("nouns", WHOLE, tuple(things)),
        *(Question("there", name, ("yes" if name in things else "no",)) for name in dict.fromkeys((*things, *others))),
    ]
    places: tuple[str, ...] = (UNSTATED,) * len(things)
    if scene.relation:
        places = (scene.relation, OPPOSITE[scene.relation])
        questions += [Question("at", place, (name,)) for place, name in zip(places, things, strict=True)]
    questions += [Question("colored", placed.color, (name,)) for name, placed in things.items() if placed.color]
    for (name, placed), place in zip(things.items(), places, strict=True):
        count = sum(other.name == name for other in scene.objects)
        questions += [
            Question("color", name, (placed.color or UNSTATED,)),
            Question("place", name, (place,)),
            Question("count", name, (str(count),)),
            Question("size", name, (scene.size_word or UNSTATED,)),
        ]
    return questions


def encode_questions(scenes: Sequence[Scene], nouns: Sequence[str]) -> dict[Kind, tuple[Tensor, Tensor, Tensor]]:
    """All questions about `scenes` of `nouns`, by kind: scenes, subjects and truths of the Q questions of a kind.

    Scenes and subjects are indices, Q. Truths are indices of answers, Q, except for "nouns": 0 or 1 per answer, Q A.

    Each scene is also asked whether the nouns of another scene are there: a reader must learn to find a noun before it
    can answer anything else about it.
    """
    subject_of = {subject: number for number, subject in enumerate(subjects(nouns))}
    answer_of = {
        kind: {answer: number for number, answer in enumerate(given)} for kind, given in choices(nouns).items()
    }
    found: dict[Kind, list[tuple[int, int, list[int]]]] = {}
    for index, scene in enumerate(scenes):
        following = scenes[(index + 2) % len(scenes)]  # not the next: twins are neighbours
        for question in ask(scene, [placed.name for placed in following.objects]):
            answers = [answer_of[question.kind][answer] for answer in question.answers]
            found.setdefault(question.kind, []).append((index, subject_of[question.subject], answers))
    encoded = {}
    for kind, rows in found.items():
        truth = torch.tensor([answers[0] for _, _, answers in rows])
        if kind == "nouns":
            truth = torch.zeros(len(rows), len(nouns))
            for number, (_, _, answers) in enumerate(rows):
                truth[number, answers] = 1.0
        encoded[kind] = (torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]), truth)
    return encoded
