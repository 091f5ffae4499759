"""Targets of a teacher that are stored: the same training as under the teacher itself, which is not needed then."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import RECIPES, metrics_of, recipe_of, run_recipe

from snapgen.config import RecipeError
from snapgen.files import sha256
from snapgen.models.presets import create_denoiser
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.train.latent_stage import LatentStage
from snapgen.train.stage import Context
from snapgen.train.stages.distill import DistillStage
from snapgen.train.teachers.teacher import NetworkTeacher
from snapgen.weights import load_file, save_file_atomic
from snapgen.world.source import SceneSource

PICTURES, HELD_OUT, SHARD = 12, 8, 8  # two shards a draw, the last one short; whole batches of 4
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapgen.train.teachers.targets.SHARD", SHARD)
    monkeypatch.setattr(LatentStage, "validation_count", HELD_OUT)
    monkeypatch.setattr(LatentStage, "timestep_bins", 4)


def make_teacher(tiny_model: Path, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    SnapGenPipeline.from_pretrained(tiny_model, unet=create_denoiser("debug-teacher")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the recipe: two draws of each picture, under a teacher that is guided."""
    folder = tmp_path_factory.mktemp("targets")
    teacher = make_teacher(tiny_model, folder / "teacher", 3)
    given = {"autoencoder": tiny_model / "vae", "text": tiny_model, "teacher": teacher, "cache": folder / "latents"}
    rest = ["distillation.guidance_scale=2.0", f"data.count={PICTURES}", "draws=2", "train.batch_size=4"]
    return [*(f"{key}={value}" for key, value in given.items()), *rest]


def teacher_of(settings: list[str]) -> Path:
    return Path(next(part for part in settings if part.startswith("teacher=")).removeprefix("teacher="))


def make_stage(
    settings: list[str], run: Path, *overrides: str, rank: int = 0, world: int = 1, enough: int | None = None
) -> DistillStage:
    """The stage; interrupted after `enough` shards."""

    def progress(items: Any, description: str, total: int) -> Any:
        for number, item in enumerate(items):
            if description == "asking the teacher" and number == enough:
                raise KeyboardInterrupt
            yield item

    torch.manual_seed(0)
    recipe = recipe_of(RECIPES / "debug" / "distill.yaml", *settings, *overrides)
    return DistillStage(recipe, Context(torch.device("cpu"), rank, world, run, progress))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call asks of a teacher's network."""
    calls: list[int] = []
    evaluate = NetworkTeacher.__call__

    def count(teacher: NetworkTeacher, x: torch.Tensor, *given: Any, **named: Any) -> Any:
        calls.append(len(x))
        return evaluate(teacher, x, *given, **named)

    monkeypatch.setattr(NetworkTeacher, "__call__", count)
    return calls


@pytest.mark.slow
def test_stored_targets_train_as_the_teacher_does(settings: list[str], tmp_path: Path, asked: list[int]) -> None:
    """To the last bit: losses, held-out losses, weights, over three visits of two draws; also where it is gone."""
    steps = ["train.steps=9", "train.sample_every=9", "train.checkpoint_every=9"]
    live = run_recipe("distill", tmp_path / "live", *settings, *steps)
    asked.clear()
    cache = f"target_cache={tmp_path / 'targets'}"
    filling = run_recipe("distill", tmp_path / "filling", *settings, *steps, cache)
    assert sum(asked) == 2 * PICTURES + HELD_OUT and max(asked) <= max(4, HELD_OUT)
    asked.clear()
    teacher = teacher_of(settings)
    teacher.rename(teacher.with_name("away"))
    try:
        stored = run_recipe("distill", tmp_path / "stored", *settings, *steps, cache)
    finally:
        teacher.with_name("away").rename(teacher)
    assert asked == []
    assert metrics_of(tmp_path / "live") == metrics_of(tmp_path / "filling") == metrics_of(tmp_path / "stored")
    assert len({line["output"] for line in metrics_of(tmp_path / "live")}) == 9
    curves = [(tmp_path / run / "timesteps.jsonl").read_text() for run in ("live", "filling", "stored")]
    assert len(set(curves)) == 1 and '"features"' in curves[0]
    assert sha256(live / WEIGHTS) == sha256(filling / WEIGHTS) == sha256(stored / WEIGHTS)


