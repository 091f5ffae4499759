"""A teacher from Stable Diffusion 3's folders: its text and its velocities are diffusers' own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    StableDiffusion3Pipeline,
)
from support.recipes import metrics_of, run_recipe

from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.presets import AUTOENCODERS, create_denoiser
from snapgen.pipeline.bundled import bundled_folder
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.text.join import JointTextEncoder
from snapgen.text.load import load_text_encoders
from snapgen.train.teachers.teacher import StableDiffusionTeacher, load_teacher

CAPTIONS = ["a cat", "", "two red apples on a blue background"]


@pytest.fixture(scope="module")
def student(tiny_model: Path) -> tuple[SnapGenAutoencoder, JointTextEncoder]:
    text = load_text_encoders([str(tiny_model)], torch.float32)
    return SnapGenAutoencoder.from_pretrained(tiny_model / "vae"), JointTextEncoder.from_components(text)


def load(folder: Path, student: tuple[SnapGenAutoencoder, JointTextEncoder]) -> StableDiffusionTeacher:
    teacher = load_teacher(str(folder), *student, torch.float32, torch.device("cpu"))
    assert isinstance(teacher, StableDiffusionTeacher)
    return teacher


@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_it_says_what_diffusers_says(published: Path, student: tuple, scale: float) -> None:
    teacher = load(published, student)
    reference = StableDiffusion3Pipeline.from_pretrained(published)
    generator = torch.Generator().manual_seed(3)
    x, sigmas = torch.randn(3, 16, 4, 4, generator=generator), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        text, empty, pooled, empty_pooled = reference.encode_prompt(CAPTIONS, CAPTIONS, CAPTIONS)
    conditions = teacher.conditions(CAPTIONS)
    assert conditions["teacher_states"].shape == (3, 16 + 256, 32) and conditions["teacher_pooled"].shape == (3, 20)
    assert torch.equal(conditions["teacher_states"], text) and torch.equal(conditions["teacher_pooled"], pooled)
    with torch.no_grad():
        found, features = teacher(x, sigmas, conditions, taps=(0, -1), guidance_scale=scale)
        given = {"timestep": 1000 * sigmas, "return_dict": False}
        expected = reference.transformer(x, text, pooled, **given)[0]
        if scale == 1:
            assert torch.equal(found, expected)
        unconditional = reference.transformer(x, empty, empty_pooled, **given)[0]
        expected = unconditional + scale * (expected - unconditional)
    torch.testing.assert_close(found, expected)
    assert (found - unconditional)[[0, 2]].abs().amax(dim=(1, 2, 3)).min() > 1e-5
    torch.testing.assert_close(found[1], unconditional[1])  # the empty caption is its unconditional branch
    assert [feature.shape for feature in features] == [(3, teacher.feature_widths[0], 2, 2)] * 2


@torch.no_grad()
def test_a_teacher_of_ours_reads_the_students_states(
    tiny_model: Path, student: tuple, text_models: list[str], tmp_path: Path
) -> None:
    """With as much padding as it was trained with, however little of it the batch holds."""
    torch.manual_seed(4)
    network = create_denoiser("debug-teacher")
    SnapGenPipeline.from_pretrained(tiny_model, unet=network).save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), *student, torch.float32, torch.device("cpu"))
    text = student[1](["a cat", "red"])
    visible = int(text.mask.any(dim=0).sum())
    assert visible < text.mask.shape[1] and teacher.conditions(["a cat", "red"]) == {}
    batch = {"states": text.states[:, :visible], "mask": text.mask[:, :visible]}
    x, sigmas = torch.randn(2, 16, 4, 4), torch.tensor([0.2, 0.8])
    network.eval()
    given = network(x, 1000 * sigmas, text.states, text.mask).sample
    empty = student[1](["", ""])
    unconditional = network(x, 1000 * sigmas, empty.states, empty.mask).sample
    torch.testing.assert_close(teacher(x, sigmas, batch)[0], given)
    guided, (feature,) = teacher(x, sigmas, batch, (-1,), guidance_scale=3.0)
    torch.testing.assert_close(guided, unconditional + 3 * (given - unconditional), rtol=1e-4, atol=1e-5)
    assert (given - unconditional).abs().max() > 1e-4
    torch.testing.assert_close(feature, network(x, 1000 * sigmas, text.states, text.mask, taps=(-1,))[1][0])
    other = JointTextEncoder.from_components(load_text_encoders(text_models, torch.float32))
    with pytest.raises(ValueError, match="it reads text_encoder in columns 0 to 32, not text_encoder in columns 0 to"):
        load_teacher(str(tmp_path), student[0], other, torch.float32, torch.device("cpu"))
    wide = JointTextEncoder.from_components(load_text_encoders([str(bundled_folder())], torch.float32))
    with pytest.raises(ValueError, match="^it reads text states of width 32, the student's encoders give 256$"):
        load_teacher(str(tmp_path), student[0], wide, torch.float32, torch.device("cpu"))


def test_gradients_reach_the_picture_and_not_the_teacher(published: Path, student: tuple) -> None:
    teacher = load(published, student)
    x = torch.randn(1, 16, 4, 4, requires_grad=True)
    _, (feature,) = teacher(x, torch.tensor([0.5]), teacher.conditions(["a cat"]), taps=(0,))
    feature.square().sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.network.parameters())
    assert not teacher.conditions(["a cat"])["teacher_states"].requires_grad


@pytest.mark.slow
def test_a_student_learns_from_it(published: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = ["distillation.guidance_scale=4.5", "train.steps=2", f"cache={tmp_path / 'latents'}"]
    sources = [f"autoencoder={tiny_model / 'vae'}", f"text={tiny_model}", f"teacher={published}"]
    model = run_recipe("distill", tmp_path / "run", *sources, *settings)
    lines = metrics_of(tmp_path / "run")
    assert len(lines) == 2 and all(line["output"] > 0 and line["features"] > 0 for line in lines)
    assert (model / "unet" / "config.json").is_file()


def test_a_teacher_of_other_latents_is_refused(published: Path, student: tuple, tmp_path: Path) -> None:
    message = "^its latents are those of .*: both must be trained on one autoencoder's$"
    text = student[1]
    torch.manual_seed(9)
    for changed in (
        SnapGenAutoencoder(**AUTOENCODERS["debug"]),  # other weights
        SnapGenAutoencoder(**AUTOENCODERS["debug"] | {"encoder_channels": (8, 8, 16, 32)}),  # another shape
    ):
        with pytest.raises(ValueError, match=message):
            load(published, (changed, text))
    folder = tmp_path / "sd3"
    shutil.copytree(published, folder)
    config = folder / "vae" / "config.json"
    for name, value in (("scaling_factor", 1.5305), ("shift_factor", 0.0609)):
        settings = json.loads((published / "vae" / "config.json").read_text())
        config.write_text(json.dumps(settings | {name: value}))
        with pytest.raises(ValueError, match=message):
            load(folder, student)
    config.write_text(json.dumps(settings | {"shift_factor": None}))  # none is 0
    load(folder, student)


def test_what_is_no_teacher_is_refused(tiny_model: Path, student: tuple, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "UNet2DModel"]}))
    with pytest.raises(ValueError, match="^unet of .* is a UNet2DModel, expected one of SD3.*, SnapGenUNet$"):
        load(other, student)
    with pytest.raises(ValueError, match="^nobody/no-teacher cannot be loaded: [^\n]*$"):
        load(Path("nobody/no-teacher"), student)
    with pytest.raises(ValueError, match=f"^{tmp_path} cannot be loaded: [^\n]*$"):
        load(tmp_path, student)


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        ("text_encoder", ["transformers", "AutoModel"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("scheduler", ["snapgen.files", "sha256"]),
        ("text_encoder_3", ["evil", "Evil"]),
        ("evil", ["diffusers", "AutoencoderKL"]),
    ],
)
def test_a_published_teacher_names_known_classes(
    published: Path, student: tuple, tmp_path: Path, part: str, entry: list[str]
) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(published, folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {part: entry}))
    with pytest.raises(ValueError, match=rf"teacher: {part} is a {'.'.join(entry)}, which is not loaded"):
        load(folder, student)
