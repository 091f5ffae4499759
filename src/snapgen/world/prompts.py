"""The prompts of the scene benchmark, each with the scene that a correct picture shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from snapgen.world.scene import CATEGORIES, Category, Scene
from snapgen.world.source import SceneSettings, SceneSource

SEED = 2412  # seed of the benchmark's scenes; training uses others
POOL = 1_000_000  # scenes from which a category's prompts are taken, in order

BenchmarkSplit = Literal["heldout", "train"]
SPLITS: tuple[BenchmarkSplit, ...] = ("heldout", "train")


@dataclass(frozen=True)
class ScenePrompt:
    """One prompt of the benchmark."""

    split: BenchmarkSplit
    index: int  # within its split and category
    scene: Scene
    prompt: str

    @property
    def category(self) -> Category:
        """The scene's category, one of GenEval's six."""
        return self.scene.category

    @property
    def name(self) -> str:
        """A name unique in the benchmark and fit for a file name."""
        return f"{self.split}-{self.category}-{self.index:04d}"


def scene_prompts(split: BenchmarkSplit, count: int, nouns: tuple[str, ...] | None = None) -> list[ScenePrompt]:
    """`count` prompts of each category, always the same; a smaller count gives the first ones of a larger.

    "heldout": compositions that training never sees; "train": compositions that it may see, in new pictures. Both are
    worded as in training, so that only the composition is new. As in GenEval, only the two colour categories ask for
    colours: counting and position scenes with tinted objects are skipped. With `nouns`, the prompts name only
    these things: a smaller benchmark, whose scores do not compare.
    """
    wording = SceneSource(SceneSettings(split="train", count=POOL, seed=SEED))
    prompts: list[ScenePrompt] = []
    for category in CATEGORIES:
        source = SceneSource(SceneSettings(split=split, count=POOL, seed=SEED, mixture={category: 1.0}, nouns=nouns))
        index, taken = 0, 0
        while taken < count:
            scene = source.scene(index)
            if category not in ("counting", "position") or scene.objects[0].color is None:
                prompts.append(ScenePrompt(split, taken, scene, wording.describe(scene, 0, index)))
                taken += 1
            index += 1
    return prompts


def renderer(resolution: int, font: str | None = None) -> SceneSource:
    """A source that renders the ground truth of prompts at `resolution` x `resolution` px."""
    return SceneSource(SceneSettings(resolution=resolution, font=font))


class CaptionedScenes:
    """Captions and pictures of scenes that training may see, in two lots of `count` each."""

    def __init__(self, side: int, count: int, nouns: tuple[str, ...] | None) -> None:
        """`side`: of the pictures, px; `nouns`: the things in the scenes, None for the bundled world's."""
        self.count = count
        self.source = SceneSource(
            SceneSettings(resolution=side, count=2 * count, seed=SEED, split="train", nouns=nouns)
        )

    def captions(self) -> list[str]:
        """One caption for each scene of the first lot."""
        return [self.source.caption(index, 0) for index in range(self.count)]

    def renders(self, lot: int) -> Iterable[np.ndarray]:
        """The rendered scenes of lot 0 or 1, uint8 H W 3."""
        indices = range(lot * self.count, (lot + 1) * self.count)
        return (self.source.render(self.source.scene(index)) for index in indices)
