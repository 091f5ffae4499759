"""Training under several text encoders: what is loaded, dropped and saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import RECIPES, metrics_of, recipe_of, run_recipe
from torch import Tensor

from snapgen.config import RecipeError
from snapgen.pipeline.bundled import bundled_folder
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.train.places import text_sources
from snapgen.train.stage import Context
from snapgen.train.stages.flow import FlowStage


@pytest.fixture(scope="module")
def paths(tiny_model: Path, text_models: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a flow recipe with three text encoders and an autoencoder that was never trained."""
    cache = tmp_path_factory.mktemp("latents")
    return [f"autoencoder={tiny_model / 'vae'}", f"text=[{', '.join(text_models)}]", f"cache={cache}"]


def make_stage(run: Path, *overrides: str) -> FlowStage:
    recipe = recipe_of(RECIPES / "debug" / "flow.yaml", *overrides)
    return FlowStage(recipe, Context(torch.device("cpu"), 0, 1, run, lambda items, description, total: items))


@pytest.mark.slow
def test_the_saved_pipeline_holds_all_encoders(paths: list[str], tmp_path: Path) -> None:
    settings = ["encoder_dropout=0.464", "language={max_length: 12, prefix: 'a '}", "train.steps=2"]
    model = run_recipe("flow", tmp_path / "run", *paths, *settings)
    assert all(line["loss"] > 0 for line in metrics_of(tmp_path / "run"))
    pipeline = SnapGenPipeline.from_pretrained(model)
    assert len(pipeline.text_encoders) == 3
    assert (pipeline.config.language_max_length, pipeline.config.language_prefix) == (12, "a ")
    stage = make_stage(tmp_path, *paths, *settings)
    ours, theirs = stage.text(["a cat", ""]), pipeline.encode_text(["a cat", ""])
    assert ours.states.shape == (2, 16 + 12, 32)
    torch.testing.assert_close(theirs.states, ours.states)
    assert torch.equal(theirs.mask, ours.mask)
    again = make_stage(tmp_path, *paths, *settings, f"text={model}")  # the layout of pipelines
    assert torch.equal(again.text(["a cat"]).states, stage.text(["a cat"]).states)


@pytest.mark.slow
def test_a_pooled_vector_is_trained_with_and_sampled_with(paths: list[str], tmp_path: Path) -> None:
    """The two CLIPs' (8 + 12 wide), for a UNet that reads it; others are not given any."""
    assert "pooled" not in make_stage(tmp_path, *paths).batch(0)
    model = run_recipe(
        "flow", tmp_path / "run", *paths, "train.steps=2", "model={preset: debug, pooled_projection_dim: 20}"
    )
    assert all(line["loss"] > 0 for line in metrics_of(tmp_path / "run"))
    pipeline = SnapGenPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.pooled_projection_dim == 20
    pooled = pipeline.encode_text(["a cat", ""]).pooled
    assert pooled is not None and pooled.shape == (2, 20)
    assert pooled[0].abs().min() > 0 and pooled[1].abs().max() == 0

    def sampled(**given: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipeline(
            num_inference_steps=2, guidance_scale=2.0, generator=generator, output_type="pt", **given
        ).images

    before = sampled(prompt="a cat")
    with torch.no_grad():
        pipeline.unet.pooled_embedding.linear_1.weight.mul_(10)
    assert not torch.equal(sampled(prompt="a cat"), before)
    embeds = pipeline.encode_prompt("a cat")
    with pytest.raises(ValueError, match="reads a pooled text vector, too: give prompts instead of prompt_embeds"):
        sampled(prompt_embeds=embeds[0], prompt_attention_mask=embeds[1])
    with pytest.raises(RecipeError, match="reads pooled text vectors of width 24, the text encoders in .* give 20"):
        make_stage(tmp_path, *paths, "model={preset: debug, pooled_projection_dim: 24}")


def drops(stage: FlowStage, steps: int) -> tuple[list[str], Tensor]:
    """Captions of the first `steps` batches and which encoders each does without, B E."""
    seen: list[tuple[list[str], Tensor]] = []

    def note(captions: list[str], dropped: Tensor) -> dict[str, Any]:
        seen.append((captions, dropped))
        return {}

    stage.conditions = note  # type: ignore[method-assign, assignment]
    for step in range(steps):
        stage.batch(step)
    del stage.conditions  # type: ignore[method-assign]
    return [text for captions, _ in seen for text in captions], torch.cat([dropped for _, dropped in seen])


def test_every_encoder_is_dropped_by_itself(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(tmp_path, *paths, "encoder_dropout=0.464", "caption_dropout=0")
    captions, dropped = drops(stage, 100)
    assert dropped.shape == (800, 3)
    shares = dropped.float().mean(dim=0)
    torch.testing.assert_close(shares, torch.full((3,), 0.464), atol=0.06, rtol=0)
    nobody = dropped.all(dim=1)
    assert nobody.float().mean().item() == pytest.approx(0.464**3, abs=0.04)  # independent: SD3's 10 %
    assert [caption == "" for caption in captions] == nobody.tolist()  # then the caption is gone for a teacher too

    halves = []
    for rank in (0, 1):
        stage.context = replace(stage.context, rank=rank, world=2)
        halves.append(drops(stage, 2)[1])
    ranks = [torch.cat([half[4 * step : 4 * step + 4] for half in halves]) for step in range(2)]
    assert torch.equal(torch.cat(ranks), dropped[:16])


def test_without_encoders_is_the_empty_prompt(paths: list[str], tmp_path: Path) -> None:
    stage = make_stage(tmp_path, *paths)
    everyone = torch.ones(2, 3, dtype=torch.bool)
    without, empty = stage.conditions(["a cat", "two red apples"], everyone), stage.conditions(["", ""])
    assert torch.equal(without["states"], empty["states"]) and torch.equal(without["mask"], empty["mask"])


def test_other_random_numbers_stay_as_they_are(paths: list[str], tmp_path: Path) -> None:
    plain, dropping = (make_stage(tmp_path, *paths, f"encoder_dropout={share}") for share in (0.0, 0.464))
    one, other = plain.batch(3), dropping.batch(3)
    assert all(torch.equal(one[name], other[name]) for name in ("x0", "noise", "sigmas"))
    assert not drops(plain, 5)[1].any()
    captions, _ = drops(plain, 5)
    kept, dropped = drops(dropping, 5)
    assert all(now == before for before, now, gone in zip(captions, kept, dropped.all(dim=1), strict=True) if not gone)


def test_refusals_are_one_line(paths: list[str], text_models: list[str], tmp_path: Path) -> None:
    def refused(message: str, text: str) -> None:
        with pytest.raises(RecipeError, match=message) as error:
            make_stage(tmp_path, *paths, f"text={text}")
        assert "\n" not in str(error.value)

    clip, projected, gemma = text_models
    refused("^text: folder .*nowhere does not exist", f"[{clip}, {tmp_path / 'nowhere'}]")
    refused("^text: nobody/no-model cannot be loaded", f"[{clip}, nobody/no-model]")
    refused("^text: text encoders Gemma2Model, CLIPTextModel: CLIPs first", f"[{gemma}, {clip}]")
    refused("reads text states of width 32, the text encoders in .* give 20", f"[{clip}, {projected}]")
    with pytest.raises(RecipeError, match="text"):
        recipe_of(RECIPES / "debug" / "flow.yaml", "text=7")


def test_the_bundled_text_encoder() -> None:
    assert text_sources("mini") == [str(bundled_folder())]
    assert text_sources(("mini", "google/gemma-2-2b")) == [str(bundled_folder()), "google/gemma-2-2b"]
