"""The source "scenes": renders and captions the emoji scenes of the embedded world, with exact ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from snapgen.config import Settings
from snapgen.messages import Progress, silent
from snapgen.world.captions import write_caption
from snapgen.world.composition import draw_alike, draw_mistake, draw_scene, draw_twin
from snapgen.world.scene import CATEGORIES, Category, Placed, Scene
from snapgen.world.splits import Split
from snapgen.world.sprites import SpriteSheet
from snapgen.world.vocabulary import BACKGROUND, BACKGROUNDS, named_nouns
from snapgen.world.words import words_of_captions

# Several objects are harder to learn than one, so they get most of the samples.
DEFAULT_MIXTURE: dict[Category, float] = {
    "single": 0.12,
    "color": 0.14,
    "counting": 0.20,
    "two": 0.16,
    "position": 0.20,
    "attribution": 0.18,
}

# Random streams: a picture, its captions, its twin and its contrast share no random numbers.
_SCENE, _CAPTION, _TWIN, _CONTRAST = 0, 1, 2, 3

KEPT = 65_536  # scenes kept in memory, about 1 kB each: sampling one takes four times as long as captioning it


class SceneSettings(Settings):
    """The `data:` section of a recipe that uses scenes."""

    source: Literal["scenes"] = "scenes"
    resolution: int = Field(default=128, ge=32)  # side of the square picture, px
    count: int = Field(default=100_000, gt=0)  # scenes in an epoch
    seed: int = Field(default=0, ge=0)
    split: Split = "train"
    mixture: dict[Category, float] = DEFAULT_MIXTURE  # weights, of any sum; omitted categories never occur
    # The things that scenes show; null: the bundled world's 64; [everything]: the whole vocabulary.
    nouns: tuple[str, ...] | None = None
    snap: int = Field(default=1, ge=1)  # px: sides and corners of objects are multiples of it
    # px; the longer side of every object is rounded down to one of these, or up to the smallest. With fewer sizes there
    # are fewer pictures of a thing to learn.
    sizes: tuple[int, ...] | None = Field(default=None, min_length=1)
    font: str | None = None  # path of NotoColorEmoji.ttf; null: look it up

    @field_validator("mixture")
    @classmethod
    def _drawable(cls, mixture: dict[Category, float]) -> dict[Category, float]:
        if any(not 0 <= weight < float("inf") for weight in mixture.values()):
            raise ValueError("weights must be finite and at least 0")
        if not any(mixture.values()):
            raise ValueError("at least one category needs a weight above 0")
        return mixture

    @field_validator("nouns")
    @classmethod
    def _known(cls, nouns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if nouns is None else named_nouns(nouns)

    def validation(self, count: int) -> SceneSettings:
        """Settings for `count` scenes of held-out compositions."""
        return self.model_copy(update={"split": "heldout", "seed": self.seed + 1, "count": count})

    def open(self, progress: Progress = silent) -> SceneSource:
        """The source; `progress` is not used, because opening it takes no time."""
        return SceneSource(self, progress)


@dataclass(frozen=True)
class SceneContrast:
    """A picture, a caption of it, and the same caption with one mistake (`snapgen.data.source.Contrast`)."""

    kind: str  # the scene's category
    picture: np.ndarray  # uint8 H W 3
    right: str
    wrong: str
    like_right: list[np.ndarray]  # other pictures that match the right caption
    like_wrong: list[np.ndarray]  # pictures that match the wrong caption, otherwise like those of `like_right`


class SceneSource:
    """The source "scenes": `scene(index)` is the ground truth that `image` renders and `caption` describes."""

    is_random: Literal[True] = True  # scenes are independent of each other

    def __init__(self, settings: SceneSettings, progress: Progress = silent) -> None:
        """The font is opened when the first picture is rendered, which may raise `FontMissingError`."""
        self.settings = settings
        weights = np.array([settings.mixture.get(category, 0.0) for category in CATEGORIES], dtype=np.float64)
        self._thresholds = np.cumsum(weights / weights.sum())
        self._sprites: SpriteSheet | None = None
        self._scenes: dict[int, Scene] = {}
        self._backgrounds = {b.name: background_picture(b.name, settings.resolution) for b in BACKGROUNDS}

    def __len__(self) -> int:
        return self.settings.count

    def __getstate__(self) -> dict[str, Any]:
        # A font handle cannot be sent to a worker process; the worker opens its own.
        return self.__dict__ | {"_sprites": None, "_scenes": {}}

    def groups(self) -> list[np.ndarray]:
        """One group: all pictures have the same shape."""
        return [np.arange(len(self))]

    def signature(self) -> Any:
        """The settings, which decide every picture."""
        return self.settings.model_dump(mode="json")

    def _rng(self, stream: int, index: int, variant: int = 0) -> np.random.Generator:
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return np.random.default_rng((self.settings.seed, stream, index, variant))

    def scene(self, index: int) -> Scene:
        """The ground truth of picture `index`."""
        scene = self._scenes.get(index)
        if scene is None:
            rng = self._rng(_SCENE, index)
            category = CATEGORIES[min(int(np.searchsorted(self._thresholds, rng.random(), side="right")), 5)]
            scene = draw_scene(rng, category, self.settings.split, self.settings.nouns)
            if len(self._scenes) < KEPT:
                self._scenes[index] = scene
        return scene

    def twin(self, index: int) -> Scene:
        """A hard negative: the scene of `index` with exactly one stated attribute changed."""
        return draw_twin(self._rng(_TWIN, index), self.scene(index), self.settings.split, self.settings.nouns)

    def contrasts(self, count: int, alike: int) -> list[SceneContrast]:
        """`count` contrasts of each of the six categories, whatever the mixture.

        Each has `alike` more pictures for the right caption and as many for the wrong one.
        """
        names, split, found = self.settings.nouns, self.settings.split, []
        for number, category in enumerate(CATEGORIES):
            for index in range(count):
                rng = np.random.default_rng((self.settings.seed, _CONTRAST, number, index))
                right = draw_scene(rng, category, split, names)
                wrong = draw_mistake(rng, right, names)
                wording = int(rng.integers(2**31))
                captions = [write_caption(np.random.default_rng(wording), scene, split) for scene in (right, wrong)]
                seeds = rng.integers(2**31, size=alike).tolist()  # the same chance on both sides
                others = [
                    [self.render(draw_alike(np.random.default_rng(seed), scene, other)) for seed in seeds]
                    for scene, other in ((right, wrong), (wrong, right))
                ]
                found.append(SceneContrast(category, self.render(right), captions[0], captions[1], *others))
        return found

    def image(self, index: int) -> np.ndarray:
        """Picture `index`, uint8 H W 3."""
        return self.render(self.scene(index))

    def caption(self, index: int, variant: int) -> str:
        """A caption of picture `index`; `variant` (>= 0) picks the wording."""
        return self.describe(self.scene(index), variant, index)

    def describe(self, scene: Scene, variant: int, index: int = 0) -> str:
        """A caption of `scene`; (seed, index, variant) picks the wording from the templates of the split."""
        return write_caption(self._rng(_CAPTION, index, variant), scene, self.settings.split)

    def words(self) -> dict[str, list[str]]:
        """All words that a caption can contain, by kind (`snapgen.world.words`)."""
        return words_of_captions(self.settings)

    def boxes(self, scene: Scene) -> list[tuple[int, int, int, int]]:
        """Each object's box in px: left, top, right, bottom (the last two exclusive), inside the picture."""
        return [self._box(placed)[:4] for placed in scene.objects]

    def _box(self, placed: Placed) -> tuple[int, int, int, int, int]:
        """The object's box and the longer side of its sprite, px."""
        resolution, snap = self.settings.resolution, self.settings.snap
        side = max(snap, int(placed.size * resolution) // snap * snap)
        if self.settings.sizes is not None:
            side = max((size for size in self.settings.sizes if size <= side), default=min(self.settings.sizes))
        width, height = self._sheet().box(placed.name, side)
        left, top = (
            min(int((centre * resolution - length / 2) / snap + 0.5), (resolution - length) // snap) * snap
            for centre, length in ((placed.x, width), (placed.y, height))
        )
        return left, top, left + width, top + height, side

    def _sheet(self) -> SpriteSheet:
        if self._sprites is None:
            self._sprites = SpriteSheet(self.settings.font)
        return self._sprites

    def render(self, scene: Scene) -> np.ndarray:
        """`scene` as a picture, uint8 H W 3 with H = W = resolution; later objects cover earlier ones."""
        picture = self._backgrounds[scene.background].copy()
        for placed in scene.objects:
            left, top, right, bottom, side = self._box(placed)
            colors, alpha = self._sheet().sprite(placed.name, placed.color, side)
            under = picture[top:bottom, left:right]
            # 255 * 255 fits uint16; + 127 rounds.
            under[:] = (colors * alpha + under * (255 - alpha) + 127) // 255
        return picture


def background_picture(name: str, resolution: int) -> np.ndarray:
    """The background `name`, uint8 H W 3; several stops make a vertical gradient."""
    stops = np.array(BACKGROUND[name].stops, dtype=np.float64)
    heights = np.linspace(0, len(stops) - 1, resolution)
    column = np.stack([np.interp(heights, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=-1)
    return np.repeat(np.rint(column).astype(np.uint8)[:, None], resolution, axis=1)