@torch.no_grad()
def test_a_draw_is_the_pictures_own(settings: list[str], tmp_path: Path) -> None:
    """Whatever the seed and the place in the order; its targets are what the network says of it."""
    cache = [f"target_cache={tmp_path / 'targets'}", "caption_dropout=0.4"]
    stages = [make_stage(settings, tmp_path, *cache, f"seed={seed}") for seed in (0, 1)]
    teacher = make_stage(settings, tmp_path, "caption_dropout=0.4", "distillation.guidance_scale=1.0").teacher
    seen: list[dict[bytes, torch.Tensor]] = []
    for stage in stages:
        samples = {}
        for step in range(6):  # each picture twice
            batch = stage.batch(step)
            for number in range(4):
                key = batch["noise"][number].numpy().tobytes()
                samples[key] = batch["teacher_velocity"][number]
            x0, noise, t = batch["x0"], batch["noise"], batch["sigmas"]
            x = x0 + t[:, None, None, None] * (noise - x0)
            unconditional = stage.text([""] * 4)
            one, (feature,) = teacher(x, t, batch, (-1,))
            empty = {"states": unconditional.states, "mask": unconditional.mask}
            other = teacher(x, t, empty)[0]
            torch.testing.assert_close(batch["teacher_velocity"], other + 2 * (one - other))
            torch.testing.assert_close(batch["teacher_features"], feature)
        seen.append(samples)
    assert len(seen[0]) == 2 * PICTURES and seen[0].keys() == seen[1].keys()
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in seen[0])
    first, second = (stage.batch(0) for stage in stages)
    assert not torch.equal(first["x0"], second["x0"])


def test_an_interrupted_fill_goes_on_and_more_draws_are_added(
    settings: list[str], tmp_path: Path, asked: list[int]
) -> None:
    folder = tmp_path / "targets"
    cache = f"target_cache={folder}"
    with pytest.raises(KeyboardInterrupt):
        make_stage(settings, tmp_path, cache, enough=1)
    assert sum(asked) == HELD_OUT + SHARD
    assert {path.name for path in folder.iterdir()} == {
        "heldout.safetensors",
        "targets.json",
        "targets_00000.safetensors",
    }
    asked.clear()
    make_stage(settings, tmp_path, cache)
    assert sum(asked) == 2 * PICTURES - SHARD
    asked.clear()
    make_stage(settings, tmp_path, cache, "draws=1", "distillation.features=false")
    assert asked == []
    make_stage(settings, tmp_path, cache, "draws=3", "distillation.features=false")
    assert sum(asked) == PICTURES
    stage = make_stage(settings, tmp_path, cache, "draws=3")  # what was added has features, as the rest
    assert sum(asked) == PICTURES and "teacher_features" in stage.batch(8)


