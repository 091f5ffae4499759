"""Core ML packages give what torch gives, and what Core ML cannot take is refused; no test needs a Mac."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    ModernBertConfig,
    ModernBertModel,
    T5Config,
    T5EncoderModel,
)

from snapgen.export import coreml
from snapgen.export.coreml import CoreMLConverter
from snapgen.export.mil import MilProgram, operations
from snapgen.export.parts import Part, decoder_part, text_part, unet_part
from snapgen.export.targets import TARGETS
from snapgen.models.presets import create_autoencoder, create_unet

FLOORS = {name: floor.relative_error for name, floor in TARGETS["coreml"].precisions.items()}
TOKENS, WORDS, WIDTH = 12, 90, 32
SIZES = {"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = SIZES | {"num_attention_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}

TEXTS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertModel(BertConfig(**HEADS, max_position_embeddings=TOKENS, type_vocab_size=1)),
    "clip": lambda: CLIPTextModel(CLIPTextConfig(**HEADS, **SPECIAL, max_position_embeddings=TOKENS)),
    "gemma": lambda: Gemma2Model(Gemma2Config(**HEADS, **SPECIAL, num_key_value_heads=1, head_dim=16)),
    "t5": lambda: T5EncoderModel(T5Config(vocab_size=WORDS, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)),
}


class Function(nn.Module):
    """A function of one tensor, as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.function(x),)


def part_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Part:
    return Part("decoder", Function(function), {"x": x}, ("y",), {})


def text(kind: str, model: nn.Module | None = None) -> Part:
    """A text encoder's part; its example is 7 tokens, the last of which ends the text, and padding."""
    torch.manual_seed(0)
    model = (model or TEXTS[kind]()).eval()
    is_clip = kind == "clip"
    encoder: Any = SimpleNamespace(model=model, is_clip=is_clip, prefix_length=0, max_length=TOKENS)
    part = text_part("text_encoder", encoder, is_clip)
    part.inputs["input_ids"][0, :7] = torch.tensor([2, 40, 7, 89, 51, 8, 3])
    part.inputs["attention_mask"][0, 7:] = 0
    return part


def errors(part: Part, folder: Path, precision: str = "fp16") -> dict[str, float]:
    """The relative error of each output of the package, for the example inputs."""
    converter = CoreMLConverter()
    network = converter.convert(part, folder, precision, lambda line: None)
    for ports, examples in ((network.inputs, part.inputs), (network.outputs, part(part.inputs))):
        kinds = {name: "float32" if value.is_floating_point() else "int32" for name, value in examples.items()}
        assert {port.name: port.dtype for port in ports} == kinds
        assert {port.name: tuple(port.shape) for port in ports} == {
            name: value.shape for name, value in examples.items()
        }
    return parity(part, converter.load(network, folder))


def parity(part: Part, run: Any) -> dict[str, float]:
    found, right = run({name: value.numpy() for name, value in part.inputs.items()}), part(part.inputs)
    assert found.keys() == right.keys()
    assert all(found[name].dtype == np.float32 for name in found)
    return {name: float(np.linalg.norm(found[name] - value.numpy()) / value.norm()) for name, value in right.items()}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("weight.bin"))


@pytest.mark.parametrize("kind", TEXTS)
def test_text_encoder(kind: str, tmp_path: Path) -> None:
    assert max(errors(text(kind), tmp_path).values()) < FLOORS["fp16"]


def test_decoder_with_its_ports_as_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    part, lines = decoder_part(create_autoencoder("debug").eval(), 4, 6), []
    converter = CoreMLConverter()
    network = converter.convert(part, tmp_path, "fp16", lines.append)

    assert parity(part, converter.load(network, tmp_path))["picture"] < FLOORS["fp16"]
    assert network.file == "decoder.mlpackage"
    assert len(lines) == 1 and lines[0].startswith("Core ML: converting the decoder")
    assert capfd.readouterr() == ("", "")  # coremltools' bars are not shown

    assert [(port.name, port.dtype, port.shape) for port in network.inputs] == [("latents", "float32", [1, 16, 4, 6])]
    assert [(port.name, port.dtype, port.shape) for port in network.outputs] == [("picture", "float32", [1, 3, 32, 48])]


