"""Tests the judges of the scene benchmark on pictures with known verdicts, so that no judge fails silently.

Ground-truth renders must be read exactly; pictures of something else must be judged wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from snapgen.world.judge.detector import Sighting
from snapgen.world.judge.verdicts import judge
from snapgen.world.prompts import ScenePrompt
from snapgen.world.scene import CATEGORIES
from snapgen.world.source import background_picture
from snapgen.world.vocabulary import BACKGROUNDS, COLORS

MIN_ACCURACY = 0.98  # the detector's, in every category
MAX_FLOOR = 0.10  # mean score of pictures that show something else


def reads_exactly(truth: ScenePrompt, seen: Sighting) -> bool:
    """Whether the detector saw everything in a render, background included, and nothing else."""
    return counts_exactly(truth, seen) and seen.background == truth.scene.background


def counts_exactly(truth: ScenePrompt, seen: Sighting) -> bool:
    """Whether all things of a render were seen correctly, and no others."""
    return judge(truth.scene, seen).correct and len(seen.objects) == len(truth.scene.objects)


def check_accuracy(accuracy: dict[str, float], side: int) -> None:
    """Raises ValueError if scores by this detector would be meaningless."""
    worst = min(accuracy, key=lambda category: accuracy[category])
    if accuracy[worst] < MIN_ACCURACY:
        raise ValueError(
            f"no score: the detector reads only {accuracy[worst]:.1%} of ground-truth renders of {side} px right in "
            f"{worst}, at least {MIN_ACCURACY:.0%} are needed"
        )


def check_floor(floor: dict[str, float]) -> None:
    """Raises ValueError if pictures of something else are judged right too often."""
    for name, score in floor.items():
        if score > MAX_FLOOR:
            raise ValueError(f"no score: {name} pictures reach {score:.1%}, more than {MAX_FLOOR:.0%}")


def floor_of(
    truths: Sequence[ScenePrompt], sightings: Sequence[Sighting], nothing: Sequence[Sighting]
) -> dict[str, float]:
    """The scores of pictures of something else: shuffled renders of `truths`, and random ones (`nothing`)."""
    cycled = [nothing[i % len(nothing)] for i in range(len(truths))]
    return {
        "shuffled": score_of(truths, shuffled(truths, sightings))["score"],
        "random": score_of(truths, cycled)["score"],
    }


def shuffled(prompts: Sequence[ScenePrompt], sightings: Sequence[Sighting]) -> list[Sighting]:
    """For each prompt the sighting of the next one of its category with other nouns; an empty one if there is none."""
    nouns = [{placed.name for placed in prompt.scene.objects} for prompt in prompts]
    moved: list[Sighting] = []
    for i, prompt in enumerate(prompts):
        following = [*range(i + 1, len(prompts)), *range(i)]
        others = (j for j in following if prompts[j].category == prompt.category and nouns[j] != nouns[i])
        other = next(others, None)
        moved.append(Sighting((), None) if other is None else sightings[other])
    return moved


def random_pictures(side: int) -> list[np.ndarray]:
    """Pictures without objects: coloured ellipses on every background, and fine and coarse noise."""
    rng = np.random.default_rng(0)
    pictures = []
    for number, background in enumerate(BACKGROUNDS):
        blobs = Image.fromarray(background_picture(background.name, 128))
        canvas = ImageDraw.Draw(blobs)
        for _ in range(1 + number % 3):
            width, height, left, top = rng.integers((24, 24, 2, 2), (60, 60, 64, 64)).tolist()
            color = list(COLORS.values())[int(rng.integers(len(COLORS)))]
            canvas.ellipse((left, top, left + width, top + height), fill=color)
        cells = 128 if number % 2 else 16
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pictures += [blobs.resize((side, side)), noise.resize((side, side))]
    return [np.asarray(picture) for picture in pictures]


def score_of(prompts: Sequence[ScenePrompt], sightings: Sequence[Sighting]) -> dict[str, Any]:
    """The overall score of `sightings` for `prompts`, and that of each category."""
    categories = shares(prompts, judged(prompts, sightings))
    return {"score": mean(categories), "categories": categories}


def judged(prompts: Sequence[ScenePrompt], sightings: Sequence[Sighting]) -> list[bool]:
    """Whether each sighting matches its prompt."""
    return [judge(prompt.scene, seen).correct for prompt, seen in zip(prompts, sightings, strict=True)]


def shares(prompts: Sequence[ScenePrompt], right: Sequence[bool]) -> dict[str, float]:
    """The share of `right` in each category."""
    return {
        category: round(float(np.mean([r for p, r in zip(prompts, right, strict=True) if p.category == category])), 4)
        for category in CATEGORIES
    }


def mean(categories: dict[str, float]) -> float:
    """The mean over the categories, as GenEval's overall score."""
    return round(sum(categories.values()) / len(categories), 4)
