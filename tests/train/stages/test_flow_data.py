"""The flow stage on pictures of its user: buckets, latents with and without a cache, resumed, shared by processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.recipes import RECIPES, recipe_of, shares_of

from snapgen.config import RecipeError, parse_recipe
from snapgen.files import sha256
from snapgen.train.loop import train
from snapgen.train.stage import Context
from snapgen.train.stages.flow import FlowRecipe, FlowStage

SHAPES = [(90, 30), (64, 64), (40, 70), (64, 66), (100, 40)]  # px


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of noise in five shapes, with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(10):
        width, height = SHAPES[number % 5]
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a cat {number}")
    return folder


def make_recipe(model: Path, pictures: Path, cache: Path | None, buckets: bool = True, **settings: Any) -> FlowRecipe:
    train_settings = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "sample_every": 4, "checkpoint_every": 2}
    data = {"source": "folder", "path": str(pictures), "resolution": 64, "held_out": 1}
    mapping = {
        "stage": "flow",
        "model": "debug",
        "autoencoder": str(model / "vae"),
        "text": str(model),
        "cache": None if cache is None else str(cache),
        "workers": 2,
        "data": data | ({"buckets": {"step": 32}} if buckets else {}),
        "prompts": ["a cat"],
        "num_inference_steps": 1,
        "train": train_settings | settings,
    }
    return parse_recipe(FlowRecipe, mapping, "test")


def make_stage(recipe: FlowRecipe, run: Path) -> FlowStage:
    return FlowStage(recipe, Context(torch.device("cpu"), 0, 1, run, lambda items, description, total: items))


def losses_of(run: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_resumed_with_buckets_equals_uninterrupted(
    tiny_model: Path, pictures: Path, tmp_path: Path, cached: bool
) -> None:
    cache = tmp_path / "latents" if cached else None
    whole = train(FlowStage, make_recipe(tiny_model, pictures, cache), tmp_path / "whole", resume=False)
    train(FlowStage, make_recipe(tiny_model, pictures, cache, steps=2), tmp_path / "parts", resume=False)
    parts = train(FlowStage, make_recipe(tiny_model, pictures, cache), tmp_path / "parts", resume=True)
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert sha256(whole / weights) == sha256(parts / weights)


def test_the_same_batches_with_and_without_a_cache(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    stored = make_stage(make_recipe(tiny_model, pictures, tmp_path / "latents"), tmp_path)
    encoded = make_stage(make_recipe(tiny_model, pictures, None), tmp_path)
    shapes = set()
    for step in range(5):
        one, other = stored.batch(step), encoded.batch(step)
        for name in ("noise", "sigmas", "states", "mask"):
            assert torch.equal(one[name], other[name]), name
        assert one["noise"].shape == one["x0"].shape
        torch.testing.assert_close(one["x0"], other["x0"], rtol=2e-3, atol=2e-3)  # fp16 has 11 bits
        shapes.add(tuple(one["x0"].shape[2:]))
    assert len(shapes) > 1 and shapes <= {(4, 12), (8, 8), (12, 4)}  # 32 x 96, 64 x 64, 96 x 32 px


@pytest.mark.parametrize("cached", [True, False])
def test_one_process_or_two_see_the_same_batch(tiny_model: Path, pictures: Path, tmp_path: Path, cached: bool) -> None:
    stage = make_stage(make_recipe(tiny_model, pictures, tmp_path / "latents" if cached else None), tmp_path)
    for step in range(3):
        alone = stage.batch(step)
        shares = shares_of(stage, step)
        for name in ("noise", "sigmas"):
            assert torch.equal(torch.cat([share[name] for share in shares]), alone[name])
        # Encoded in smaller batches, latents differ by rounding.
        torch.testing.assert_close(torch.cat([share["x0"] for share in shares]), alone["x0"], rtol=1e-4, atol=1e-4)


def test_the_held_out_loss_is_of_squares(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    stage = make_stage(make_recipe(tiny_model, pictures, None), tmp_path)
    assert stage.heldout["x0"].shape == (128, 16, 8, 8)


@pytest.mark.slow
def test_a_run_of_before_there_were_these_settings_goes_on(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """Also with another number of threads; but not with buckets, which are another training."""
    cache, run = tmp_path / "latents", tmp_path / "run"
    recipe = make_recipe(tiny_model, pictures, cache, buckets=False, steps=2)
    train(FlowStage, recipe, run, resume=False)
    (state,) = run.glob("checkpoints/*/state.json")
    saved = json.loads(state.read_text())
    del saved["recipe"]["workers"], saved["recipe"]["data"]["buckets"]
    state.write_text(json.dumps(saved))
    train(FlowStage, recipe.model_copy(update={"workers": 5}), run, resume=True)
    with pytest.raises(RecipeError, match=r"changed: data.buckets \(None -> unset\), data.buckets.max_ratio"):
        train(FlowStage, make_recipe(tiny_model, pictures, cache, steps=2), run, resume=True)


def test_a_share_of_the_samples_is_at_high_noise(tiny_model: Path, tmp_path: Path) -> None:
    paths = [f"autoencoder={tiny_model / 'vae'}", f"text={tiny_model}", "cache=null"]
    drawn = {}
    for share in (0.0, 0.25, 1.0):
        high = f"timesteps={{high_share: {share}, high_mean: 6.0, shift: 1.0}}"
        recipe = recipe_of(RECIPES / "debug" / "flow.yaml", *paths, high)
        stage = FlowStage(recipe, Context(torch.device("cpu"), 0, 1, tmp_path, lambda items, description, total: items))
        drawn[share] = stage._sample_sigmas(4000, torch.Generator().manual_seed(0))
    assert (drawn[1.0] > 0.9).float().mean() > 0.98
    elsewhere = drawn[0.25] != drawn[0.0]
    assert elsewhere.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (drawn[0.25][elsewhere] > 0.9).float().mean() > 0.98
