"""The examples for phones in apps/: they name what bundles have, and their loops give the numbers of Python's.

The latter needs compilers, by their commands in the environment: SWIFTC, and KOTLINC with CLASSPATH (apps/README.md).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from snapgen.export.parity import PROMPTS
from snapgen.export.parts import Part, decoder_part, text_part, unet_part
from snapgen.files import sha256
from snapgen.flow import noise
from snapgen.flow.noise import seeded_noise
from snapgen.flow.schedule import TIMESTEP_SCALE, sampling_levels
from snapgen.models.presets import create_autoencoder, create_unet
from snapgen.pipeline.bundled import bundled_folder
from snapgen.pipeline.load import load_pipeline
from snapgen.runtime import bundle as formats
from snapgen.runtime.bundle import Bundle, read_bundle
from snapgen.runtime.pipeline import Arrays, BundlePipeline, Runner, read_tokenizers

APPS = Path(__file__).parents[1] / "apps"
TWISTER = (1812433253, 0x9D2C5680, 0xEFC60000, 0x9908B0DF)
TOKENS, WIDTH, SHAPE = 32, 8, (1, 3, 4, 6)
SEED, COUNTS, STEPS = -5, (17, 64, 4099), 3
HARD = (  # for a tokenizer
    "[EOS] a[PAD]cat[eos]",
    "İstanbul ΑΣ ß ﬁ ① Ⅳ",
    "a\x85b\x1fc\u3000d\u200be",
    "_ $5 — “x” \u00b4 ¿que? a+b",
    "한국어",
    "a" * 101,
)


def sources(folder: str) -> str:
    """All code of an app."""
    return "\n".join(file.read_text() for file in sorted((APPS / folder).iterdir()))


def quoted(text: str) -> set[str]:
    """The names that `text` quotes."""
    return set(re.findall(r'"(\w+)"', text))


def fields_of(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


@pytest.fixture(scope="module")
def parts(tiny_model: Path) -> list[Part]:
    """All networks of a model, its UNet with a pooled vector."""
    encoder: Any = load_pipeline(str(tiny_model)).joint_text_encoder().encoders["text_encoder"]
    unet, vae = create_unet("debug", pooled_projection_dim=8), create_autoencoder("debug")
    return [text_part("text_encoder", encoder, True), unet_part(unet, 4, 4, 5), decoder_part(vae, 4, 4)]


@pytest.mark.parametrize("folder", ["ios", "android"])
def test_the_apps_name_the_inputs_and_outputs_that_networks_have(folder: str, parts: list[Part]) -> None:
    code = sources(folder)
    names = set().union(*(part.inputs.keys() | set(part.outputs) for part in parts))
    assert names <= quoted(code)
    given = set(re.findall(r'"(\w+)"(?:: | to )(?:Tensor|ones|x\b|timestep|states|mask|pooled)', code))
    assert len(given) == 8
    taken = set(re.findall(r'\)(?:\["|\.getValue\(")(\w+)"|found(?:\["|\.getValue\(")(\w+)"', code))
    assert {one or other for one, other in taken} == {"states", "pooled", "velocity", "picture"}
    assert given | {"states", "pooled", "velocity", "picture"} == names


def test_the_apps_read_what_the_format_has() -> None:
    kotlin = (APPS / "android" / "Description.kt").read_text()
    models = [model for model in vars(formats).values() if isinstance(model, type) and issubclass(model, BaseModel)]
    everything = set().union(*map(fields_of, models))
    read = set(re.findall(r'(?:get(?!Value)\w+|isNull|opt\w*)\("(\w+)"\)', kotlin))
    assert len(read) > 25
    assert read <= everything
    swift = (APPS / "ios" / "Description.swift").read_text()
    for name in ("Port", "Network", "Text", "Latents", "Sampling", "Golden", "File"):
        body = re.search(rf"struct {name}: Decodable {{(.*?)(?:enum|}})", swift, re.DOTALL)
        assert body
        found = re.findall(r"(?:let|,) ((?:\w+, )*\w+): ", body[1])
        names = {
            re.sub("[A-Z]", lambda one: f"_{one[0].lower()}", name) for names in found for name in names.split(", ")
        }
        assert names
        assert names <= fields_of(getattr(formats, name)), name
    for field in ("prefix_start", "prefix_length", "pad_token"):
        assert f'"{field}"' in swift
        assert field in fields_of(formats.Text)
    for code in (swift, kotlin):
        assert {"snapgen-bundle"} < set(re.findall(r'"([\w-]+)"', code))
        assert f"expected {formats.VERSION}: export the model again" in code


def test_lines_are_short() -> None:
    files = [file for file in APPS.rglob("*") if file.suffix in (".swift", ".kt")]
    assert len(files) > 10
    assert [file.name for file in files if max(map(len, file.read_text().splitlines())) > 120] == []


@pytest.mark.parametrize("folder", ["ios", "android"])
def test_the_constants_are_those_of_python(folder: str) -> None:
    code = sources(folder).replace("_", "")
    assert re.search(rf"(?i)timestepscale = {TIMESTEP_SCALE}", code)
    assert re.search(rf"(?i)block = {noise.BLOCK} ", code)
    assert re.search("0xFFFFFF[ )]", code)  # 24 bits
    assert re.search("0x1p24|1 shl 24", code)
    numbers = {int(number, 0) for number in re.findall(r"0x[0-9A-F]+\b|\b\d{4,}\b", code.replace(".toInt()", ""))}
    assert set(TWISTER) <= numbers


def exact_encoder(width: int) -> Runner:
    """A text encoder whose sums are exact in fp32, as those in apps/checks."""

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        ids, columns = inputs["input_ids"][..., None], np.arange(width)
        states = (ids + columns) % 9 / 8 * inputs["attention_mask"][..., None]
        return {"states": np.float32(states), "pooled": np.float32((ids.sum() + columns[None]) / 256)}

    return run


def exact_unet(inputs: Arrays) -> dict[str, np.ndarray]:
    """A UNet that reads all that it is given, in its order."""
    states = inputs["encoder_hidden_states"][inputs["encoder_attention_mask"] == 1]  # of the tokens that are seen
    text = np.sum(np.arange(1, len(states) + 1)[:, None] * states / 4096)
    shift = inputs["timestep"][0] / 1024 + np.float32(text + inputs["pooled_projections"].sum() / 64)
    return {"velocity": inputs["sample"] * np.float32(0.5) + shift}


def exact_decoder(inputs: Arrays) -> dict[str, np.ndarray]:
    """A decoder that changes nothing."""
    return {"picture": inputs["latents"]}


def write_folder(folder: Path, target: str) -> tuple[Bundle, list[str]]:
    """A bundle with three text encoders, one of them absent, and empty files as networks; prompts, also in a file."""
    prompts = [PROMPTS[0], "", *PROMPTS[1:], *HARD]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    shutil.copy(bundled_folder() / "tokenizer" / "tokenizer.json", folder)
    fixed = target == "coreml"
    _, channels, height, width = SHAPE
    unet = ["sample", "timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"]
    ports = {
        "text_encoder": (["input_ids", "attention_mask"], ["states", "pooled"]),
        "text_encoder_2": (["input_ids", "attention_mask"], ["states", "pooled"]),
        "unet": (unet, ["velocity"]),
        "decoder": (["latents"], ["picture"]),
    }
    for name in ports:
        (folder / name).touch()

    def described(names: Iterable[str]) -> list[Any]:
        return [{"name": name, "dtype": "float32", "shape": [1]} for name in names]

    content = {
        "target": target,
        "precision": "fp32",
        "model": "exact",
        "snapgen": "0",
        "license": None,
        "networks": {
            name: {"file": name, "inputs": described(inputs), "outputs": described(outputs)}
            for name, (inputs, outputs) in ports.items()
        },
        "texts": [
            {"network": "text_encoder", "tokenizer": "tokenizer.json", "tokens": [0, TOKENS], "columns": [0, WIDTH]}
            | {"pooled": True},
            {"network": "text_encoder_2", "tokenizer": "tokenizer.json", "tokens": [TOKENS, 40], "columns": [4, 16]}
            | {"prefix": "a cat ", "prefix_start": 1, "prefix_length": 2, "pad_token": 5, "pooled": True},
            {
                "network": "text_encoder_3",
                "tokenizer": None,
                "tokens": [TOKENS, 36],
                "columns": [2, 20],
                "pooled": False,
            },
        ],
        "latents": {"channels": channels, "height": height, "width": width, "multiple": 1, "fixed": fixed, "pixels": 1},
        "sampling": {"steps": 4, "guidance": 1.0, "shift": 3.0},
        "known_words": None,
        "golden": {"seed": 0, "noise": seeded_noise(0, (64,)).tolist()},
        "parity": {"inputs": 1, "relative_error": {}, "psnr": []},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
            for name in [*ports, "tokenizer.json"]
        },
    }
    formats.write_bundle(Bundle.model_validate(content), folder)
    return read_bundle(folder, target), prompts


def compile_swift(folder: Path) -> list[str]:
    """The command that runs apps/checks/main.swift."""
    names = ("Noise", "Description", "WordPiece", "Sampler")
    files = [*(APPS / "ios" / f"{name}.swift" for name in names), APPS / "checks" / "main.swift"]
    subprocess.run([*shlex.split(os.environ["SWIFTC"]), *files, "-o", folder / "check"], check=True)
    return [str(folder / "check")]


def compile_kotlin(folder: Path) -> list[str]:
    """The command that runs apps/checks/Check.kt."""
    names = ("Noise", "Description", "WordPiece", "Sampler")
    files = [*(APPS / "android" / f"{name}.kt" for name in names), APPS / "checks" / "Check.kt"]
    paths, jar = os.environ["CLASSPATH"], folder / "check.jar"
    command = [*shlex.split(os.environ["KOTLINC"]), "-cp", paths, *files, "-include-runtime", "-d", jar]
    subprocess.run(command, check=True)
    return ["java", "-cp", f"{jar}:{paths}", "CheckKt"]


@pytest.mark.parametrize(
    ("target", "compiler", "build"),
    [("coreml", "SWIFTC", compile_swift), ("onnx", "KOTLINC", compile_kotlin)],
    ids=["swift", "kotlin"],
)
def test_the_loops_give_the_numbers_of_python(target: str, compiler: str, build: Any, tmp_path: Path) -> None:
    if compiler not in os.environ:
        pytest.skip(f"{compiler} names no compiler")
    folder = tmp_path / "bundle"
    folder.mkdir()
    bundle, prompts = write_folder(folder, target)
    done = subprocess.run([*build(tmp_path), folder], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    for count, numbers in zip(COUNTS, found["noise"], strict=True):
        np.testing.assert_array_equal(np.float32(numbers), seeded_noise(SEED, (count,)))
    assert found["levels"] == [sampling_levels(7, shift) for shift in (1.0, 3.0)]
    tokenizers = read_tokenizers(folder, ["tokenizer.json"])
    tokenizer = tokenizers["tokenizer.json"]
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)
    assert dict(zip(prompts, found["ids"], strict=True)) == {text: tokenizer.encode(text).ids for text in prompts}
    encoders = {
        text.network: exact_encoder(text.columns[1] - text.columns[0]) for text in bundle.texts if text.tokenizer
    }
    networks = encoders | {"unet": exact_unet, "decoder": exact_decoder}
    pipeline = BundlePipeline(bundle, networks, tokenizers)
    for seed, (prompt, picture) in enumerate(zip(prompts, found["pictures"], strict=False)):
        expected = pipeline.denoise(prompt, seeded_noise(seed, SHAPE), steps=STEPS, guidance=float(seed))
        np.testing.assert_array_equal(np.float32(picture), expected.ravel())
    assert len(found["pictures"]) == 3