def test_processes_share_the_fill(
    settings: list[str], tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks for every other shard; together they have written what one writes alone."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    whole = make_stage(settings, tmp_path, f"target_cache={alone}").batch(3)
    asked.clear()
    waited: list[int] = []
    monkeypatch.setattr(DistillStage, "open_source", lambda stage, given: SceneSource(given))
    monkeypatch.setattr(DistillStage, "wait_for_everyone", lambda stage: waited.append(stage.context.rank))
    with pytest.raises(FileNotFoundError):  # the first one's are not there yet, and nothing waits here
        make_stage(settings, tmp_path, f"target_cache={both}", rank=0, world=2)
    assert sum(asked) == HELD_OUT + 2 * SHARD  # the shards 0 and 2 of 8, 4, 8, 4
    asked.clear()
    second = make_stage(settings, tmp_path, f"target_cache={both}", rank=1, world=2)
    assert sum(asked) == 2 * (PICTURES - SHARD)
    assert waited.count(0) == waited.count(1) == 3  # latents, description, targets
    first = make_stage(settings, tmp_path, f"target_cache={both}", rank=0, world=2)
    for name in ("x0", "noise", "teacher_velocity", "teacher_features"):
        halves = [stage.batch(3)[name] for stage in (first, second)]
        torch.testing.assert_close(torch.cat(halves), whole[name])


def test_half_precision_is_stored_as_such(settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "targets"
    half = [*settings, "train.precision=bf16", "distillation.guidance_scale=1.0"]
    stored = make_stage(half, tmp_path, f"target_cache={folder}")
    tensors = load_file(folder / "targets_00000.safetensors")
    assert tensors["teacher_velocity"].dtype == tensors["teacher_features"].dtype == torch.bfloat16
    live = make_stage(half, tmp_path)
    live.model.load_state_dict(stored.model.state_dict())
    with torch.no_grad():
        one, other = (stage.loss(stage.model, stage.batch(1)) for stage in (stored, live))
    for name in one:
        assert one[name].item() == pytest.approx(other[name].item(), rel=2e-2)


@pytest.mark.slow
def test_targets_of_something_else_are_refused(
    settings: list[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "targets"
    cache = f"target_cache={folder}"
    few = ["draws=1", "distillation.features=false"]
    make_stage(settings, tmp_path, cache, *few)
    before = {path.name: sha256(path) for path in folder.iterdir()}

    def refused(message: str, *overrides: str) -> None:
        with pytest.raises(RecipeError, match=message) as error:
            make_stage(settings, tmp_path, cache, *few, *overrides)
        assert "\n" not in str(error.value)
        assert {path.name: sha256(path) for path in folder.iterdir()} == before

    start = f"target_cache: {folder} holds the targets of other settings: "
    refused(start + r"guidance_scale \(2.0 -> 3.0\); name another folder", "distillation.guidance_scale=3.0")
    refused(start + r"features \(False -> True\)", "distillation.features=true")
    refused(start + r"timesteps \(.*caption_dropout \(0.1 -> 0.2\)", "timesteps.shift=2.0", "caption_dropout=0.2")
    refused(start + r"precision \(fp32 -> bf16\)", "train.precision=bf16")
    refused(start + r"latents \(.*held-out pictures \(", "data.resolution=64")
    refused(start + r"latents \([0-9a-f]{12} -> [0-9a-f]{12}\); name", "data.count=11")
    other = make_teacher(tiny_model, tmp_path / "other", 4)
    refused(start + r"teacher \(.* -> [0-9a-f]{12}\); name", f"teacher={other}")
    make_stage(settings, tmp_path, cache, *few, f"teacher={shutil.copytree(teacher_of(settings), tmp_path / 'copy')}")
    text = shutil.copytree(tiny_model, tmp_path / "text")
    doubled(text / "text_encoder" / "model.safetensors", "")
    refused(start + r"text \([0-9a-f]{12} -> [0-9a-f]{12}\); name", f"text={text}")

    with pytest.raises(RecipeError, match=f"target_cache: {tiny_model / 'vae'} holds files of something else"):
        make_stage(settings, tmp_path, *few, f"target_cache={tiny_model / 'vae'}")
    monkeypatch.setattr(SceneSource, "caption", lambda source, index, variant: f"another {index}")
    stage = make_stage(settings, tmp_path, *few, f"target_cache={tmp_path / 'new'}")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"target_cache: the targets in .*new are of another caption of picture \d+"):
        stage.batch(0)


def doubled(file: Path, *prefixes: str) -> None:
    """Doubles the weights in `file` whose names start with one of `prefixes`."""
    weights = load_file(file)
    save_file_atomic({name: tensor * (1 + name.startswith(prefixes)) for name, tensor in weights.items()}, file)


def test_another_decoder_changes_neither_latents_nor_targets(
    settings: list[str], tmp_path: Path, asked: list[int]
) -> None:
    cache = f"target_cache={tmp_path / 'targets'}"
    first = make_stage(settings, tmp_path, cache).batches.stored.name
    asked.clear()
    teacher = shutil.copytree(teacher_of(settings), tmp_path / "teacher")
    file = teacher / "vae" / "diffusion_pytorch_model.safetensors"
    doubled(file, "decoder.")
    anew = [*settings, f"teacher={teacher}", f"autoencoder={teacher / 'vae'}"]
    assert make_stage(anew, tmp_path, cache).batches.stored.name == first
    assert asked == []
    doubled(file, "encoder.conv_out.")
    with pytest.raises(RecipeError, match="holds the targets of other settings: latents"):
        make_stage(anew, tmp_path, cache)


def test_settings_that_cannot_be(settings: list[str]) -> None:
    def refused(message: str, recipe: str, *overrides: str) -> None:
        with pytest.raises(RecipeError, match=message):
            recipe_of(RECIPES / "debug" / f"{recipe}.yaml", *overrides)

    refused("draws: input should be greater than 0", "distill", "draws=0")
    refused("target_cache needs draws, how many of each picture, and cache", "distill", "target_cache=x")
    refused("target_cache needs draws, .*, and cache", "distill", "target_cache=x", "draws=1", "cache=null")
    refused("unknown key draws", "step", "draws=2")
