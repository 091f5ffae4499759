"""Samples scenes: the things, colours, counts and relation of a category, within a split; and variants of a scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from snapgen.detection import Relation
from snapgen.world.layout import Thing, place_many, place_one, place_pair
from snapgen.world.scene import OPPOSITE, RELATIONS, Category, Placed, Scene, SizeWord
from snapgen.world.splits import Split, allowed
from snapgen.world.vocabulary import BACKGROUNDS, COLORS, NOUNS, visible

_NAMES = [noun.name for noun in NOUNS]
_COLORS = list(COLORS)
_BACKGROUNDS = [background.name for background in BACKGROUNDS if background.name != "white"]

# With these, two thirds of the pictures whose captions name no background have a white one.
WHITE_SHARE = 0.42  # of all pictures
WHITE_STATED = 0.25  # of pictures on white
OTHER_STATED = 0.72  # of pictures on any other background

SIZE_STATED = 0.15  # of lone objects
COUNTED_COLORED = 0.25  # of counting scenes
POSITION_COLORED = 0.2  # of position scenes

DRAWS = 10_000  # attempts after which a scene is assumed not to exist

T = TypeVar("T")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, uniformly at random."""
    return options[int(rng.random() * len(options))]


def draw_scene(rng: np.random.Generator, category: Category, split: Split, names: Sequence[str] | None = None) -> Scene:
    """Samples a scene of `category` allowed in `split`, of things called `names` (default: `NOUNS`).

    ValueError if so few names allow no such scene.
    """
    for _ in range(DRAWS):
        scene = _draw(rng, category, names or _NAMES)
        if all(visible(o.name, o.color, scene.background) for o in scene.objects) and allowed(scene, split):
            return scene
    raise ValueError(f"{', '.join(names or _NAMES)} have no {category} scene in the split {split}: name more nouns")


def _draw(rng: np.random.Generator, category: Category, names: Sequence[str]) -> Scene:
    background = _background(rng)
    stated = bool(rng.random() < (WHITE_STATED if background == "white" else OTHER_STATED))
    if category in ("single", "color"):
        thing = (pick(rng, names), pick(rng, _COLORS) if category == "color" else None)
        size_word: SizeWord | None = pick(rng, ("small", "big")) if rng.random() < SIZE_STATED else None
        return Scene(category, place_one(rng, thing, size_word), background, stated, size_word=size_word)
    if category == "counting":
        thing = (pick(rng, names), pick(rng, _COLORS) if rng.random() < COUNTED_COLORED else None)
        return Scene(category, place_many(rng, thing, 2 + int(rng.random() * 4)), background, stated)
    first, second = _two_different(rng, names)
    colored = category == "attribution" or (category == "position" and rng.random() < POSITION_COLORED)
    colors: tuple[str | None, str | None] = _two_different(rng, _COLORS) if colored else (None, None)
    things = (first, colors[0]), (second, colors[1])
    if category == "position":
        relation: Relation = pick(rng, RELATIONS)
        return Scene(category, place_pair(rng, *things, relation), background, stated, relation)
    return Scene(category, place_pair(rng, *things, _hidden_relation(rng)), background, stated)


def _background(rng: np.random.Generator) -> str:
    return "white" if rng.random() < WHITE_SHARE else pick(rng, _BACKGROUNDS)


def _hidden_relation(rng: np.random.Generator) -> Relation:
    """The relation where captions state none: mostly side by side."""
    return pick(rng, ("left", "right") if rng.random() < 0.75 else ("above", "below"))


def _two_different(rng: np.random.Generator, options: Sequence[T]) -> tuple[T, T]:
    first = int(rng.random() * len(options))
    second = (first + 1 + int(rng.random() * (len(options) - 1))) % len(options)
    return options[first], options[second]


def draw_twin(rng: np.random.Generator, scene: Scene, split: Split, names: Sequence[str] | None = None) -> Scene:
    """`scene` with exactly one stated attribute changed: a hard negative.

    The change is one of: another noun (of `names`, default `NOUNS`), another colour, the two colours swapped, another
    count, the relation reversed or turned, another size word, another background. Only what captions state
    changes, so no caption of one is true of the other. A "train" twin contains no held-out composition.
    """
    changes: list[Callable[[np.random.Generator, Scene], Scene]] = [partial(_other_noun, names=names or _NAMES)]
    colored = scene.objects[0].color is not None
    if colored:
        changes.append(_other_color)
    if scene.category == "counting":
        changes += [_other_count] * 3
    elif colored and len(scene.objects) == 2:
        changes += [_swapped_colors] * 3
    if scene.relation:
        changes += [_reversed_relation] * 3 + [_other_relation]
    if scene.size_word:
        changes.append(_other_size)
    if scene.background_stated:
        changes.append(_other_background)
    twin_split: Split = "train" if split == "train" else "all"
    while True:
        twin = pick(rng, changes)(rng, scene)
        # The change may hide a thing in front of its background: then sample again.
        if all(visible(o.name, o.color, twin.background) for o in twin.objects) and allowed(twin, twin_split):
            return twin


