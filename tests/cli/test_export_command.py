"""`snapgen export`: what it writes and prints, and what it refuses in one line before any work."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.converters import PLACE

from snapgen.cli.main import run
from snapgen.cli.options import check_installed
from snapgen.export.targets import TARGETS
from snapgen.runtime.bundle import read_bundle


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
        (["mini", "full", "--target", "onnx"], "full holds other files than a bundle: name a new folder"),
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


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("snapgen.cli.options.find_spec", lambda package: None)
    assert run(["export", "mini", "out", "--target", "onnx"]) == 1
    expected = "exporting to onnx needs onnx, onnxscript, onnxruntime: pip install 'snapgen[export]'"
    assert capfd.readouterr().err == f"snapgen: error: {expected}\n"


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_finds_what_it_imports(name: str) -> None:
    check_installed(TARGETS[name].packages, "exporting needs", "export")
