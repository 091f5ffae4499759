"""The `classifier` stage: trains, on renders, the network that gives a second opinion on pictures of scenes.

It will judge pictures from diffusion models, which are softer and less regular than renders. Most training pictures
are therefore spoilt (`snapgen.world.spoiling`), some by an autoencoder with disturbed latents, while their labels
stay. Where nobody could tell what is shown, the likelihood rewards doubt. Some pictures are cut into tiles and
shuffled: they have the right colours and textures, but show nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from snapgen.config import Recipe, RecipeError, Settings
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.classifier import CELL, Reading, SceneClassifier
from snapgen.pictures import contact_sheet, to_tensor, to_uint8
from snapgen.train.places import locate
from snapgen.train.stage import Context, Stage
from snapgen.weights import load_network
from snapgen.world.scene import Scene
from snapgen.world.source import SceneSettings, SceneSource
from snapgen.world.spoiling import Spoiling, shuffle_tiles, spoil
from snapgen.world.vocabulary import LOOKS, known_nouns

VALIDATION_COUNT = 256  # scenes of held-out compositions
IGNORED = -100  # PyTorch's index for cells whose look does not count

_LOOK = {look: index for index, look in enumerate(LOOKS)}


class ClassifierModel(Settings):
    """Shape of the network."""

    channels: tuple[int, int, int, int] = (24, 48, 80, 128)  # after each halving of the resolution
    blocks: int = Field(default=3, ge=0)  # at the resolution of the 16 px cells


class ClassifierRecipe(Recipe):
    """Settings of the `classifier` stage."""

    stage: Literal["classifier"]
    model: ClassifierModel = ClassifierModel()
    initial: Path | None = None  # folder of a classifier of that shape to start from
    autoencoder: Path  # diffusers folder of a SnapGenAutoencoder; "mini" is the bundled model's
    encoded: float = Field(default=0.06, ge=0, le=1)  # share of pictures passed through it
    latent_noise: float = Field(default=0.5, ge=0)  # the most noise added to their latents, in standard deviations
    data: SceneSettings
    spoiling: Spoiling = Spoiling()


class ClassifierStage(Stage[ClassifierRecipe, SceneClassifier]):
    """Trains the classifier to maximise the likelihood of each cell's content."""

    recipe_type = ClassifierRecipe

    def __init__(self, recipe: ClassifierRecipe, context: Context):
        super().__init__(recipe, context)
        if recipe.data.resolution % CELL:
            raise RecipeError(f"data.resolution {recipe.data.resolution} is no multiple of the cells' {CELL} px")
        self.source = SceneSource(recipe.data)
        self.heldout = SceneSource(recipe.data.validation(VALIDATION_COUNT))
        folder = locate("autoencoder", recipe.autoencoder, "vae")
        autoencoder = load_network(SnapGenAutoencoder, str(folder), dtype=torch.float32)
        self.autoencoder = self.place(autoencoder.eval().requires_grad_(False))
        self.nouns = known_nouns(recipe.data.nouns)
        network = SceneClassifier(self.nouns, LOOKS, recipe.model.channels, recipe.model.blocks)
        if recipe.initial is not None:
            initial = load_network(SceneClassifier, str(locate("initial", recipe.initial)), dtype=torch.float32)
            given, asked = (
                f"channels {list(made.channels)}, blocks {made.blocks}, {len(made.nouns)} nouns"
                for made in (initial.config, network.config)
            )
            if given != asked:
                raise RecipeError(f"initial: the classifier in {recipe.initial} has {given}, the recipe's has {asked}")
            network.load_state_dict(initial.state_dict())
        self.model = self.place(network)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures B 3 H W in [-1, 1], and the nouns and looks of their cells, both B h w."""
        numbers = self.local_indices(step)
        scenes = [self.source.scene(number % len(self.source)) for number in numbers]
        pictures, empty = self._spoilt(to_tensor([self.source.render(scene) for scene in scenes]), numbers)
        nouns, looks = label_cells(scenes, self.recipe.data.resolution // CELL, self.nouns)
        nouns[empty], looks[empty] = len(self.nouns), IGNORED
        device = self.context.device
        return self._placed(pictures), nouns.to(device), looks.to(device)

    def _placed(self, pictures: Tensor) -> Tensor:
        return pictures.to(self.context.device).contiguous(memory_format=torch.channels_last)

    def _spoilt(self, pictures: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`pictures`, most of them spoilt, seeded by sample `numbers`, and which (bool B) now show nothing."""
        recipe, tiles = self.recipe, (pictures.shape[-1] // CELL) ** 2
        rngs = [np.random.default_rng((recipe.seed, 1, number)) for number in numbers]
        kinds = np.stack([rng.random(2) for rng in rngs])
        encoded = np.flatnonzero(kinds[:, 0] < recipe.encoded).tolist()
        empty, clean = kinds[:, 1] < recipe.spoiling.shuffled, kinds[:, 1] > 1 - recipe.spoiling.clean
        if encoded:
            pictures[encoded] = self._encoded(pictures[encoded], [rngs[index] for index in encoded])
        for index, rng in enumerate(rngs):
            if empty[index]:
                pictures[index] = shuffle_tiles(pictures[index], CELL, torch.from_numpy(rng.permutation(tiles)))
            if not clean[index]:
                pictures[index] = spoil(pictures[index], rng, recipe.spoiling)
        return pictures, torch.from_numpy(empty)

    @torch.no_grad()
    def _encoded(self, pictures: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        """`pictures` through the autoencoder, with noise of random strength added to their latents."""
        latents = self.autoencoder.encode(self._placed(pictures)).latent_dist.mode()
        noise = [self.recipe.latent_noise * rng.random() * rng.standard_normal(latents.shape[1:]) for rng in rngs]
        latents += torch.from_numpy(np.stack(noise)).to(latents) / self.autoencoder.config.scaling_factor
        return self.autoencoder.decode(latents).sample.clamp(-1, 1).cpu()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """The negative log-likelihood, in nats per picture, of the nouns in all cells and of the looks of things."""
        pictures, nouns, looks = batch
        noun_logits, look_logits = model(pictures)
        noun = F.cross_entropy(noun_logits.float(), nouns, reduction="sum") / len(pictures)
        look = F.cross_entropy(look_logits.float(), looks, ignore_index=IGNORED, reduction="sum") / len(pictures)
        return {"loss": noun + look, "noun": noun, "look": look}

    def _validation(self) -> tuple[list[Scene], Tensor, Tensor]:
        """Scenes of held-out compositions, their renders, and the same renders spoilt."""
        scenes = [self.heldout.scene(index) for index in range(len(self.heldout))]
        renders = to_tensor([self.heldout.render(scene) for scene in scenes])
        settings = self.recipe.spoiling
        spoilt = [spoil(render, np.random.default_rng(index), settings) for index, render in enumerate(renders)]
        return scenes, self._placed(renders), self._placed(torch.stack(spoilt))

    @torch.no_grad()
    def metrics(self, model: SceneClassifier) -> dict[str, float]:
        """Share of held-out scenes with all nouns and counts right, and share with all looks right as well."""
        scenes, renders, spoilt = self._validation()
        truth = torch.stack([count_things(scene, self.nouns) for scene in scenes]).to(self.context.device)
        measures = {}
        for name, pictures in (("clean", renders), ("spoilt", spoilt)):
            counts = torch.cat([model.read(part).counts for part in pictures.split(64)])
            counted = (counts.sum(dim=2).round() == truth.sum(dim=2)).all(dim=1)
            looked = ((counts.argmax(dim=2) == truth.argmax(dim=2)) | (truth.sum(dim=2) == 0)).all(dim=1)
            measures[f"{name}_counts"] = counted.float().mean().item()
            measures[f"{name}_all"] = (counted & looked).float().mean().item()
        return measures

    @torch.no_grad()
    def sample_grid(self, model: SceneClassifier) -> Image.Image:
        """Spoilt pictures, each above what the classifier reads in it."""
        pictures = self._validation()[2][:24]
        return contact_sheet(to_uint8(pictures), describe(model.read(pictures), self.nouns), columns=8)

    def save(self, model: SceneClassifier, folder: Path) -> None:
        """Writes a diffusers folder in half precision, small enough to ship with a package."""
        deepcopy(model).half().save_pretrained(folder)


def label_cells(scenes: Sequence[Scene], cells: int, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Classes of the nouns and looks of the things centred in each of cells x cells, both int64 B cells cells.

    A noun's class is its index in `names`; a cell without a centre has the class after the last.
    """
    nouns = torch.full((len(scenes), cells, cells), len(names))
    looks, classes = torch.full_like(nouns, IGNORED), {name: index for index, name in enumerate(names)}
    for index, scene in enumerate(scenes):
        for placed in scene.objects:
            place = index, int(placed.y * cells), int(placed.x * cells)
            nouns[place], looks[place] = classes[placed.name], _LOOK[placed.color]
    return nouns, looks


def count_things(scene: Scene, names: Sequence[str]) -> Tensor:
    """How many things `scene` has of each of the N nouns `names` in each of the L looks, N L."""
    counts = torch.zeros(len(names), len(LOOKS))
    for placed in scene.objects:
        counts[names.index(placed.name), _LOOK[placed.color]] += 1
    return counts


def describe(reading: Reading, names: Sequence[str]) -> list[str]:
    """A readable line for each picture, with the largest expected counts first."""
    lines = []
    for counts in reading.counts.cpu():
        best = counts.sum(dim=1).topk(min(3, len(counts)))
        looks = counts[best.indices].argmax(dim=1).tolist()
        named = zip(best.values.tolist(), looks, best.indices.tolist(), strict=True)
        lines.append(", ".join(f"{n:.1f} {LOOKS[look] or ''} {names[i]}" for n, look, i in named if n > 0.2))
    return [line or "nothing" for line in lines]