def test_sizes_other_than_the_written_ones_are_refused(tmp_path: Path) -> None:
    part = part_of(lambda x: x + 1, torch.zeros(1, 4))
    converter = CoreMLConverter()
    run = converter.load(converter.convert(part, tmp_path, "fp16", print), tmp_path)
    with pytest.raises(ValueError, match=r"^x is \[1, 5\], expected \[1, 4\]$"):
        run({"x": np.zeros((1, 5), np.float32)})


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.52), ("6bit", 0.4)])
def test_compressed_weights(precision: str, share: float, tmp_path: Path) -> None:
    """They take their share of fp16's size, and cost some of its exactness."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128))
    part = part_of(layers, torch.randn(1, 128))
    half = errors(part, tmp_path / "half")["y"]
    assert half < errors(part, tmp_path / precision, precision)["y"] < FLOORS[precision]
    assert size(tmp_path / precision) < share * size(tmp_path / "half")


def test_palettes_of_large_networks_are_evenly_spaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """k-means takes too long for them."""
    torch.manual_seed(0)
    linear = nn.Linear(128, 128)
    nn.init.normal_(linear.weight)
    part = part_of(linear, torch.randn(1, 128))
    spreads = []
    for most in (10**9, 0):
        monkeypatch.setattr(coreml, "KMEANS_MOST", most)
        CoreMLConverter().convert(part, tmp_path, "6bit", lambda line: None)
        program = MilProgram(tmp_path / "decoder.mlpackage")
        (palette,) = (
            operation.lut.val
            for operation in program.function.operations
            if operation.op_type == "constexpr_lut_to_dense"
        )
        steps = np.diff(np.sort(palette.astype(np.float32)))
        spreads.append(steps.std() / steps.mean())
    assert spreads[0] > 0.2 > 0.05 > spreads[1]


def test_rms_norm_of_zeros_and_of_large_and_small_values(tmp_path: Path) -> None:
    """The keys of masked tokens are zeros; the squares of 1000 are beyond fp16."""
    torch.manual_seed(0)
    x = torch.randn(5, 24) * torch.tensor([0.0, 1e-3, 1e-2, 1.0, 1000.0])[:, None]
    part = part_of(lambda x: F.rms_norm(x, (24,), eps=1e-6), x)
    converter = CoreMLConverter()
    run = converter.load(converter.convert(part, tmp_path, "fp16", print), tmp_path)
    found, right = run({"x": x.numpy()})["y"], part(part.inputs)["y"].numpy()
    assert (found[0] == 0).all()
    assert np.abs(found - right).max() < 5e-3


def test_products_of_sizes_are_numbers(tmp_path: Path) -> None:
    part = part_of(lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]) * 2, torch.randn(1, 3, 4, 5))
    assert errors(part, tmp_path)["y"] < 1e-3


def test_values_beyond_half_precision_are_seen(tmp_path: Path) -> None:
    """Otherwise a black picture on the device would be the first sign."""
    part = part_of(lambda x: (x * 1000) / 1000, torch.tensor([[1.0, 100.0]]))
    converter = CoreMLConverter()
    run = converter.load(converter.convert(part, tmp_path, "fp16", print), tmp_path)
    assert np.isinf(run({"x": part.inputs["x"].numpy()})["y"]).tolist() == [[False, True]]


def large_weight() -> nn.Module:
    linear = nn.Linear(4, 4)
    nn.init.constant_(linear.weight, 1e5)
    return linear


@pytest.mark.parametrize(
    ("function", "x", "cause"),
    [
        (lambda x: x.cumsum(-1), torch.randn(1, 4), "it computes 'cumsum', which snapgen cannot check"),
        (
            lambda x: x.reshape(1, 2, 2, 2, 2, 2).permute(0, 2, 1, 4, 3, 5).relu(),
            torch.randn(1, 32),
            "rank <= 5",
        ),
        (large_weight(), torch.randn(1, 4), "needs more than fp16: a weight is beyond its 65,504"),
        (lambda x: torch.linalg.svdvals(x), torch.randn(1, 4, 4), "svd"),
    ],
    ids=["operation", "rank", "range", "conversion"],
)
def test_what_core_ml_cannot_take(function: Any, x: Tensor, cause: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^Core ML cannot take the decoder: .*" + cause) as error:
        CoreMLConverter().convert(part_of(function, x), tmp_path, "fp16", lambda line: None)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_text_encoder_with_other_attention(tmp_path: Path) -> None:
    """ModernBERT's tokens attend to their neighbours."""
    model = ModernBertModel(ModernBertConfig(**HEADS, pad_token_id=0, local_attention=4))
    with pytest.raises(ValueError, match="tokens of a ModernBertModel attend neither to all others nor to all before"):
        CoreMLConverter().convert(text("modernbert", model), tmp_path, "fp16", lambda line: None)


