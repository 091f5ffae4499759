"""The embedded world: captioned emoji scenes with exact ground truth, in GenEval's six categories."""

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

# Several objects are harder to learn than one: they get most of the samples.
DEFAULT_MIXTURE: dict[Category, float] = {
    "single": 0.12,
    "color": 0.14,
    "counting": 0.20,
    "two": 0.16,
    "position": 0.20,
    "attribution": 0.18,
}

# Streams of randomness: a picture, its captions, its twin and its contrast never share draws.
_SCENE, _CAPTION, _TWIN, _CONTRAST = 0, 1, 2, 3

KEPT = 65_536  # scenes, about 1 kB each: drawing one takes four times as long as writing a caption of it


class SceneSettings(Settings):
    """The `data:` section of a recipe that draws on scenes."""

    source: Literal["scenes"] = "scenes"
    resolution: int = Field(default=128, ge=32)  # side of the square picture, px
    count: int = Field(default=100_000, gt=0)  # scenes in an epoch
    seed: int = Field(default=0, ge=0)
    split: Split = "train"
    mixture: dict[Category, float] = DEFAULT_MIXTURE  # weights, need not sum to 1; a category left out is not drawn
    # The things that scenes show: the bundled world's 64 if not given; [everything] stands for the whole vocabulary.
    nouns: tuple[str, ...] | None = None
    snap: int = Field(default=1, ge=1)  # px: sides and corners of objects are multiples of it
    # px: objects have one of these longer sides, the largest that is not larger than their own would be (none larger
    # than the smallest: that one). Fewer sizes are fewer pictures of a thing to learn.
    sizes: tuple[int, ...] | None = Field(default=None, min_length=1)
    font: str | None = None  # path of NotoColorEmoji.ttf; looked up if not given

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
        """`count` scenes of held-out compositions."""
        return self.model_copy(update={"split": "heldout", "seed": self.seed + 1, "count": count})

    def open(self, progress: Progress = silent) -> SceneSource:
        """The source; `progress` shows what takes long."""
        return SceneSource(self, progress)


@dataclass(frozen=True)
class SceneContrast:
    """A scene's picture, a caption of it, and the same caption made wrong in one point (`snapgen.data.Contrast`)."""

    kind: str  # the scene's category
    picture: np.ndarray  # uint8 H W 3
    right: str
    wrong: str
    like_right: list[np.ndarray]  # other pictures that the right caption describes
    like_wrong: list[np.ndarray]  # and the wrong one: the same but for the point


class SceneSource:
    """The source "scenes": `scene(index)` is the truth that `image` draws and `caption` tells."""

    def __init__(self, settings: SceneSettings, progress: Progress = silent) -> None:
        """Raises `FontMissingError` only when the first picture is drawn: captions need no font."""
        self.settings = settings
        weights = np.array([settings.mixture.get(category, 0.0) for category in CATEGORIES], dtype=np.float64)
        self._thresholds = np.cumsum(weights / weights.sum())
        self._sprites: SpriteSheet | None = None
        self._scenes: dict[int, Scene] = {}
        self._backgrounds = {b.name: background_picture(b.name, settings.resolution) for b in BACKGROUNDS}

    def __len__(self) -> int:
        return self.settings.count

    def __getstate__(self) -> dict[str, Any]:
        # A font handle cannot go to a worker process; the worker opens its own.
        return self.__dict__ | {"_sprites": None, "_scenes": {}}

    def groups(self) -> list[np.ndarray]:
        """All pictures are of one shape."""
        return [np.arange(len(self))]

    def signature(self) -> Any:
        """The settings, of which the pictures are a function."""
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
        """`count` of each of the six categories, whatever the mixture; those of captions made wrong in one point.

        `alike` pictures each show what captions say, right and wrong ones.
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
        """Caption `variant` (>= 0) of picture `index`."""
        return self.describe(self.scene(index), variant, index)

    def describe(self, scene: Scene, variant: int, index: int = 0) -> str:
        """A caption of `scene`; (seed, index, variant) picks the wording, within the templates of the split."""
        return write_caption(self._rng(_CAPTION, index, variant), scene, self.settings.split)

    def boxes(self, scene: Scene) -> list[tuple[int, int, int, int]]:
        """Each object's box in px: left, top, right, bottom (exclusive), inside the picture."""
        return [self._box(placed)[:4] for placed in scene.objects]

    def _box(self, placed: Placed) -> tuple[int, int, int, int, int]:
        """The box, and the longer side in px."""
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
        """`scene` drawn, uint8 H W 3 with H = W = resolution; later objects over earlier ones."""
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
