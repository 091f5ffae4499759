"""`snapgen export`: what it writes and prints, and what it refuses in one line before any work."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.converters import PLACE

from snapgen.cli.export import bundle_table
from snapgen.cli.main import run
from snapgen.cli.options import check_installed
from snapgen.export.targets import TARGETS
from snapgen.runtime.bundle import Bundle, File, Network, Parity, read_bundle


def test_it_writes_a_bundle_and_says_how_near_it_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TARGETS, "onnx", replace(TARGETS["onnx"], converter=PLACE))
    folder = tmp_path / "bundle"
    assert run(["export", str(tiny_model), str(folder), "--target", "onnx", "--size", "64x32", "--json"]) == 0
    out, err = capfd.readouterr()
    bundle = read_bundle(folder, "onnx")
    assert json.loads(out) == bundle.model_dump()
    assert (bundle.precision, bundle.latents.width, bundle.latents.height) == ("w16", 8, 4)
    assert err.splitlines()[0].endswith("weights were rounded to fp16")
    assert run(["export", str(tiny_model), str(folder), "--target", "onnx", "--quantize", "fp32"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| text_encoder", "| unet", "| decoder"]
    assert lines[5].startswith("20 pictures: PSNR ") and lines[6] == f"written: {folder}"
    assert read_bundle(folder, "onnx").precision == "fp32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mini", "out", "--target", "tpu"], f"--target tpu is unknown: expected one of {', '.join(TARGETS)}"),
        (["mini", "out", "--target", "onnx", "--quantize", "q3"], "--quantize q3 is unknown for onnx: expected one of"),
        (["mini", "out", "--target", "onnx", "--size", "100x96"], "--size 100x96 cannot be used"),
        (["mini", "-", "--target", "onnx"], "OUT -: nothing but names and numbers goes to standard output"),
        (["mini", "file", "--target", "onnx"], "OUT file exists and is not a folder"),
        (
            ["mini", "full", "--target", "onnx"],
            "full holds other files than a bundle, such as letter.txt: name a new folder",
        ),
        (["nothing", "out", "--target", "onnx"], "there is no model 'nothing'"),
        (["mini", "out"], "Missing option '--target'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "snapgen.export.onnx", None)  # to convert anything would be an error
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    assert run(["export", *arguments]) != 0
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("snapgen: error: ")
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_files_beside_a_bundle_are_not_removed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle.json").write_text('{"name": "another program\'s"}')
    (tmp_path / "letter.txt").touch()
    monkeypatch.setitem(sys.modules, "snapgen.export.onnx", None)
    assert run(["export", str(tiny_model), str(tmp_path), "--target", "onnx"]) == 1
    assert "holds other files than a bundle, such as bundle.json: name a new folder" in capfd.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2


def test_the_table_counts_weights_beside_the_graph(tmp_path: Path) -> None:
    names = ("text_encoder.onnx", "text_encoder_2.onnx", "unet.onnx", "unet.data", "decoder.mlpackage/Data/weights.bin")
    files = {name: File(bytes=10**6 * 3**power, sha256="0" * 64) for power, name in enumerate(names)}
    described = {"text_encoder": names[0], "text_encoder_2": names[1], "unet": names[2], "decoder": "decoder.mlpackage"}
    bundle = Bundle.model_construct(
        networks={name: Network(file=file, inputs=[], outputs=[]) for name, file in described.items()},
        parity=Parity(inputs=2, relative_error=dict.fromkeys(described, 0.0), psnr=[80.0, 90.0]),
        files=files,
    )
    lines = bundle_table(bundle, tmp_path).splitlines()
    assert [line.split(" | ")[2] for line in lines[2:6]] == ["1.0", "3.0", "36.0", "81.0"]
    assert lines[6] == "2 pictures: PSNR 80.0 dB at worst, median 85.0 dB"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("snapgen.cli.options.find_spec", lambda package: None)
    assert run(["export", "mini", "out", "--target", "onnx"]) == 1
    expected = "exporting to onnx needs onnx, onnxscript, onnxruntime: pip install 'snapgen[export]'"
    assert capfd.readouterr().err == f"snapgen: error: {expected}\n"


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_finds_what_it_imports(name: str) -> None:
    check_installed(TARGETS[name].packages, "exporting needs", "export")
