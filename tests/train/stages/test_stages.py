"""The stages, run for real: every debug recipe through the loop, one on the result of another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.recipes import RECIPES, metrics_of, paths_below, recipe_of, run_recipe
from transformers import AutoModel, AutoTokenizer

from snapgen.config import RecipeError
from snapgen.files import sha256
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.pictures import to_tensor
from snapgen.pipeline.bundled import bundled_folder
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.train.places import locate
from snapgen.train.stage import Context
from snapgen.train.stages.flow import FlowStage
from snapgen.weights import load_file


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_can_be_read(path: Path) -> None:
    recipe_of(path)


def test_every_full_size_recipe_has_a_debug_twin() -> None:
    stages = {recipe_of(path).stage for path in RECIPES.rglob("*.yaml")}
    assert stages == {recipe_of(path).stage for path in (RECIPES / "debug").glob("*.yaml")}


@pytest.mark.parametrize(("stage", "measured"), [("autoencoder", "psnr"), ("text", "twin"), ("flow", "heldout")])
def test_a_stage_records_draws_and_measures(folder: Path, stage: str, measured: str) -> None:
    run = folder / stage
    last = metrics_of(run)[-1]
    assert last["step"] == 4
    assert any(key.startswith("eval/") and measured in key for key in last)
    assert all(np.isfinite(value) for value in last.values())
    assert (run / "samples" / "step_00000004.png").stat().st_size > 0
    assert (run / "model" / "provenance.json").is_file()


def test_the_autoencoder_carries_the_scale_of_its_latents(folder: Path) -> None:
    autoencoder = SnapGenAutoencoder.from_pretrained(folder / "autoencoder" / "model")
    caches = (folder / "latents").glob("*/latents_00000.safetensors")
    first = min(caches, key=lambda file: file.stat().st_mtime)  # other tests may add some
    latents = load_file(first)["latents"].float()
    assert latents.shape == (64, 16, 4, 4)
    # Measured over "all" scenes, cached of the "train" split: nearly, not exactly, 0 and 1.
    assert abs(latents.mean().item()) < 0.2
    assert latents.std().item() == pytest.approx(1, abs=0.2)
    assert autoencoder.config.scaling_factor != 1.0


def test_the_text_model_is_a_folder_as_pipelines_have(folder: Path) -> None:
    model = folder / "text" / "model"
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    text = AutoModel.from_pretrained(model / "text_encoder")
    assert text.config.hidden_size == 32 and text.config.vocab_size == len(tokenizer) <= 300
    assert AutoModel.from_pretrained(model).config.projection_dim == 32  # the dual encoder, for a CLIP score


def test_the_result_is_a_pipeline_that_draws(folder: Path) -> None:
    pipeline = SnapGenPipeline.from_pretrained(folder / "flow" / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert (pipeline.config.shift, pipeline.config.default_num_inference_steps) == (3.0, 2)
    assert {"cat", "bunny"} <= set(pipeline.config.known_words["nouns"])
    picture = pipeline("two red apples", generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.size == (32, 32)


def test_the_loss_by_noise_level_is_recorded(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "flow" / "timesteps.jsonl").read_text().splitlines()]
    measured = [line for line in metrics_of(folder / "flow") if "eval/heldout" in line]
    assert [line["step"] for line in lines] == [line["step"] for line in measured]
    for line, metrics in zip(lines, measured, strict=True):
        assert line["sigma"] == [(index + 0.5) / 16 for index in range(16)]
        assert sum(line["loss"]) / 16 == pytest.approx(metrics["eval/heldout"])
    assert (folder / "flow" / "plots" / "timesteps.png").exists()


@pytest.mark.slow
def test_recomputed_activations_give_the_same_training(folder: Path, tmp_path: Path) -> None:
    run_recipe("flow", tmp_path / "run", "train.activation_checkpointing=true", *paths_below(folder))
    for here, there in zip(metrics_of(folder / "flow"), metrics_of(tmp_path / "run"), strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_resumed_flow_stage_is_the_one_never_interrupted(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_recipe("flow", run, "train.steps=2", *paths_below(folder))
    run_recipe("flow", run, *paths_below(folder), resume=True)
    expected = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in metrics_of(folder / "flow")]
    assert [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in metrics_of(run)] == expected
    weights = Path("model/unet/diffusion_pytorch_model.safetensors")
    assert sha256(run / weights) == sha256(folder / "flow" / weights)


@pytest.mark.slow
def test_a_stage_can_start_from_trained_weights(folder: Path, tmp_path: Path) -> None:
    initial = folder / "flow" / "model"
    larger = ("data.resolution=64", "train.steps=1", f"cache={tmp_path / 'latents'}")
    run_recipe("flow", tmp_path / "flow", *paths_below(folder), f"initial={initial}", *larger)
    start = load_file(initial / "unet" / "diffusion_pytorch_model.safetensors")
    end = load_file(tmp_path / "flow" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all((end[name] - tensor).abs().max() < 0.01 for name, tensor in start.items())
    # What was trained last is drawn by default.
    sizes = [
        SnapGenPipeline.from_pretrained(model).unet.config.sample_size
        for model in (initial, tmp_path / "flow" / "model")
    ]
    assert sizes == [4, 8]


@pytest.mark.parametrize("setting", ["initial", "encoder"])
def test_a_frozen_encoder_stays_as_it_is(folder: Path, tmp_path: Path, setting: str) -> None:
    initial = folder / "autoencoder" / "model"
    settings = (f"{setting}={initial}", "train_encoder=false", "train.steps=1", "seed=5")
    run_recipe("autoencoder", tmp_path / "run", *settings)
    before, after = (
        load_file(model / "diffusion_pytorch_model.safetensors") for model in (initial, tmp_path / "run" / "model")
    )
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"decoder"}
    largest = max((after[name] - tensor).abs().max() for name, tensor in before.items())
    assert (largest < 0.05) == (setting == "initial")  # a step away, or another decoder altogether
    configs = [SnapGenAutoencoder.load_config(model) for model in (initial, tmp_path / "run" / "model")]
    assert configs[0]["scaling_factor"] == configs[1]["scaling_factor"]  # the latents are the same: so is their scale


@pytest.fixture
def flow_stage(folder: Path, tmp_path: Path) -> FlowStage:
    recipe = recipe_of(RECIPES / "debug" / "flow.yaml", "caption_dropout=0.4", *paths_below(folder))
    context = Context(torch.device("cpu"), 0, 1, tmp_path, lambda items, description, total: items)
    return FlowStage(recipe, context)


def test_one_process_or_two_see_the_same_batch(flow_stage: FlowStage) -> None:
    alone = flow_stage.batch(3)
    shares = []
    for rank in (0, 1):
        flow_stage.context = replace(flow_stage.context, rank=rank, world=2)
        shares.append(flow_stage.batch(3))
    for name in ("x0", "noise", "sigmas"):
        assert torch.equal(torch.cat([share[name] for share in shares]), alone[name])
    visible = [share["mask"].sum(dim=1) for share in shares]
    assert torch.equal(torch.cat(visible), alone["mask"].sum(dim=1))


def test_a_batch_is_a_function_of_its_number(flow_stage: FlowStage) -> None:
    one, other = flow_stage.batch(5), flow_stage.batch(6)
    again = flow_stage.batch(5)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["noise"], other["noise"])


def test_an_epoch_visits_every_picture_once_and_drops_some_captions(flow_stage: FlowStage) -> None:
    count, size = len(flow_stage.source), 8
    batches = [flow_stage.batches(step, slice(None)) for step in range(2 * count // size)]
    pictures = [picture for batch in batches for picture in batch.pictures]
    assert sorted(pictures[:count]) == sorted(pictures[count:]) == list(range(count))
    assert pictures[:count] != pictures[count:]
    assert [epoch for batch in batches for epoch in batch.epochs] == [0] * count + [1] * count
    masks = [flow_stage.batch(step)["mask"].sum(dim=1) for step in range(2 * count // size)]
    dropped = (torch.cat(masks) == 1).float().mean().item()
    assert dropped == pytest.approx(0.4, abs=0.15)  # of 128


def test_the_loss_is_the_error_of_the_velocity(flow_stage: FlowStage) -> None:
    """Eq. 2: a network that knows data and noise has no loss, one that says nothing has the velocity's square."""
    batch = flow_stage.batch(0)
    sigma = batch["sigmas"][:, None, None, None]

    class Knowing(torch.nn.Module):
        def forward(self, x: torch.Tensor, timestep: torch.Tensor, *text: Any, **options: Any) -> tuple[torch.Tensor]:
            assert torch.equal(timestep, 1000 * batch["sigmas"])
            torch.testing.assert_close(x, (1 - sigma) * batch["x0"] + sigma * batch["noise"])
            return (batch["noise"] - batch["x0"],)

    class Silent(torch.nn.Module):
        def forward(self, x: torch.Tensor, *inputs: Any, **options: Any) -> tuple[torch.Tensor]:
            return (torch.zeros_like(x),)

    assert flow_stage.loss(Knowing(), batch)["loss"].item() == 0
    expected = (batch["noise"] - batch["x0"]).square().mean()
    torch.testing.assert_close(flow_stage.loss(Silent(), batch)["loss"], expected)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="^text: folder .*nowhere does not exist; train that stage first"):
        run_recipe("flow", tmp_path / "a", *paths_below(folder), f"text={tmp_path / 'nowhere'}")
    with pytest.raises(RecipeError, match="model mini reads text states of width 256, .* give 32"):
        run_recipe("flow", tmp_path / "b", *paths_below(folder), "model=mini")
    with pytest.raises(RecipeError, match="initial: mini-base was trained on another autoencoder's latents .*to mini"):
        run_recipe("flow", tmp_path / "e", *paths_below(folder), "initial=mini-base")
    with pytest.raises(RecipeError, match="even batch"):
        run_recipe("text", tmp_path / "c", "train.batch_size=5")
    with pytest.raises(RecipeError, match="train_encoder: false needs initial"):
        run_recipe("autoencoder", tmp_path / "d", "train_encoder=false")
    with pytest.raises(RecipeError, match="initial: folder .* does not exist"):
        run_recipe("autoencoder", tmp_path / "e", f"initial={tmp_path / 'nowhere'}")


