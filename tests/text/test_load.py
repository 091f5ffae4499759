"""Text encoders read from folders as the hub has them, and as pipelines have them."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, T5Config, T5ForConditionalGeneration

from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.text.join import JointTextEncoder
from snapgen.text.load import load_text_encoders


def test_of_each_model_the_text_half(text_models: list[str]) -> None:
    parts = load_text_encoders(text_models, torch.float32)
    kinds = [type(parts[name]).__name__ for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    assert kinds == ["CLIPTextModel", "CLIPTextModel", "Gemma2Model"]
    assert not any(p.requires_grad for name in parts if "encoder" in name for p in parts[name].parameters())
    whole = CLIPModel.from_pretrained(text_models[0]).eval()
    tokens = parts["tokenizer"](["a cat"], return_tensors="pt")
    with torch.no_grad():
        expected = whole.text_model(tokens["input_ids"]).last_hidden_state
        torch.testing.assert_close(parts["text_encoder"](tokens["input_ids"]).last_hidden_state, expected)
    joint = JointTextEncoder.from_components(parts)
    assert (joint.width, joint.max_length) == (32, 32)


def test_the_layout_of_pipelines(tiny_model: Path, text_models: list[str], tmp_path: Path) -> None:
    parts = load_text_encoders(text_models, torch.bfloat16)
    assert parts["text_encoder_3"].dtype == torch.bfloat16
    SnapGenPipeline(None, None, **parts).save_pretrained(tmp_path)
    again = load_text_encoders([str(tmp_path)], torch.bfloat16)
    assert again.keys() == parts.keys()
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        for one, other in zip(parts[name].parameters(), again[name].parameters(), strict=True):
            assert torch.equal(one, other)
    mixed = load_text_encoders([str(tiny_model), text_models[2]], torch.float32)
    assert list(mixed) == ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]


def test_t5_is_its_encoder(text_models: list[str], tmp_path: Path) -> None:
    config = T5Config(vocab_size=120, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    for file in Path(text_models[2]).glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    assert type(load_text_encoders([str(tmp_path)], torch.float32)["text_encoder"]).__name__ == "T5EncoderModel"


def test_what_cannot_be_loaded_is_one_line(text_models: list[str], tmp_path: Path) -> None:
    def refused(message: str, *sources: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            load_text_encoders(sources, torch.float32)
        assert "\n" not in str(error.value)

    refused("nobody/no-model cannot be loaded: ", "nobody/no-model")  # offline, as all tests
    refused("4 text encoders in .*, expected 1 to 3", *text_models, text_models[0])
    refused(f"{tmp_path} has no configuration: a config.json with settings is expected", str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(text_models[2], broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    refused("broken lacks 1 tensors of its Gemma2Model, such as layers.0.mlp.up_proj.weight", str(broken))
