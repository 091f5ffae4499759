"""Exporting with a converter that keeps torch: what a bundle says, does and must reach, whatever the runtime."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from support.converters import PLACE, TorchConverter

from snapgen.export.model import ExportSettings, export_model, license_of
from snapgen.export.parity import Recorder, measure_parity, picture_psnr, random_text, relative_error
from snapgen.export.parts import decoder_part, unet_part
from snapgen.export.targets import TARGETS, Floor, Target
from snapgen.flow.noise import seeded_noise
from snapgen.models.presets import create_autoencoder, create_unet
from snapgen.pipeline.load import load_pipeline
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.runtime.bundle import Network, read_bundle
from snapgen.runtime.pipeline import BundlePipeline, read_tokenizers, unet_inputs
from snapgen.text.load import load_text_encoders


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    floors = {"fp32": Floor(1e-6, 80, 80), "w16": Floor(1e-6, 80, 80)}
    monkeypatch.setitem(TARGETS, "torch", Target(PLACE, floors, (), fixed=False))
    monkeypatch.setitem(TARGETS, "fixed", Target(PLACE, floors, (), fixed=True))


def opened(folder: Path, target: str = "torch") -> BundlePipeline:
    bundle = read_bundle(folder, target)
    networks = {name: TorchConverter().load(network, folder) for name, network in bundle.networks.items()}
    files = [text.tokenizer for text in bundle.texts if text.tokenizer is not None]
    return BundlePipeline(bundle, networks, read_tokenizers(folder, files))


def exported(model: Path | str, folder: Path, target: str = "torch", **settings: Any) -> BundlePipeline:
    export_model(str(model), folder, ExportSettings(target, **settings), lambda message: None)
    return opened(folder, target)


SHAPE = (1, 16, 4, 4)


def in_torch(pipeline: SnapGenPipeline, prompt: str, seed: int, **settings: Any) -> np.ndarray:
    noise = torch.from_numpy(seeded_noise(seed, SHAPE))
    latents = pipeline(prompt, latents=noise, output_type="latent", return_dict=False, **settings)[0]
    return latents.numpy()


@pytest.fixture(scope="session")
def three_encoders(text_models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two CLIPs and a language model with an instruction, whose UNet reads the pooled vector, too."""
    torch.manual_seed(2)
    parts = load_text_encoders(text_models, torch.float32)
    pipeline = SnapGenPipeline(
        unet=create_unet("debug", cross_attention_dim=32, pooled_projection_dim=20),
        vae=create_autoencoder("debug"),
        language_prefix="two red ",
        language_max_length=10,
        default_num_inference_steps=2,
        default_guidance_scale=3.0,
        **parts,
    )
    folder = tmp_path_factory.mktemp("three") / "model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", ["a cat", "", "a dog on a blue background and two red apples " * 3])
@pytest.mark.parametrize("target", ["torch", "fixed"])
def test_a_bundle_samples_as_the_pipeline_does(tiny_model: Path, tmp_path: Path, prompt: str, target: str) -> None:
    bundle, pipeline = exported(tiny_model, tmp_path / "bundle", target), load_pipeline(str(tiny_model))
    for settings in ({}, {"steps": 3, "guidance": 1.0}, {"guidance": 5.0, "interval": (0.3, 0.8)}):
        names = {"steps": "num_inference_steps", "guidance": "guidance_scale", "interval": "guidance_interval"}
        expected = in_torch(pipeline, prompt, 4, **{names[name]: value for name, value in settings.items()})
        found = bundle.denoise(prompt, seeded_noise(4, SHAPE), **settings)
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("target", ["torch", "fixed"])
@pytest.mark.parametrize("encoders", [None, ["text_encoder"], ["text_encoder_2", "text_encoder_3"]])
def test_several_encoders_are_joined_as_the_pipeline_joins_them(
    three_encoders: Path, tmp_path: Path, encoders: Sequence[str] | None, target: str
) -> None:
    bundle, pipeline = exported(three_encoders, tmp_path / "all", target), load_pipeline(str(three_encoders))
    alone = exported(three_encoders, tmp_path / "some", target, encoders=encoders)
    for prompt in ("a cat", "a dog on a blue background and two red apples, a cat"):
        expected = in_torch(pipeline, prompt, 1, text_encoders=encoders)
        noise = seeded_noise(1, SHAPE)
        assert relative_error(bundle.denoise(prompt, noise, encoders=encoders), expected) < 1e-5
        assert relative_error(alone.denoise(prompt, noise), expected) < 1e-5
    read = {text.network for text in alone.bundle.texts if text.tokenizer is not None}
    assert read == set(encoders or pipeline.text_encoders) == set(alone.bundle.networks) - {"unet", "decoder"}


