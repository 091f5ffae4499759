"""The classifier stage: its labels, its spoilt pictures, and a run through the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snapgen.config import RecipeError
from snapgen.files import sha256
from snapgen.models.classifier import SceneClassifier
from snapgen.train.loop import train
from snapgen.train.stage import Context
from snapgen.train.stages import load_recipe, load_stage
from snapgen.train.stages.classifier import (
    IGNORED,
    ClassifierStage,
    count_things,
    label_cells,
)
from snapgen.weights import load_file, load_network
from snapgen.world.scene import Placed, Scene
from snapgen.world.spoiling import Spoiling, bend, coarsen, shuffle_tiles, spoil
from snapgen.world.vocabulary import LOOKS, NOUNS

RECIPE = Path(__file__).parents[3] / "recipes" / "debug" / "classifier.yaml"
WEIGHTS = Path("model") / "diffusion_pytorch_model.safetensors"
NAMES = tuple(noun.name for noun in NOUNS)


def recipe_of(*overrides: str) -> Any:
    return load_recipe(RECIPE, overrides)


def stage_of(rank: int = 0, world: int = 1, *overrides: str) -> ClassifierStage:
    context = Context(torch.device("cpu"), rank, world, Path("nowhere"), lambda items, text, total: items)
    return ClassifierStage(recipe_of(*overrides), context)


@pytest.mark.slow
def test_a_run_measures_draws_and_resumes_exactly(tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(load_stage("classifier"), recipe_of(), whole, False)
    train(load_stage("classifier"), recipe_of("train.steps=2"), parted, False)
    train(load_stage("classifier"), recipe_of(), parted, True)
    assert sha256(whole / WEIGHTS) == sha256(parted / WEIGHTS)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[-1]["eval/clean_all"] <= lines[-1]["eval/clean_counts"] <= 1
    assert (whole / "samples" / "step_00000004.png").stat().st_size > 0
    assert {tensor.dtype for tensor in load_file(whole / WEIGHTS).values()} == {torch.float16}
    model = load_network(SceneClassifier, str(whole / "model"))
    assert tuple(model.config.nouns) == NAMES
    assert tuple(model.config.looks) == LOOKS


def test_it_can_start_from_trained_weights(tmp_path: Path) -> None:
    trained = stage_of()
    trained.save(trained.model, tmp_path / "model")
    torch.manual_seed(1)
    started = stage_of(0, 1, f"initial={tmp_path / 'model'}")
    for name, tensor in started.model.state_dict().items():
        assert torch.equal(tensor, trained.model.state_dict()[name].half().float())
    with pytest.raises(
        RecipeError, match=r"initial: the classifier in .*model has .*, blocks \d, 64 nouns, the .* blocks 9"
    ):
        stage_of(0, 1, f"initial={tmp_path / 'model'}", "model.blocks=9")


def test_processes_share_one_batch() -> None:
    pictures, nouns, looks = stage_of().batch(1)
    halves = [stage_of(rank, 2).batch(1) for rank in (0, 1)]
    # The autoencoder's kernels round differently in batches of another size.
    assert torch.allclose(torch.cat([half[0] for half in halves]), pictures, atol=1e-3)
    assert torch.equal(torch.cat([half[1] for half in halves]), nouns)
    assert torch.equal(torch.cat([half[2] for half in halves]), looks)


def test_cells_are_labelled_by_the_centres() -> None:
    cat, dog = Placed("cat", "red", 0.1, 0.9, 0.2), Placed("dog", None, 0.6, 0.3, 0.3)
    nouns, looks = label_cells([Scene("two", (cat, dog), "white", False)], 4, NAMES)
    assert (nouns[0, 3, 0], looks[0, 3, 0]) == (NAMES.index("cat"), LOOKS.index("red"))
    assert (nouns[0, 1, 2], looks[0, 1, 2]) == (NAMES.index("dog"), LOOKS.index(None))
    assert (nouns == len(NAMES)).sum() == (looks == IGNORED).sum() == 14


def test_it_tells_apart_what_its_world_has() -> None:
    """The nouns of the bundled world keep their places, whatever else there is."""
    stage = stage_of(0, 1, "data.nouns=[unicorn, cat, grinning face]", "spoiling.shuffled=0.0")
    assert tuple(stage.model.config.nouns) == (*NAMES, "unicorn", "grinning face")
    _, nouns, _ = stage.batch(0)
    assert set(nouns.unique().tolist()) <= {NAMES.index("cat"), 64, 65, 66} and (nouns < 66).any()


def test_no_two_things_of_training_share_a_cell() -> None:
    stage = stage_of(0, 1, "data.resolution=128", "data.count=400")
    scenes = [stage.source.scene(index) for index in range(400)]
    nouns, _ = label_cells(scenes, 8, NAMES)
    assert [(row != len(NAMES)).sum().item() for row in nouns] == [len(scene.objects) for scene in scenes]
    assert [count_things(scene, NAMES).sum().item() for scene in scenes] == [len(scene.objects) for scene in scenes]


def test_shuffled_pictures_show_nothing_and_clean_ones_are_renders() -> None:
    settings = ("encoded=0.0", "spoiling.shuffled=1.0", "spoiling.clean=0.0")
    _, nouns, looks = stage_of(0, 1, *settings).batch(0)
    assert (nouns == len(NAMES)).all() and (looks == IGNORED).all()
    stage = stage_of(0, 1, "encoded=0.0", "spoiling.shuffled=0.0", "spoiling.clean=1.0")
    pictures, nouns, _ = stage.batch(0)
    render = torch.from_numpy(stage.source.image(0)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(pictures[0], render)
    assert (nouns != len(NAMES)).any(dim=(1, 2)).all()


def test_a_picture_must_be_made_of_cells() -> None:
    with pytest.raises(RecipeError, match="data.resolution 72 is no multiple of the cells' 16 px"):
        stage_of(0, 1, "data.resolution=72")


def test_what_spoils_nothing_changes_nothing() -> None:
    picture = torch.rand(3, 32, 32) * 2 - 1
    assert torch.allclose(bend(picture, torch.zeros(2, 4, 4)), picture, atol=1e-5)
    assert torch.equal(coarsen(picture, 1.0), picture)
    assert torch.equal(shuffle_tiles(picture, 16, torch.arange(4)), picture)


def test_each_way_of_spoiling() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(3, 32, 32)
    moved = bend(ramp, torch.stack([torch.full((4, 4), 0.25), torch.zeros(4, 4)]))  # read 8 px further right
    assert torch.allclose(moved[:, :, :24], ramp[:, :, 8:], atol=1e-4)
    picture = torch.rand(3, 32, 32) * 2 - 1
    assert torch.allclose(
        coarsen(picture, 1 / 32), picture.mean(dim=(1, 2), keepdim=True).expand_as(picture), atol=1e-5
    )
    swapped = shuffle_tiles(picture, 16, torch.tensor([3, 1, 2, 0]))
    assert torch.equal(swapped[:, :16, :16], picture[:, 16:, 16:])
    assert torch.equal(swapped[:, :16, 16:], picture[:, :16, 16:])


@pytest.mark.parametrize("kind", ["bend", "coarsest", "blotch", "grain"])
def test_every_setting_spoils(kind: str) -> None:
    off = {"bend": 0.0, "coarsest": 1.0, "blotch": 0.0, "grain": 0.0}
    on = {"bend": 0.05, "coarsest": 0.1, "blotch": 0.3, "grain": 0.3}
    picture = torch.rand(3, 32, 32) - 0.5
    same = spoil(picture, np.random.default_rng(1), Spoiling.model_validate(off))
    assert torch.allclose(same, picture, atol=1e-5)
    other = spoil(picture, np.random.default_rng(1), Spoiling.model_validate(off | {kind: on[kind]}))
    assert not torch.allclose(other, picture, atol=0.02)