@pytest.mark.slow
def test_training_shows_no_bars_of_the_libraries(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_recipe("flow", tmp_path / "run", "train.steps=1", *paths_below(folder))
    err = capfd.readouterr().err
    assert not [line for line in ("Loading weights", "Writing model shards", "Loading pipeline") if line in err]
    assert "the text encoder reads" not in err


def lora_overrides(folder: Path) -> list[str]:
    examples = RECIPES.parent / "examples" / "unicorns"
    return [*paths_below(folder), f"initial={folder / 'flow' / 'model'}", f"data.path={examples}"]


@pytest.mark.slow
def test_adapters_are_trained_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    """The adapted pipeline draws what the stage drew at its end; without the adapters it is the one before."""
    adapters = run_recipe("lora", tmp_path / "lora", *lora_overrides(folder))
    files = {path.name for path in adapters.iterdir()}
    assert files == {"pytorch_lora_weights.safetensors", "provenance.json"}
    tensors = load_file(adapters / "pytorch_lora_weights.safetensors")
    assert tensors and all("lora_A" in name or "lora_B" in name for name in tensors)
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)

    pipeline = SnapGenPipeline.from_pretrained(folder / "flow" / "model")
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        generator = [torch.Generator().manual_seed(0)]
        return np.asarray(pipeline("a unicorn", generator=generator, output_type="np").images)

    before, weights = draw(), {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(adapters)
    drawn = np.asarray(Image.open(tmp_path / "lora" / "samples" / "step_00000004.png").convert("RGB"))
    adapted = draw()
    assert np.abs(adapted - before).max() > 1e-3
    picture = np.round(adapted[0] * 255).astype(int)
    found = [
        np.abs(drawn[top : top + 32, left : left + 32].astype(int) - picture).max()
        for top in range(drawn.shape[0] - 31)
        for left in range(drawn.shape[1] - 31)
    ]
    assert min(found) <= 3  # the sheet was drawn under autocast or not, of the same weights
    pipeline.unload_lora_weights()
    after = pipeline.unet.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in weights)
    assert np.abs(draw() - before).max() < 1e-5  # other layers, of the same weights: some processors round differently