def test_a_seed_is_the_same_picture(tiny_model: Path, tmp_path: Path) -> None:
    bundle, pipeline = exported(tiny_model, tmp_path / "bundle"), load_pipeline(str(tiny_model))
    found = np.asarray(bundle("two red apples", seed=5, height=64, width=32)).astype(int)
    generator = torch.Generator().manual_seed(5)
    (expected,) = pipeline("two red apples", generator=generator, height=64, width=32).images
    difference = np.abs(found - np.asarray(expected))
    assert found.shape == (64, 32, 3)
    assert difference.max() <= 1 and difference.mean() < 1e-2  # noise differs in its last bits


def test_the_description(tiny_model: Path, tmp_path: Path) -> None:
    bundle = exported(tiny_model, tmp_path / "bundle").bundle
    assert {name: network.file for name, network in bundle.networks.items()} == {
        "text_encoder": "text_encoder.torch",
        "unet": "unet.torch",
        "decoder": "decoder.torch",
    }
    assert bundle.latents.model_dump() == {
        "channels": 16, "height": 4, "width": 4, "multiple": 2, "fixed": False, "pixels": 8,
    }  # fmt: skip
    assert bundle.sampling.model_dump() == {"steps": 2, "guidance": 4.0, "shift": 3.0}
    assert bundle.golden.noise == seeded_noise(0, (64,)).tolist()
    assert bundle.parity.inputs == len(bundle.parity.psnr) == 20
    assert set(bundle.parity.relative_error) == set(bundle.networks)
    assert bundle.license is None and bundle.known_words is None


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: cc-by-4.0\n---\nA model.\n", "cc-by-4.0"),
        ("---\nlicense: [mit, cc-by-4.0]\n---\n", "mit, cc-by-4.0"),
        ("---\nlicense: [\n---\n", None),
        ("A model.\n", None),
    ],
)
def test_the_licence_is_that_of_the_card(tmp_path: Path, card: str, expected: str | None) -> None:
    (tmp_path / "README.md").write_text(card)
    assert license_of(str(tmp_path)) == expected


def test_a_preset_has_random_weights_and_no_text(tmp_path: Path) -> None:
    bundle = exported("debug", tmp_path / "bundle")
    assert bundle.bundle.texts == [] and bundle.bundle.parity.psnr == []
    with pytest.raises(ValueError, match="this bundle has no text encoder"):
        bundle("a cat", seed=0)
    with pytest.raises(
        ValueError, match=r"encoders is \['text_encoder'\], and a preset such as debug has no text encoder"
    ):
        exported("debug", tmp_path / "other", encoders=["text_encoder"])


def test_adapters_are_fused(tiny_model: Path, tmp_path: Path) -> None:
    plain = load_pipeline(str(tiny_model))
    plain.register_to_config(known_words={"nouns": ["cat"]})
    plain.save_pretrained(tmp_path / "model")
    adapted = load_pipeline(str(tiny_model))
    adapted.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_out"], init_lora_weights=False))
    layers = get_peft_model_state_dict(adapted.unet)
    SnapGenPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    expected = in_torch(adapted, "a cat", 2)
    assert exported(tmp_path / "model", tmp_path / "plain").bundle.known_words == {"nouns": ["cat"]}
    bundle = exported(tmp_path / "model", tmp_path / "bundle", lora=tmp_path / "lora")
    assert bundle.bundle.known_words is None  # adapters bring words of their own
    found = bundle.denoise("a cat", seeded_noise(2, SHAPE))
    assert relative_error(found, expected) < 1e-5
    assert relative_error(found, in_torch(plain, "a cat", 2)) > 1e-3


