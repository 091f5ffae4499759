"""What the autoencoder stage trains on: files shuffled and read ahead, the world in its order, resumed exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.recipes import RECIPES, metrics_of, recipe_of, shares_of

from snapgen.config import RecipeError, parse_recipe
from snapgen.data.folder import FolderSettings
from snapgen.data.shards import write_shards
from snapgen.files import sha256
from snapgen.pictures import random_crop, to_tensor
from snapgen.train.loop import train
from snapgen.train.stage import Context
from snapgen.train.stages.autoencoder import AutoencoderRecipe, AutoencoderStage

COUNT, BATCH = 10, 4


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ten pictures, each of one grey, in a folder and in tars."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        Image.new("RGB", (48 + 8 * number, 64), (20 * number,) * 3).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("grey")
    tars = tmp_path_factory.mktemp("tars") / "tars"
    write_shards(FolderSettings(source="folder", path=folder, resolution=48).open(), tars, 3)
    return {"folder": folder, "shards": tars}


def make_recipe(
    place: Path, source: str = "folder", workers: int = 2, data: dict[str, Any] | None = None, **settings: Any
) -> AutoencoderRecipe:
    train_settings = {"steps": 4, "batch_size": BATCH, "learning_rate": 1e-3, "sample_every": 4, "checkpoint_every": 2}
    mapping = {
        "stage": "autoencoder",
        "model": "debug",
        "crop": 32,
        "latent_noise": 0.5,
        "workers": workers,
        "data": {"source": source, "path": str(place), "resolution": 48} | (data or {}),
        "train": train_settings | settings,
    }
    return parse_recipe(AutoencoderRecipe, mapping, "test")


def make_stage(recipe: AutoencoderRecipe, run: Path) -> AutoencoderStage:
    torch.manual_seed(0)
    return AutoencoderStage(recipe, Context(torch.device("cpu"), 0, 1, run, lambda items, description, total: items))


def pictures_of(batch: tuple[torch.Tensor, ...]) -> list[int]:
    return ((batch[0][:, 0, 0, 0] + 1) * 127.5 / 20).round().int().tolist()


@pytest.mark.parametrize("source", ["folder", "shards"])
def test_files_are_shuffled_anew_in_every_epoch(places: dict[str, Path], tmp_path: Path, source: str) -> None:
    stage = make_stage(make_recipe(places[source], source), tmp_path)
    seen = [picture for step in range(5) for picture in pictures_of(stage.batch(step))]
    epochs = seen[:COUNT], seen[COUNT:]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(COUNT))
    assert epochs[0] != epochs[1] != list(range(COUNT)) != epochs[0]
    assert pictures_of(make_stage(make_recipe(places["folder"]), tmp_path).batch(3)) == seen[3 * BATCH : 4 * BATCH]


def test_the_world_keeps_its_order(tmp_path: Path) -> None:
    """Sample n is scene n, cut and disturbed by (seed, n): runs of before there was another order can be resumed."""
    stage = make_stage(
        recipe_of(RECIPES / "debug" / "autoencoder.yaml", "data.resolution=64", "latent_noise=1"), tmp_path
    )
    for step in (0, 1, 17):
        pictures, noise, disturbance = stage.batch(step)
        for place, number in enumerate(range(BATCH * step, BATCH * (step + 1))):
            patch = random_crop(stage.source.image(number % 64), 32, (stage.recipe.seed, number))
            assert torch.equal(pictures[place], to_tensor([patch])[0])
            rng = np.random.default_rng((stage.recipe.seed, number, 1))
            assert np.array_equal(noise[place], rng.standard_normal(noise.shape[1:], np.float32))
            rng = np.random.default_rng((stage.recipe.seed, number, 2))
            amount = np.float32(rng.random() ** 2)
            assert np.array_equal(disturbance[place], amount * rng.standard_normal(noise.shape[1:], np.float32))


def test_one_process_or_two_see_the_same_batch(places: dict[str, Path], tmp_path: Path) -> None:
    stage = make_stage(make_recipe(places["folder"]), tmp_path)
    for step in range(3):
        alone = stage.batch(step)
        shares = shares_of(stage, step)
        for one, *others in zip(alone, *shares, strict=True):
            assert torch.equal(torch.cat(others), one)


@pytest.mark.slow
def test_resumed_equals_uninterrupted(places: dict[str, Path], tmp_path: Path) -> None:
    whole = train(AutoencoderStage, make_recipe(places["folder"]), tmp_path / "whole", resume=False)
    train(AutoencoderStage, make_recipe(places["folder"], steps=2), tmp_path / "parts", resume=False)
    parts = train(AutoencoderStage, make_recipe(places["folder"], workers=3), tmp_path / "parts", resume=True)
    one, other = (
        [(line["step"], line["loss"], line["grad_norm"]) for line in metrics_of(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert one == other
    weights = "diffusion_pytorch_model.safetensors"
    assert sha256(whole / weights) == sha256(parts / weights)


@pytest.mark.parametrize(("held_out", "judged"), [(3, [7, 8, 9]), (0, list(range(COUNT)))])
def test_it_is_judged_by_held_out_pictures(
    places: dict[str, Path], tmp_path: Path, held_out: int, judged: list[int]
) -> None:
    """By training pictures only if none are held out. The paper's decoder learns from files."""
    stage = make_stage(make_recipe(places["folder"], data={"held_out": held_out}), tmp_path)
    assert pictures_of((stage._heldout,)) == judged
    assert len(stage.source) == COUNT - held_out
    assert math.isfinite(stage.metrics(stage.model)["psnr"])


def test_patches_that_do_not_fit_are_refused(places: dict[str, Path]) -> None:
    with pytest.raises(
        RecipeError, match=r"autoencoder.yaml: crop 64 is larger than the pictures, data.resolution 32$"
    ):
        recipe_of(RECIPES / "debug" / "autoencoder.yaml", "crop=64", "data.resolution=32")
    with pytest.raises(RecipeError, match="data.buckets is for whole pictures"):
        make_recipe(places["folder"], data={"resolution": 64, "buckets": {"step": 32}})


def test_a_damaged_file_is_replaced_and_named_once(places: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in places["folder"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes() if path.name != "4.png" else b"no picture")
    warnings: list[str] = []
    context = Context(torch.device("cpu"), 0, 1, tmp_path, lambda items, description, total: items, warnings.append)
    stage = AutoencoderStage(make_recipe(folder), context)
    seen = [picture for step in range(5) for picture in pictures_of(stage.batch(step))]
    assert sorted(seen) == sorted([*range(4), 5, *range(5, COUNT)] * 2)
    stage.metrics(stage.model)
    assert len(warnings) == 1 and "4.png cannot be read: it is no picture" in warnings[0]
