"""ONNX: what the graphs hold, that every size may change, and how exact each precision is."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from transformers import BertConfig, BertModel

from snapgen.export import onnx as target
from snapgen.export.onnx import OnnxConverter
from snapgen.export.parity import Recorder, relative_error
from snapgen.export.parts import Part, decoder_part, text_part, unet_part
from snapgen.models.presets import create_autoencoder
from snapgen.pipeline.load import load_pipeline
from snapgen.runtime.bundle import read_bundle
from snapgen.runtime.pipeline import Arrays
from snapgen.text.encoder import TransformersTextEncoder
from snapgen.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def decoder() -> Part:
    torch.manual_seed(0)
    vae = create_autoencoder("debug").eval().requires_grad_(False)
    for parameter in vae.parameters():
        parameter.copy_(parameter.half().float())
    return decoder_part(vae, 4, 4)


def outputs(part: Part, folder: Path, precision: str, inputs: Arrays) -> tuple[dict[str, np.ndarray], onnx.ModelProto]:
    converter = OnnxConverter()
    network = converter.convert(part, folder, precision, lambda message: None)
    return converter.load(network, folder)(inputs), onnx.load_model(folder / network.file)


def test_the_whole_bundle_is_near_torch(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle, "onnx")
    assert max(bundle.parity.relative_error.values()) < 2e-6
    assert min(bundle.parity.psnr) > 100
    shapes = {port.name: port.shape for port in bundle.networks["unet"].inputs}
    assert shapes == {
        "sample": ["batch", 16, "height", "width"],
        "timestep": ["batch"],
        "encoder_hidden_states": ["batch", "tokens", 32],
        "encoder_attention_mask": ["batch", "tokens"],
    }


def test_graphs_hold_nothing_but_the_network(tiny_bundle: Path) -> None:
    for file in ("text_encoder", "unet", "decoder"):
        model = onnx.load_model(tiny_bundle / f"{file}.onnx")
        onnx.checker.check_model(model)
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == 20
        assert not model.graph.value_info
        assert not any(node.metadata_props for node in model.graph.node)


def test_graphs_hold_no_guard_against_texts_without_tokens_and_no_reciprocals(tiny_bundle: Path) -> None:
    """ONNX Runtime fuses RMSNorm if it divides."""
    kinds = Counter(node.op_type for node in onnx.load_model(tiny_bundle / "unet.onnx").graph.node)
    assert kinds["Softmax"] > 0 and kinds["Div"] >= kinds["Sqrt"] > 0
    assert not {"IsNaN", "Reciprocal"} & kinds.keys()


def test_pointwise_convolutions_as_products_compute_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    network = read_bundle(tiny_bundle, "onnx").networks["unet"]
    model = onnx.load_model(tiny_bundle / network.file)
    target._write_pointwise_as_products(model.graph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    left = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    pointwise = [name for name in left if list(constants[name].dims[2:]) == [1, 1]]
    assert pointwise == ["unet.conv_in.1.weight", "unet.conv_out.1.weight"] and len(left) > len(pointwise)
    onnx.checker.check_model(model)
    onnx.save_model(model, tmp_path / network.file)
    rng = np.random.default_rng(0)
    inputs = {
        "sample": rng.standard_normal((2, 16, 4, 6), np.float32),
        "timestep": np.array([700, 300], np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 5, 32), np.float32),
        "encoder_attention_mask": np.ones((2, 5), np.int64),
    }
    found, expected = (OnnxConverter().load(network, folder)(inputs)["velocity"] for folder in (tmp_path, tiny_bundle))
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize(("batch", "height", "width", "tokens"), [(1, 4, 4, 1), (3, 2, 6, 9), (2, 10, 4, 30)])
def test_every_size_may_change(
    tiny_model: Path, tiny_bundle: Path, batch: int, height: int, width: int, tokens: int
) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "sample": rng.standard_normal((batch, 16, height, width), np.float32),
        "timestep": np.linspace(900, 100, batch, dtype=np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, tokens, 32), np.float32),
        "encoder_attention_mask": np.tri(batch, tokens, dtype=np.int64),
    }
    expected = Recorder(unet_part(load_pipeline(str(tiny_model)).unet, 4, 4, 16))(inputs)
    found = OnnxConverter().load(read_bundle(tiny_bundle, "onnx").networks["unet"], tiny_bundle)(inputs)
    assert relative_error(found["velocity"], expected["velocity"]) < 1e-6


def test_half_weights_change_nothing(decoder: Part, tmp_path: Path) -> None:
    latents = {"latents": np.random.default_rng(1).standard_normal((2, 16, 6, 4), np.float32)}
    exact, whole = outputs(decoder, tmp_path, "fp32", latents)
    half, stored = outputs(decoder, tmp_path, "w16", latents)
    np.testing.assert_array_equal(half["picture"], exact["picture"])
    assert relative_error(half["picture"], Recorder(decoder)(latents)["picture"]) < 1e-6
    assert stored.ByteSize() < 0.8 * whole.ByteSize()  # small tensors stay
    types = Counter(tensor.data_type for tensor in stored.graph.initializer if np.prod(tensor.dims) >= target.FEWEST)
    assert set(types) == {TensorProto.FLOAT16}


def test_what_half_cannot_hold_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    part = decoder_part(create_autoencoder("debug").eval(), 4, 4)
    latents = {"latents": np.random.default_rng(1).standard_normal((1, 16, 4, 4), np.float32)}
    found, _ = outputs(part, tmp_path, "w16", latents)
    assert relative_error(found["picture"], Recorder(part)(latents)["picture"]) < 1e-6


def test_eight_bits_for_products_alone(tiny_model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    inputs = {
        "sample": rng.standard_normal((1, 16, 4, 4), np.float32),
        "timestep": np.array([700], np.float32),
        "encoder_hidden_states": rng.standard_normal((1, 8, 32), np.float32),
        "encoder_attention_mask": np.ones((1, 8), np.int64),
    }
    network = read_bundle(tiny_bundle, "onnx").networks["unet"]
    model = target._quantized(onnx.load_model(tiny_bundle / network.file))
    onnx.save_model(model, tmp_path / network.file)
    found = OnnxConverter().load(network, tmp_path)(inputs)
    expected = Recorder(unet_part(load_pipeline(str(tiny_model)).unet, 4, 4, 16))(inputs)
    assert 1e-4 < relative_error(found["velocity"], expected["velocity"]) < 3e-2
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["MatMulInteger"] > 0 and kinds["ConvInteger"] == 0
    text = [node.op_type for node in model.graph.node if "encoder_hidden_states" in node.input]
    assert "MatMul" in text and "DynamicQuantizeLinear" not in text


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x * len(x.nonzero().tolist()),)

    part = Part("unet", Counting(), {"x": torch.ones(2, 2)}, ("y",), {})
    with pytest.raises(ValueError, match="^ONNX cannot take the unet: ") as error:
        OnnxConverter().convert(part, tmp_path, "fp32", lambda message: None)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_large_networks_keep_their_weights_beside_the_graph(
    decoder: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "LARGEST_FILE", 1000)
    latents = {"latents": np.zeros((1, 16, 4, 4), np.float32)}
    found, _ = outputs(decoder, tmp_path, "fp32", latents)
    assert relative_error(found["picture"], Recorder(decoder)(latents)["picture"]) < 1e-6
    assert (tmp_path / "decoder.data").stat().st_size > (tmp_path / "decoder.onnx").stat().st_size / 2


def test_a_bert_reads_any_number_of_tokens(tmp_path: Path) -> None:
    """The kind of text encoder that the miniature is trained with."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a cat", "two red apples"], 60, max_length=12)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    encoder = TransformersTextEncoder(BertModel(config).eval().requires_grad_(False), tokenizer)
    part = text_part("text_encoder", encoder, pooled=False)
    ids = np.array([[2, 7, 9, 3, 0], [2, 11, 3, 0, 0]], np.int64)
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    found, _ = outputs(part, tmp_path, "fp32", inputs)
    expected = Recorder(part)(inputs)
    assert relative_error(found["states"], expected["states"]) < 1e-6
    assert not found["states"][1, 3:].any()
    np.testing.assert_allclose(np.sqrt((found["states"][0, :4] ** 2).mean(-1)), 1, atol=1e-3)