def test_weights_are_rounded_to_half_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    export_model(str(tiny_model), tmp_path / "bundle", ExportSettings("torch", "w16"), lines.append)
    assert any(line.endswith("weights were rounded to fp16") for line in lines)
    for name in ("text_encoder", "unet", "decoder"):
        part = TorchConverter.parts[f"{name}.torch"]
        assert all(torch.equal(value.half().float(), value) for value in part.module.parameters())


def test_a_fixed_bundle_takes_one_size(tiny_model: Path, tmp_path: Path) -> None:
    bundle = exported(tiny_model, tmp_path / "bundle", "fixed", height=64, width=32)
    assert bundle("a cat", seed=0).size == (32, 64)
    with pytest.raises(ValueError, match="size 32x32: the bundle was made for 32x64 alone"):
        bundle("a cat", seed=0, height=32, width=32)


def test_sizes_between_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size 40x64: the bundle takes multiples of 16"):
        exported(tiny_model, tmp_path / "bundle")("a cat", seed=0, height=64, width=40)
    with pytest.raises(ValueError, match="--size 64x40: multiples of 16 are expected"):
        exported(tiny_model, tmp_path / "other", height=40, width=64)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (1e-3, "text_encoder differs from torch by 1.0e-03 (relative error), at most 1e-06 is allowed"),
        (float("nan"), "text_encoder gives numbers that are not finite"),
    ],
)
def test_what_misses_the_floor_is_not_written(
    tiny_model: Path, tmp_path: Path, error: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = exported(tiny_model, tmp_path / "bundle").bundle
    monkeypatch.setattr(TorchConverter, "error", error)
    with pytest.raises(ValueError, match=re.escape(f"{message}: nothing was written")):
        exported(tiny_model, tmp_path / "bundle")
    assert read_bundle(tmp_path / "bundle", "torch") == former
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_pictures_have_a_floor_of_their_own(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchConverter, "error", 1e-2)
    floors = {"fp32": Floor(1.0, 200.0, 0.0)}
    monkeypatch.setitem(TARGETS, "torch", Target(PLACE, floors, (), fixed=False))
    with pytest.raises(ValueError, match="pictures differ from torch's: PSNR .* dB are expected: nothing was written"):
        exported(tiny_model, tmp_path / "bundle")


def test_a_model_that_gives_no_numbers_is_not_written(tiny_model: Path, tmp_path: Path) -> None:
    """Also if the converted one does: it is not the same."""
    pipeline = load_pipeline(str(tiny_model))
    unet = unet_part(pipeline.unet, 4, 4, 16)
    text = random_text(unet, 0)
    exact, inputs = Recorder(unet), unet_inputs(seeded_noise(0, SHAPE), 1.0, text)
    finite = exact(inputs)
    with torch.no_grad():
        pipeline.unet.conv_out[-1].bias.fill_(float("nan"))
    bundle = exported(tiny_model, tmp_path / "bundle").bundle.model_copy(update={"texts": []})
    decoder = decoder_part(pipeline.vae, 4, 4)
    networks = {"unet": lambda given: finite, "decoder": Recorder(decoder)}
    with pytest.raises(ValueError, match="unet gives numbers that are not finite: nothing was written"):
        measure_parity(bundle, {"unet": unet, "decoder": decoder}, networks, {}, lambda message: None)


def test_a_failure_leaves_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Network:
        raise ValueError("no such operator")

    monkeypatch.setattr(TorchConverter, "convert", fail)
    with pytest.raises(ValueError, match="no such operator"):
        exported(tiny_model, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_errors_are_relative_and_decibels_bounded() -> None:
    one = np.array([3.0, 4.0], np.float32)
    assert relative_error(one * 1.01, one) == pytest.approx(0.01, rel=1e-4)
    picture = np.zeros((1, 3, 2, 2), np.float32)
    assert picture_psnr(picture, picture) == 200.0
    assert picture_psnr(picture + 0.02, picture) == pytest.approx(40.0, abs=1e-3)  # 0.02 of a range of 2
    assert picture_psnr(picture + 5, picture + 3) == 200.0  # both white


def test_hostile_tokenizers_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    exported(tiny_model, tmp_path / "bundle")
    (tmp_path / "bundle" / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
        read_tokenizers(tmp_path / "bundle", ["tokenizer.json"])
