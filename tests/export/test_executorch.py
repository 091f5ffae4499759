"""Networks as ExecuTorch's programs, run by its Python runtime against torch."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

from snapgen.export.executorch import ExecuTorchConverter
from snapgen.export.parts import Part, decoder_part, text_part, unet_part
from snapgen.export.targets import TARGETS
from snapgen.models.presets import create_autoencoder, create_denoiser, create_unet
from snapgen.runtime.bundle import Network
from snapgen.text.encoder import TransformersTextEncoder
from snapgen.text.tokenizer import train_tokenizer

LENGTH = 12  # tokens of a text


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """torch's traces, which pytest would capture, cost more than the lowering."""
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    yield
    logging.disable(logging.NOTSET)


def converted(part: Part, folder: Path, precision: str) -> tuple[Network, list[str], dict[str, np.ndarray]]:
    """The network as it was written, the lines about it, and what it computes for the part's inputs."""
    lines: list[str] = []
    converter = ExecuTorchConverter()
    network = converter.convert(part, folder, precision, lines.append)
    inputs = {name: tensor.numpy() for name, tensor in part.inputs.items()}
    return network, lines, converter.load(network, folder)(inputs)


def worst(part: Part, found: dict[str, np.ndarray]) -> float:
    """The largest relative error of the outputs."""
    expected = part(part.inputs)
    assert found.keys() == expected.keys()
    assert all(array.dtype == np.float32 for array in found.values())
    return max(float(np.linalg.norm(found[name] - tensor.numpy()) / tensor.norm()) for name, tensor in expected.items())


def floor(precision: str) -> float:
    return TARGETS["executorch"].precisions[precision].relative_error


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_decoder_is_one_delegate(precision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    part = decoder_part(create_autoencoder("debug", use_post_quant_conv=True).eval(), 4, 4)
    network, lines, found = converted(part, tmp_path, precision)
    assert worst(part, found) <= floor(precision)
    assert network.file == "decoder.pte" and network.outputs[0].shape == [1, 3, 32, 32]
    stages = ["quantising"] if precision == "int8" else []
    assert lines == [f"decoder: {stage}" for stage in ("tracing", *stages, "lowering to XNNPACK", "writing")]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_unet(tmp_path: Path) -> None:
    unet = create_unet("debug", positions=True, skip_spread=0.6, pooled_projection_dim=12).eval()
    part = unet_part(unet, 4, 4, 7)
    part.inputs["encoder_attention_mask"][:, 5:] = 0
    network, _, found = converted(part, tmp_path, "fp32")
    assert worst(part, found) <= floor("fp32")
    dtypes = {port.name: port.dtype for port in network.inputs}
    assert list(dtypes) == list(part.inputs) and set(dtypes.values()) == {"float32"}


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_a_text_encoder_reads_integers(kind: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a cat", "two red apples"], 60, max_length=LENGTH)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = SIZES | special | {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    model = BertModel(BertConfig(**sizes)) if kind == "bert" else CLIPTextModel(CLIPTextConfig(**sizes))
    encoder = TransformersTextEncoder(model.eval(), tokenizer)
    part = text_part("text_encoder", encoder, pooled=kind == "clip")
    network, _, _ = converted(part, tmp_path, "fp32")
    assert [port.dtype for port in network.inputs] == ["int64", "int64"]
    ids, mask = encoder.tokenize(["a cat"])  # others than it was traced with
    assert not mask.all()
    part.inputs.update(input_ids=ids, attention_mask=mask)
    found = ExecuTorchConverter().load(network, tmp_path)({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    assert worst(part, found) <= floor("fp32")


def test_a_teachers_transformer_is_refused(tmp_path: Path) -> None:
    part = unet_part(create_denoiser("debug-teacher"), 4, 4, 7)
    with pytest.raises(ValueError, match="^ExecuTorch takes a SnapGenUNet, and the model has a TeacherTransformer$"):
        ExecuTorchConverter().convert(part, tmp_path, "fp32", print)


def test_diffusers_autoencoder_is_refused(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    part = decoder_part(AutoencoderTiny(latent_channels=4), 4, 4)
    with pytest.raises(ValueError, match="^ExecuTorch takes a SnapGenAutoencoder, and .* AutoencoderTiny$"):
        ExecuTorchConverter().convert(part, tmp_path, "fp32", print)


def test_a_latent_that_does_not_halve_is_refused(tmp_path: Path) -> None:
    part = unet_part(create_unet("debug"), 4, 5, 7)
    with pytest.raises(ValueError, match="4 x 5 positions, expected multiples of 2"):
        ExecuTorchConverter().convert(part, tmp_path, "fp32", print)


def test_what_torch_cannot_trace_is_one_line(tmp_path: Path) -> None:
    class Untraceable(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x if x.sum() > 0 else -x,)

    part = Part("text_encoder", Untraceable(), {"x": torch.ones(2)}, ("y",), {})
    with pytest.raises(ValueError, match="^ExecuTorch cannot take the network text_encoder: [A-Z]") as caught:
        ExecuTorchConverter().convert(part, tmp_path, "fp32", print)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_too_many_delegates_are_refused(tmp_path: Path) -> None:
    class Split(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return ((x * x).cumsum(0) * x,)  # XNNPACK has no cumulative sums

    part = Part("decoder", Split(), {"x": torch.ones(2)}, ("y",), {})
    with pytest.raises(ValueError, match="^the network decoder falls into 2 delegates, expected 1 to 1: "):
        ExecuTorchConverter().convert(part, tmp_path, "fp32", print)
