"""`bundle.json`: what is read back, and what is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapgen.runtime.bundle import BUNDLE, read_bundle


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / BUNDLE).read_text())
    change(content)
    (folder / BUNDLE).write_text(json.dumps(content))


def test_every_file_is_listed_with_its_hash(bundle: Path) -> None:
    found = read_bundle(bundle, "onnx")
    assert set(found.files) == {path.name for path in bundle.iterdir()} - {BUNDLE}
    assert found.parity.inputs >= 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(format="zip"), "does not describe a bundle: its format is 'zip'"),
        (lambda b: b.update(version=2), "is of version 2, expected 1: export the model again"),
        (lambda b: b.update(version=True), "is of version True, expected 1"),
        (lambda b: b.update(target="coreml"), "is a bundle for coreml, expected one for onnx"),
        (lambda b: b["networks"].pop("decoder"), "lists no network decoder"),
        (lambda b: b["networks"].pop("text_encoder"), "lists no network text_encoder"),
        (lambda b: b["files"].pop("unet.onnx"), "names unet.onnx, but does not list its size and hash"),
        (lambda b: b["networks"]["unet"].update(file="../unet.onnx"), "networks.unet.file: string should match"),
        (lambda b: b["networks"]["unet"].update(file="/etc/passwd"), "networks.unet.file: string should match"),
        (lambda b: b["texts"][0].update(tokenizer="a/../../b"), "texts.0.tokenizer: string should match"),
        (lambda b: b["texts"][0].update(tokens=[5, 2]), "texts.0.tokens: value error, [5, 2] is not first and end"),
        (lambda b: b["texts"][0].update(columns=[0, 2**40]), "texts.0.columns"),
        (lambda b: b["latents"].update(height=0), "latents.height: input should be greater than 0"),
        (lambda b: b["sampling"].update(steps=10**9), "sampling.steps: input should be less than or equal to 1000"),
        (lambda b: b["sampling"].update(shift=float("nan")), "sampling.shift: input should be a finite number"),
        (lambda b: b.update(known_words=["cat"]), "known_words: input should be a valid dictionary"),
        (lambda b: b.update(more=1), "more: extra inputs are not permitted"),
        (lambda b: b.pop("latents"), "latents: field required"),
    ],
)
def test_what_is_wrong_is_named(bundle: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    edit(bundle, change)
    with pytest.raises(ValueError) as error:
        read_bundle(bundle, "onnx")
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_altered_and_missing_files_are_named(bundle: Path) -> None:
    file = bundle / "decoder.onnx"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="decoder.onnx is not the file that the bundle was made with"):
        read_bundle(bundle, "onnx")
    file.unlink()
    with pytest.raises(ValueError, match="decoder.onnx is missing"):
        read_bundle(bundle, "onnx")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"format": "snapgen-bundle"}'])
def test_damaged_descriptions_are_refused(bundle: Path, content: bytes) -> None:
    (bundle / BUNDLE).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_bundle(bundle, "onnx")
    assert BUNDLE in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_description_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a bundle: it has no bundle.json; `snapgen export` makes one"):
        read_bundle(tmp_path, "onnx")
