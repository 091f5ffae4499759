"""`bundle.json`: what is read back, and what is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapgen.runtime.bundle import BUNDLE, other_files, read_bundle
from snapgen.runtime.pipeline import BundlePipeline


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
        (lambda b: b["texts"][0].update(columns=[0, 2**14 + 1]), "texts.0.columns"),
        (lambda b: b["texts"][0].update(prefix_start=2**40), "texts.0.prefix_start: input should be less than"),
        (lambda b: b["texts"][0].update(prefix_length=2**40), "texts.0.prefix_length: input should be less than"),
        (lambda b: b["texts"][0].update(pad_token=2**63), "texts.0.pad_token: input should be less than"),
        (lambda b: b.update(texts=b["texts"] * 4), "texts: list should have at most 3 items"),
        (lambda b: b["networks"].update(more=b["networks"]["unet"]), "networks.more.[key]: string should match"),
        (lambda b: b["files"].update({f"{n}": b["files"]["unet.onnx"] for n in range(1000)}), "files: dictionary"),
        (lambda b: b["golden"].update(noise=[0.5] * 2**20), "bundle.json is longer than 4 MiB"),
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


@pytest.mark.parametrize("change", [{"height": 2**30}, {"channels": 2**30}, {"pixels": 1, "height": 2**24}])
def test_latents_beyond_memory_are_refused(bundle: Path, change: dict[str, int]) -> None:
    edit(bundle, lambda b: b["latents"].update(change))
    pipeline = BundlePipeline(read_bundle(bundle, "onnx"), {}, {})
    with pytest.raises(ValueError, match=r"size \d+x\d+: latents of [\d,]+ numbers, at most 33,554,432 expected"):
        pipeline.latent_shape(None, None)


def test_files_beside_a_bundle_are_seen(bundle: Path) -> None:
    assert other_files(bundle) == [] == other_files(bundle / "nothing")
    (bundle / "more").mkdir()
    assert other_files(bundle) == []
    (bundle / "more" / "letter.txt").touch()
    (bundle / "link").symlink_to(bundle)
    assert other_files(bundle) == ["link", "more/letter.txt"]
    (bundle / BUNDLE).write_text('{"name": "another program\'s"}')
    assert BUNDLE in other_files(bundle) and "unet.onnx" in other_files(bundle)


def test_a_folder_without_description_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a bundle: it has no bundle.json; `snapgen export` makes one"):
        read_bundle(tmp_path, "onnx")