@pytest.mark.slow
def test_a_resumed_lora_run_is_the_one_never_interrupted(folder: Path, tmp_path: Path) -> None:
    whole = run_recipe("lora", tmp_path / "whole", *lora_overrides(folder))
    run_recipe("lora", tmp_path / "parts", *lora_overrides(folder), "train.steps=2")
    parts = run_recipe("lora", tmp_path / "parts", *lora_overrides(folder), resume=True)
    # Not the files: safetensors writes the entries of its metadata in any order.
    one, other = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_lora_settings_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lora needs initial"):
        recipe_of(RECIPES / "debug" / "flow.yaml", "lora={}")
    for targets, unknown in (("nothing", "nothing"), ("to_q, to_k, to_v, to_out.0", "to_k, to_out.0, to_v")):
        with pytest.raises(
            RecipeError, match=rf"lora.targets \[.*\]: no layer of SnapGenUNet is called {unknown}; .*to_kv"
        ):
            run_recipe("lora", tmp_path / "run", *lora_overrides(folder), f"lora.targets=[{targets}]")


def test_the_bundled_model_can_be_started_from(tmp_path: Path) -> None:
    assert locate("initial", Path("mini-base")) == bundled_folder()
    for key in ("initial", "teacher"):
        with pytest.raises(RecipeError, match=f"{key}: 'mini' is a few-step model .* name 'mini-base'"):
            locate(key, Path("mini"))
    assert locate("autoencoder", Path("mini"), "vae") == bundled_folder() / "vae"
    with pytest.raises(RecipeError, match="text: folder .*nowhere does not exist"):
        locate("text", tmp_path / "nowhere")


def test_an_autoencoder_can_end_with_white_latents(tmp_path: Path) -> None:
    model = run_recipe("autoencoder", tmp_path / "run", "model=debug-white", "whiten=true")
    autoencoder = SnapGenAutoencoder.from_pretrained(model)
    assert autoencoder.config.scaling_factor == 1.0 and autoencoder.config.shift_factor == 0.0
    source = recipe_of(RECIPES / "debug" / "autoencoder.yaml").data.open()
    pictures = to_tensor([source.image(index) for index in range(64)])
    with torch.no_grad():
        latents = autoencoder.encode(pictures).latent_dist.mode().transpose(0, 1).flatten(1)
    assert torch.linalg.eigvalsh(torch.cov(latents)).sqrt()[-4:].max() < 2
    with pytest.raises(RecipeError, match="whiten: model debug has no post_quant_conv"):
        run_recipe("autoencoder", tmp_path / "other", "whiten=true")
    with pytest.raises(RecipeError, match="whiten changes the latents"):
        recipe_of(RECIPES / "mini" / "decoder.yaml", "whiten=true")
