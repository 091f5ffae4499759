"""The recipes of recipes/paper: their networks at full size, without weights, and a step of each at the smallest size.

What a run shrinks is the network, the pictures, the batch and the number of steps; text encoders, teacher and LPIPS's
VGG-16 have random weights. Compilation, which takes minutes, is skipped. All else is the recipe's own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.recipes import RECIPES, metrics_of, recipe_of
from transformers import CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model

from snapgen.data.folder import FolderSettings, FolderSource
from snapgen.data.shards import write_shards
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.denoiser import feature_widths, text_width
from snapgen.models.discriminator import PatchDiscriminator
from snapgen.models.distiller import Discriminator, DistilledStudent
from snapgen.models.presets import UNETS, create_autoencoder, create_denoiser
from snapgen.models.unet import SnapGenUNet
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.text.encoder import TransformersTextEncoder
from snapgen.text.join import TEXT_ENCODERS, JointTextEncoder
from snapgen.text.load import load_text_encoders
from snapgen.train.loop import train
from snapgen.train.stage import DISCRIMINATOR, Context, Stage
from snapgen.train.stages import load_stage
from snapgen.train.stages.step import FewStepStudent

# The tiny tokenizer makes many tokens of a prompt.
pytestmark = pytest.mark.filterwarnings("ignore:prompt")

PAPER = sorted((RECIPES / "paper").glob("*.yaml"))
each_recipe = pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)

TEXT_CONFIGS = {
    "openai/clip-vit-large-patch14": CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    ),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20
    ),
    "google/gemma-2-2b": Gemma2Config(),  # transformers' defaults are the 2b's
}


@each_recipe
def test_networks_fit_each_other_at_full_size(path: Path, tiny_model: Path) -> None:
    recipe = recipe_of(path)
    with torch.device("meta"):
        if recipe.stage == "autoencoder":
            autoencoder = recipe.model.create()
            assert 1.3e6 < sum(parameter.numel() for parameter in autoencoder.decoder.parameters()) < 1.5e6
            picture = torch.empty(1, 3, recipe.crop, recipe.crop)
            assert autoencoder(picture).sample.shape == picture.shape
            assert PatchDiscriminator()(picture).shape[0] == 1
            return
        unet = recipe.model.create()
        encoders = [
            (CLIPTextModel if isinstance(config, CLIPTextConfig) else Gemma2Model)(config)
            for config in (TEXT_CONFIGS[name] for name in recipe.text)
        ]
    tokenizer = SnapGenPipeline.from_pretrained(tiny_model).tokenizer
    readers = [TransformersTextEncoder(encoder, tokenizer) for encoder in encoders]
    assert JointTextEncoder(dict(zip(TEXT_ENCODERS, readers, strict=False))).width == text_width(unet)
    assert unet.config.in_channels == create_autoencoder("debug").config.latent_channels
    if recipe.stage == "flow":
        return
    with torch.device("meta"):
        teacher = create_denoiser("sd3.5-large")
        widths = feature_widths(teacher)
        assert teacher.config.in_channels == unet.config.in_channels
        assert recipe.data.resolution // 8 <= teacher.config.pos_embed_max_size * teacher.config.patch_size
        if recipe.stage == "distill":
            DistilledStudent(unet, widths[-1])
        else:
            FewStepStudent(unet, Discriminator([widths[tap] for tap in recipe.adversary.taps], recipe.adversary.hidden))


@each_recipe
@pytest.mark.parametrize("gpus", [1, 8, 16, 32, 64])
def test_it_runs_on_any_usual_number_of_gpus(path: Path, gpus: int) -> None:
    recipe = recipe_of(path)
    rounds, samples = recipe.train.share(gpus)
    assert rounds * samples * gpus == recipe.train.batch_size
    assert rounds == recipe.train.gradient_accumulation or samples == 1
    if gpus <= 16:
        assert rounds == recipe.train.gradient_accumulation
    context = Context(torch.device("cpu"), 0, gpus, Path(), lambda items, description, total: items)
    seen: list[int] = []  # of the second step
    for rank in range(gpus):
        stage = Loose(recipe, replace(context, rank=rank))
        seen += [number for index in range(rounds) for number in stage.local_indices(rounds + index)]
    assert sorted(seen) == list(range(recipe.train.batch_size, 2 * recipe.train.batch_size))


class Loose(Stage[Any, Any]):
    """A stage without networks: only its share of the batch counts."""

    batch = loss = sample_grid = save = None  # type: ignore[assignment]


def test_distillation_shows_the_student_what_the_teacher_reads() -> None:
    recipe, last = (recipe_of(RECIPES / "paper" / f"{name}.yaml") for name in ("t2i_5_distill_1024", "t2i_6_step_1024"))
    assert len(recipe.text) == 3 and recipe.encoder_dropout == recipe.caption_dropout == 0
    assert last.text == recipe.text and last.encoder_dropout == 0  # nor while Turbo teaches
    before = recipe_of(RECIPES / "paper" / "t2i_4_1024.yaml")
    assert before.encoder_dropout == 0.464 and before.text == recipe.text


@each_recipe
def test_a_stage_starts_from_one_that_there_is(path: Path) -> None:
    recipe = recipe_of(path)
    for key, model in (("initial", recipe.model.preset), ("autoencoder", "decoder")):
        folder = getattr(recipe, key, None)
        if folder is not None:
            run = folder.parent
            assert (run.parent, folder.name) == (Path("runs/paper"), "model")
            assert recipe_of(path.with_name(f"{run.name}.yaml")).model.preset == model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Overrides of the `data` section for each source: noise, wide and tall, in tars and in two classes."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for number in range(8):
        shape = (40 + 60 * (number % 2), 70, 3)
        place = folder / "train" / ("n01440764", "n02099601")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text("a cat")
    (folder / "names.txt").write_text("n01440764 tench, Tinca tinca\nn02099601 golden retriever\n")
    source = FolderSource(FolderSettings(source="folder", path=folder / "train", resolution=64))
    write_shards(source, folder / "shards", samples=4)
    for text in folder.rglob("*.txt"):
        if text.parent != folder:
            text.unlink()  # the classes' names take their place
    return {
        "shards": [f"data.path={folder / 'shards'}"],
        "folder": [f"data.path={folder / 'train'}", f"data.class_names={folder / 'names.txt'}"],
    }


@pytest.mark.slow
@each_recipe
def test_a_step_of_it_runs(
    path: Path,
    data: dict[str, list[str]],
    tiny_model: Path,
    text_models: list[str],
    published: Path,
    vgg16: Path,
    tmp_path: Path,
) -> None:
    full = recipe_of(path)
    rounds = full.train.gradient_accumulation
    overrides = ["model=debug", "data.resolution=64", *data[full.data.source]]
    overrides += ["train.steps=1", f"train.batch_size={2 * rounds}", "train.sample_every=1", "train.compile=false"]
    if full.stage == "autoencoder":
        overrides += [f"encoder={published}", "crop=32", f"lpips_network={vgg16}"]
    else:
        texts = text_models if len(full.text) == 3 else [str(tiny_model)]
        overrides += [f"autoencoder={tiny_model / 'vae'}", f"text=[{', '.join(texts)}]"]
        overrides += [f"cache={tmp_path / 'latents'}"] if full.cache else []
        overrides += [f"initial={initial_of(tiny_model, texts, tmp_path / 'initial')}"] if full.initial else []
        overrides += ["data.held_out=2"] if full.data.held_out else []
        overrides += ["data.buckets.step=32"] if full.data.buckets else []
    if full.stage in ("distill", "step"):
        overrides += [f"teacher={published}"]
    if full.stage == "step":
        overrides += ["adversary.taps=[0, 1]"]
    recipe = recipe_of(path, *overrides)
    model = train(load_stage(recipe.stage), recipe, tmp_path / "run", resume=False)

    (line,) = metrics_of(tmp_path / "run")
    assert all(math.isfinite(value) for value in line.values()) and "skipped" not in line
    assert line["grad_norm"] > 0 and line["learning_rate"] == pytest.approx(first_rate(full))
    assert (f"{DISCRIMINATOR}/loss" in line) == (full.stage in ("step", "autoencoder"))
    assert {"distill": {"task", "output", "features"}, "step": {"task", "output"}}.get(full.stage, set()) <= line.keys()
    if full.stage == "autoencoder":
        assert isinstance(SnapGenAutoencoder.from_pretrained(model), SnapGenAutoencoder)
        return
    pipeline = SnapGenPipeline.from_pretrained(model)
    assert isinstance(pipeline.unet, SnapGenUNet) and pipeline.unet.config.block_out_channels == shape_of("debug")
    assert len(pipeline.text_encoders) == len(full.text)
    assert pipeline.config.default_num_inference_steps == full.num_inference_steps
    assert pipeline.config.default_guidance_scale == full.guidance_scale


def initial_of(tiny_model: Path, texts: list[str], folder: Path) -> Path:
    """The tiny model as if it had been trained with the text encoders in `texts`."""
    tiny = SnapGenPipeline.from_pretrained(tiny_model)
    SnapGenPipeline(tiny.unet, tiny.vae, **load_text_encoders(texts, torch.float32)).save_pretrained(folder)
    return folder


def first_rate(recipe: Any) -> float:
    """The learning rate of the first step of the warm-up."""
    return float(recipe.train.learning_rate) / (recipe.train.warmup_steps + 1)


def shape_of(preset: str) -> list[int]:
    return list(UNETS[preset]["block_out_channels"])
