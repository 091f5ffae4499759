"""Model folders from anyone: no code of theirs runs, and whatever is not a network ends in one line, at once."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from snapgen.pipeline.load import load_adapters, load_autoencoder, load_pipeline
from snapgen.text.load import load_text_encoders

CODE = "from pathlib import Path\nPath(__file__).with_name('ran').write_text('')\nclass Evil:\n    pass\n"
DEEP = "[" * 100_000
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to damage."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    return folder


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody at the keyboard who says yes to everything."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")


def change(file: Path, **settings: Any) -> None:
    """Changes settings in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def change_tensor(file: Path, function: Callable[[torch.Tensor], torch.Tensor], name: str | None = None) -> str:
    """Replaces a tensor in a file of weights by `function` of it; returns its name."""
    tensors = load_file(file)
    name = name or sorted(tensors)[-1]
    save_file(tensors | {name: function(tensors[name])}, file, metadata={"format": "pt"})
    return name


def refused(message: str, load: Callable[..., Any], *arguments: Any, seconds: float = 10.0) -> None:
    """Asserts that `load` fails with one line that matches `message`, at once."""
    started = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        load(*arguments)
    assert time.monotonic() - started < seconds
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_code_beside_a_model_never_runs(model: Path, part: str) -> None:
    folder = model / part
    (folder / "evil.py").write_text(CODE)
    auto = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    file = folder / ("tokenizer_config.json" if part == "tokenizer" else "config.json")
    change(file, auto_map=auto)
    pipeline = load_pipeline(str(model))  # its classes are the libraries' own: the code is not needed, and not read
    assert type(pipeline.text_encoder).__module__.startswith("transformers.")
    assert not list(model.rglob("ran"))