def draw_mistake(rng: np.random.Generator, scene: Scene, names: Sequence[str] | None = None) -> Scene:
    """`scene` with one mistake in what its category is about, whatever the split.

    single: another noun (of `names`, default `NOUNS`). color: another colour. counting: one more or one less. two:
    one of the nouns replaced. position: the relation reversed, that is, the nouns swapped. attribution: the colours
    swapped.
    """
    changes: dict[Category, Callable[[np.random.Generator, Scene], Scene]] = {
        "single": partial(_other_noun, names=names or _NAMES),
        "color": _other_color,
        "counting": _next_count,
        "two": partial(_other_noun, names=names or _NAMES),
        "position": _reversed_relation,
        "attribution": _swapped_colors,
    }
    while True:
        mistake = changes[scene.category](rng, scene)
        if all(visible(o.name, o.color, mistake.background) for o in mistake.objects):
            return mistake


def draw_alike(rng: np.random.Generator, scene: Scene, other: Scene) -> Scene:
    """Another scene that fits the captions of `scene`: a new layout, and a new background if none is stated.

    The things of `other` stand out from a new background too, so that it can get the same one.
    """
    things, background = _things(scene), scene.background
    while not scene.background_stated:
        background = _background(rng)
        if all(visible(*thing, background) for thing in (*things, *_things(other))):
            break
    if scene.category == "counting":
        objects = place_many(rng, things[0], len(things))
    elif len(things) == 1:
        objects = place_one(rng, things[0], scene.size_word)
    else:
        objects = place_pair(rng, things[0], things[1], scene.relation or _hidden_relation(rng))
    return replace(scene, objects=objects, background=background)


def _things(scene: Scene) -> list[Thing]:
    return [(placed.name, placed.color) for placed in scene.objects]


def _with(scene: Scene, objects: Sequence[Placed]) -> Scene:
    return replace(scene, objects=tuple(objects))


def _changed(rng: np.random.Generator, scene: Scene) -> list[int]:
    """The indices of the objects that change: all of a counted group, else one."""
    if scene.category == "counting":
        return list(range(len(scene.objects)))
    return [int(rng.random() * len(scene.objects))]


def _other_noun(rng: np.random.Generator, scene: Scene, names: Sequence[str]) -> Scene:
    name = pick(rng, [name for name in names if all(name != placed.name for placed in scene.objects)])
    changed = _changed(rng, scene)
    return _with(scene, [replace(o, name=name) if i in changed else o for i, o in enumerate(scene.objects)])


def _other_color(rng: np.random.Generator, scene: Scene) -> Scene:
    color = pick(rng, [color for color in _COLORS if all(color != placed.color for placed in scene.objects)])
    changed = _changed(rng, scene)
    return _with(scene, [replace(o, color=color) if i in changed else o for i, o in enumerate(scene.objects)])


def _swapped_colors(rng: np.random.Generator, scene: Scene) -> Scene:
    first, second = scene.objects
    return _with(scene, [replace(first, color=second.color), replace(second, color=first.color)])


def _other_count(rng: np.random.Generator, scene: Scene) -> Scene:
    count = len(scene.objects)
    return _with(scene, place_many(rng, _things(scene)[0], pick(rng, [n for n in (2, 3, 4, 5) if n != count])))


def _next_count(rng: np.random.Generator, scene: Scene) -> Scene:
    count = len(scene.objects)
    return _with(
        scene, place_many(rng, _things(scene)[0], pick(rng, [n for n in (count - 1, count + 1) if 2 <= n <= 5]))
    )


def _reversed_relation(rng: np.random.Generator, scene: Scene) -> Scene:
    assert scene.relation
    return _related(rng, scene, OPPOSITE[scene.relation])


def _other_relation(rng: np.random.Generator, scene: Scene) -> Scene:
    return _related(rng, scene, pick(rng, [relation for relation in RELATIONS if relation != scene.relation]))


def _related(rng: np.random.Generator, scene: Scene, relation: Relation) -> Scene:
    first, second = _things(scene)
    return replace(scene, objects=place_pair(rng, first, second, relation), relation=relation)


def _other_size(rng: np.random.Generator, scene: Scene) -> Scene:
    size_word: SizeWord = "big" if scene.size_word == "small" else "small"
    return replace(scene, objects=place_one(rng, _things(scene)[0], size_word), size_word=size_word)


def _other_background(rng: np.random.Generator, scene: Scene) -> Scene:
    options = [background.name for background in BACKGROUNDS if background.name != scene.background]
    return replace(scene, background=pick(rng, options))