@pytest.mark.slow
def test_unet(tmp_path: Path) -> None:
    """With a timestep that fp16 cannot hold, masked tokens whose states are zeros, and a pooled vector."""
    torch.manual_seed(0)
    unet = create_unet("debug", skip_spread=0.5, positions=True, pooled_projection_dim=8).eval()
    part = unet_part(unet, 4, 4, 6)
    part.inputs["timestep"][:] = 857.3
    part.inputs["encoder_hidden_states"][0, 4:] = 0
    part.inputs["encoder_attention_mask"][0, 4:] = 0

    assert errors(part, tmp_path)["velocity"] < 2e-3
    spec = ct.models.MLModel(str(tmp_path / "unet.mlpackage"), skip_model_load=True).get_spec()
    names = ["sample", "timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"]
    assert [feature.name for feature in spec.description.input] == names
    types = {
        kind: {
            output.type.tensorType.dataType for step in operations(spec) if step.type == kind for output in step.outputs
        }
        for kind in ("sin", "cos", "conv", "linear", "matmul", "softmax")
    }
    single, half = {ct.proto.MIL_pb2.FLOAT32}, {ct.proto.MIL_pb2.FLOAT16}
    assert types == {kind: single if kind in ("sin", "cos") else half for kind in types}


@pytest.mark.slow
def test_the_miniature_draws_the_same_picture(tmp_path: Path) -> None:
    from snapgen.flow.noise import seeded_noise
    from snapgen.flow.sampling import euler_step
    from snapgen.flow.schedule import sampling_levels
    from snapgen.pipeline.load import load_pipeline
    from snapgen.text.encoder import TransformersTextEncoder

    pipeline = load_pipeline("mini")
    encoder = TransformersTextEncoder(pipeline.text_encoder.float().eval(), pipeline.tokenizer)
    parts = [
        text_part("text_encoder", encoder, False),
        unet_part(pipeline.unet.float().eval(), 16, 16, encoder.max_length),
        decoder_part(pipeline.vae.float().eval(), 16, 16),
    ]
    converter = CoreMLConverter()
    ids, mask = (tokens.numpy() for tokens in encoder.tokenize(["two red apples on a blue background"]))

    def picture(run: dict[str, Any]) -> np.ndarray:
        states = run["text_encoder"]({"input_ids": ids, "attention_mask": mask})["states"]
        x = seeded_noise(0, (1, 16, 16, 16))
        levels = sampling_levels(4, 1.0)
        for sigma, following in pairwise(levels):
            inputs = {"sample": x, "timestep": np.array([1000 * sigma], np.float32)}
            texts = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            x = euler_step(x, run["unet"](inputs | texts)["velocity"], sigma, following)
        return np.clip(run["decoder"]({"latents": x})["picture"] / 2 + 0.5, 0, 1)

    def in_torch(part: Part) -> Any:
        return lambda inputs: {
            name: value.numpy()
            for name, value in part({name: torch.from_numpy(array) for name, array in inputs.items()}).items()
        }

    packages = {part.name: converter.convert(part, tmp_path, "fp16", lambda line: None) for part in parts}
    found = picture({name: converter.load(network, tmp_path) for name, network in packages.items()})
    right = picture({part.name: in_torch(part) for part in parts})
    assert -10 * np.log10(np.square(found - right).mean()) > 45