def test_a_text_model_of_its_own_code_is_refused(text_models: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(text_models[0], folder)
    (folder / "evil.py").write_text(CODE)
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    refused("evil cannot be loaded: it needs Python code of its own", load_text_encoders, [str(folder)], torch.float32)
    shutil.copy(Path(text_models[0]) / "config.json", folder)
    change(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    load_text_encoders([str(folder)], torch.float32)  # the tokenizer's file is enough, without its class
    assert not list(folder.rglob("ran"))


def test_attention_from_the_hub_is_refused(model: Path) -> None:
    change(model / "text_encoder" / "config.json", attn_implementation="evil/attention")
    refused("names code on the hub", load_pipeline, str(model))


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("unet", ["os", "system"], "unet is a os.system, which is not loaded; expected: .*SnapGenUNet"),
        ("unet", ["snapgen.files", "sha256"], "unet is a snapgen.files.sha256"),
        ("unet", ["diffusers", "AutoModel"], "unet is a diffusers.AutoModel"),
        ("vae", ["diffusers", "UNet2DModel"], "vae is a diffusers.UNet2DModel.*AutoencoderKL"),
        ("text_encoder", ["transformers", "AutoModel"], "text_encoder is a transformers.AutoModel"),
        ("tokenizer", ["transformers", "AutoTokenizer"], "tokenizer is a transformers.AutoTokenizer"),
        ("tokenizer", ["transformers", "pipeline"], "tokenizer is a transformers.pipeline"),
        ("tokenizer", ["transformers", "NoSuchTokenizer"], "tokenizer is a transformers.NoSuchTokenizer"),
        ("tokenizer", ["transformers", "RagTokenizer"], "tokenizer"),
        ("../unet", ["diffusers", "AutoencoderKL"], "no such part"),
        ("safety_checker", ["transformers", "CLIPTextModel"], "no such part"),
        ("unet", ["evil"], "unet is a evil"),
        ("unet", [1, {}], "unet is a 1"),
        ("unet", [], "unet is a"),
        ("_class_name", ["pipeline", "Evil"], "describes a .*, expected a SnapGenPipeline"),
        ("_class_name", "Evil", "describes a Evil"),
        ("shift", float("nan"), "shift: input should be a finite number"),
        ("shift", "3", "shift: input should be a valid number"),
        ("default_num_inference_steps", 10**9, "default_num_inference_steps: .* less than or equal to 1000"),
        ("language_max_length", 10**9, "language_max_length: .* less than or equal to 8192"),
    ],
)
def test_an_index_chooses_among_known_classes_and_numbers(model: Path, part: str, entry: Any, message: str) -> None:
    (model / "pipeline.py").write_text(CODE)
    change(model / "model_index.json", **{part: entry})
    refused(message, load_pipeline, str(model))
    assert not list(model.rglob("ran"))


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("unet", {"layers_per_block": 10**9}, "too large"),
        ("unet", {"layers_per_block": 9}, "SnapGenUNet: layers_per_block: .* less than or equal to 8"),
        ("unet", {"transformer_layers": [10**9, 1]}, "too large"),
        ("unet", {"transformer_layers": [8]}, "transformer_layers has 1 entries"),
        ("unet", {"block_out_channels": [10**9, 64]}, "block_out_channels.0: .* less than or equal to 16384"),
        ("unet", {"block_out_channels": [32] * 100_000}, "block_out_channels: tuple should have at most 8"),
        ("unet", {"block_out_channels": [16384, 16384]}, "far more than the .* numbers that its weights hold"),
        ("unet", {"block_out_channels": "wide"}, "block_out_channels: .* valid tuple"),
        ("unet", {"sample_size": 10**6}, "sample_size: .* less than or equal to 1024"),
        ("unet", {"sample_size": True}, "sample_size: .* valid integer"),
        ("unet", {"cross_attention_dim": -1}, "cross_attention_dim: .* greater than or equal to 1"),
        ("unet", {"norm_num_groups": 0}, "norm_num_groups: .* greater than or equal to 1"),
        ("unet", {"skip_spread": 0.0}, "skip_spread: .* greater than 0"),
        ("vae", {"decoder_blocks": [60, 60, 60, 10**9]}, "too large"),
        ("vae", {"encoder_layers_per_block": 10**9}, "too large"),
        ("vae", {"scaling_factor": float("nan")}, "sets scaling_factor to nan: finite numbers are expected"),
        ("vae", {"scaling_factor": 0.0}, "scaling_factor: .* greater than 0"),
        ("vae", {"norm_num_groups": 7}, "vae"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "num_hidden_layers to 1000000000: that is too large"),
        ("text_encoder", {"num_hidden_layers": 250, "hidden_size": 64}, "far more than"),
        ("text_encoder", {"hidden_size": 10**6}, "far more than"),
        ("text_encoder", {"vocab_size": 10**12}, "vocab_size to 1000000000000: that is too large"),
        ("text_encoder", {"quantization_config": {"quant_method": "evil"}}, "text_encoder holds quantised weights"),
    ],
)
def test_a_configuration_stays_in_its_ranges(model: Path, part: str, settings: dict[str, Any], message: str) -> None:
    change(model / part / "config.json", **settings)
    refused(message, load_pipeline, str(model))


