"""Bundles in ONNX Runtime: the picture of torch, without torch, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from snapgen.cli.main import run
from snapgen.files import sha256
from snapgen.pipeline.load import load_pipeline
from snapgen.runtime.bundle import BUNDLE, Network, Port
from snapgen.runtime.onnx import open_bundle, open_network
from snapgen.runtime.pipeline import checked

# The command line where torch and what needs it cannot be imported.
WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers", "safetensors"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from snapgen.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def test_a_seed_is_the_same_picture(tiny_model: Path, tiny_bundle: Path) -> None:
    found = open_bundle(tiny_bundle, threads=1)("two red apples", seed=3, height=64, width=32)
    generator = torch.Generator().manual_seed(3)
    (expected,) = load_pipeline(str(tiny_model))("two red apples", generator=generator, height=64, width=32).images
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
    assert found.size == (32, 64) and difference.max() <= 1 and difference.mean() < 1e-2


def test_generate_needs_no_torch(tiny_model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--seed", "7", "--steps", "3", "--guidance", "2", "--guidance-interval", "0.2,1"]
    command = ["generate", "a cat", "two red apples", "-o", f"{tmp_path / 'onnx'}/", *options, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command, "--runtime", "onnx", "--model", str(tiny_bundle)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert (facts["steps"], facts["guidance"], facts["guidance_interval"]) == (3, 2.0, "0.2,1.0")
    pipeline = load_pipeline(str(tiny_model))
    for picture in facts["pictures"]:
        (expected,) = pipeline(
            picture["prompt"],
            generator=torch.Generator().manual_seed(7),
            num_inference_steps=3,
            guidance_scale=2.0,
            guidance_interval=(0.2, 1.0),
        ).images
        with Image.open(picture["path"]) as found:
            assert found.text["prompt"] == picture["prompt"]  # type: ignore[attr-defined]
            assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "mini"], "none of 'mini' here: `snapgen export mini FOLDER --target onnx` makes one"),
        (
            ["--model", "mini-base"],
            "none of 'mini-base' here: `snapgen export mini-base FOLDER --target onnx`",
        ),
        (["--model", "nowhere"], "'nowhere' is not a bundle: it has no bundle.json; `snapgen export` makes one"),
        (["--optimize"], "--optimize cannot be used with --runtime onnx: it needs --runtime torch"),
        (["--lora", "folder"], "--lora cannot be used with --runtime onnx: it needs --runtime torch"),
        (["--encoders", "text_encoder_2"], "text_encoders is ['text_encoder_2'], expected some of text_encoder"),
    ],
)
def test_what_a_bundle_cannot_do_is_one_line(
    tiny_bundle: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("snapgen.cli.engines.APP", tmp_path)  # the web app is not built
    command = ["generate", "a cat", "-o", str(tmp_path / "a.png"), "--runtime", "onnx", "--model", str(tiny_bundle)]
    assert run([*command, *options]) != 0
    err = capfd.readouterr().err
    assert err.startswith("snapgen: error: ") and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_default_model_is_the_web_apps(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").symlink_to(tiny_bundle)
    monkeypatch.setattr("snapgen.cli.engines.APP", tmp_path)
    assert run(["generate", "a cat", "-o", str(tmp_path / "a.png"), "--runtime", "onnx"]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (32, 32) and picture.text["model"] == "mini"  # type: ignore[attr-defined]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def replace(folder: Path, file: str, content: bytes) -> None:
    """Replaces a file of a bundle, and its size and hash: only the runtime can see it."""
    (folder / file).write_bytes(content)
    facts = json.loads((folder / BUNDLE).read_text())
    facts["files"][file] = {"bytes": len(content), "sha256": sha256(folder / file)}
    (folder / BUNDLE).write_text(json.dumps(facts))


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x0a" * 1000])
def test_damaged_networks_are_named(bundle: Path, content: bytes) -> None:
    replace(bundle, "unet.onnx", content)
    with pytest.raises(ValueError, match="unet.onnx cannot be loaded: ") as error:
        open_bundle(bundle)
    assert "\n" not in str(error.value)


def test_exchanged_networks_are_refused(bundle: Path) -> None:
    replace(bundle, "unet.onnx", (bundle / "decoder.onnx").read_bytes())
    with pytest.raises(ValueError, match="unet.onnx has inputs latents, the bundle lists sample, timestep, "):
        open_bundle(bundle)


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "link", "pipe", "*/_ORT_MEM_ADDR_/*"])
def test_weights_are_read_from_the_bundle_alone(tmp_path: Path, place: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "link").symlink_to("../secret")
    os.mkfifo(folder / "pipe")
    weight = TensorProto(name="weight", data_type=TensorProto.UINT8, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": place, "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    output = helper.make_tensor_value_info("out", TensorProto.UINT8, [16])
    graph = helper.make_graph([helper.make_node("Identity", ["weight"], ["out"])], "graph", [], [output], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "unet.onnx").write_bytes(model.SerializeToString())
    network = Network(file="unet.onnx", inputs=[], outputs=[Port(name="out", dtype="int64", shape=[16])])
    with pytest.raises(ValueError, match="unet.onnx cannot be loaded: ") as error:
        open_network(network, folder)
    assert "\n" not in str(error.value)


def test_outputs_of_another_shape_are_refused() -> None:
    outputs = {"velocity": np.zeros((1, 4, 2, 2), np.float32)}
    assert checked(outputs, "unet", "velocity", (1, 4, 2, 2)) is outputs["velocity"]
    with pytest.raises(
        ValueError, match=r"the output velocity of the network unet is of shape \[1, 4, 2, 2\], expected"
    ):
        checked(outputs, "unet", "velocity", (1, 4, 2, 4))
    with pytest.raises(ValueError, match="the output picture of the network decoder is missing, expected"):
        checked(outputs, "decoder", "picture", (1, 3, 2, 2))


def test_a_prefix_longer_than_the_text_leaves_nothing(bundle: Path) -> None:
    facts = json.loads((bundle / BUNDLE).read_text())
    facts["texts"][0] |= {"prefix_start": 9, "prefix_length": 2000}
    (bundle / BUNDLE).write_text(json.dumps(facts))
    text = open_bundle(bundle).encode("a cat")
    assert text.mask[0].sum() == 4  # both words and the ends of the text: nothing stands after the ninth token


def test_a_tokenizer_of_another_model_is_one_line(bundle: Path) -> None:
    """Token ids that the network does not have."""
    tokenizer = json.loads((bundle / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {word: index + 1000 for word, index in tokenizer["model"]["vocab"].items()}
    replace(bundle, "tokenizer.json", json.dumps(tokenizer).encode())
    with pytest.raises(ValueError, match="text_encoder.onnx cannot compute this: ") as error:
        open_bundle(bundle)("a cat", seed=0)
    assert "\n" not in str(error.value)


def test_words_beyond_a_list_are_named(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((bundle / BUNDLE).read_text())
    (bundle / BUNDLE).write_text(json.dumps(facts | {"known_words": {"nouns": ["cat"]}}))
    command = ["generate", "a cat and a zebra", "-o", str(tmp_path / "a.png"), "--runtime", "onnx"]
    assert run([*command, "--model", str(bundle)]) == 0
    listing = f"known_words in {bundle / BUNDLE} lists what it knows"
    assert capfd.readouterr().err == f"snapgen: warning: {bundle} has not learned: a, and, zebra; {listing}\n"