@pytest.mark.parametrize(("part", "file"), [("unet", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", "model.safetensors")])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda tensor: torch.full_like(tensor, torch.nan), "holds nan: finite weights are expected"),
        (lambda tensor: torch.full_like(tensor, -torch.inf), "holds -inf: finite weights are expected"),
        (lambda tensor: torch.full_like(tensor, 1e30), r"holds 1e\+30: finite weights are expected"),
        (lambda tensor: torch.ones_like(tensor, dtype=torch.int64), "holds I64, floating-point numbers are expected"),
        (lambda tensor: torch.ones_like(tensor, dtype=torch.bool), "holds BOOL, floating-point numbers are expected"),
    ],
)
def test_weights_are_finite_floating_point_numbers(
    model: Path, part: str, file: str, function: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    name = change_tensor(model / part / file, function)
    refused(f"{model / part}: {name} {message}", load_pipeline, str(model))
    if part == "vae":
        refused(f"{model / part}: {name} {message}", load_autoencoder, str(model / part))


def test_one_bad_number_is_found(model: Path) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone()
        spoilt.view(-1)[-1] = torch.nan
        return spoilt

    name = change_tensor(model / "unet" / WEIGHTS, spoil)
    refused(f"unet: {name} holds nan", load_pipeline, str(model))


@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt"])
def test_pickles_are_never_read(model: Path, suffix: str) -> None:
    weights = model / "unet" / WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(f".{suffix}"))
    load_pipeline(str(model))
    weights.unlink()
    refused(f"{model / 'unet'} cannot be loaded: ", load_pipeline, str(model))
    torch.save({}, model / "unet" / "diffusion_pytorch_model.bin")
    refused(f"{model / 'unet'} cannot be loaded: ", load_pipeline, str(model))


@pytest.mark.parametrize("name", ["shard.bin", "../vae/" + WEIGHTS, "/etc/hostname", ""])
def test_shards_lie_beside_their_index(model: Path, name: str) -> None:
    file = model / "unet" / f"{WEIGHTS}.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.0.weight": name}}))
    refused(r"index.json names .*: a .safetensors file beside it is expected", load_pipeline, str(model))
    file.write_text("{}")
    refused("index.json is damaged: it has no weight_map", load_pipeline, str(model))


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("content", [DEEP, "[]", "3", '"text"', "", "\0", "\ufeff{}", '{"a": ' * 5000, "9" * 5000])
def test_damaged_json_is_one_line(model: Path, file: str, content: str) -> None:
    (model / file).write_text(content, encoding="utf-8")
    refused(str((model / file).parent), load_pipeline, str(model))


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "tokenizer/vocab.txt", f"vae/{WEIGHTS}"])
def test_pipes_are_not_waited_for(model: Path, file: str) -> None:
    (model / file).unlink(missing_ok=True)
    os.mkfifo(model / file)
    refused(str(model / file), load_pipeline, str(model))


def test_endless_files_are_not_read(model: Path) -> None:
    for file in ("model_index.json", "unet/config.json", "tokenizer/tokenizer.json"):
        whole = (model / file).read_bytes()
        os.truncate(model / file, 2**40)  # a file with a hole: nothing is stored
        refused(rf"{file} is (damaged: .* )?longer than 128 MiB", load_pipeline, str(model))
        (model / file).unlink()
        (model / file).write_bytes(whole)


def test_other_autoencoders_are_known_by_name(model: Path) -> None:
    change(model / "vae" / "config.json", _class_name="StableDiffusionPipeline")
    refused("describes a StableDiffusionPipeline, expected one of diffusers.A", load_autoencoder, str(model / "vae"))
    change(model / "vae" / "config.json", _class_name=["AutoencoderKL"])
    refused(r"describes a \['AutoencoderKL'\]", load_autoencoder, str(model / "vae"))


def test_adapters_are_finite_floats_and_no_pickle(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder, pipeline = tmp_path / "adapters", load_pipeline(str(model))
    folder.mkdir()
    file = folder / "pytorch_lora_weights.safetensors"
    layer = "unet.mid.transformer.proj_in"
    for value, message in (
        (torch.full((2, 64), torch.nan), "holds nan: finite weights are expected"),
        (torch.ones((2, 64), dtype=torch.int64), "holds torch.int64, floating-point numbers are expected"),
    ):
        save_file({f"{layer}.lora_A.weight": value, f"{layer}.lora_B.weight": torch.zeros(64, 2)}, file)
        refused(f"adapters does not fit the model: .* {message}", load_adapters, pipeline, folder)
    file.unlink()
    torch.save({f"{layer}.lora_A.weight": torch.zeros(2, 64)}, folder / "pytorch_lora_weights.bin")
    refused("expected a folder with pytorch_lora_weights.safetensors", load_adapters, pipeline, folder)
    torch.save({f"{layer}.lora_A.weight": torch.zeros(2, 64)}, file)  # a pickle under the other name
    refused("adapters does not fit the model", load_adapters, pipeline, folder)
