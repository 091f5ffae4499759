"""`snapgen data preview`: a contact sheet of scenes, and its refusals."""

import json
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from snapgen.cli.data import app


def test_preview_writes_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "preview.png"
    result = CliRunner().invoke(
        app, ["preview", "--out", str(out), "--count", "9", "--size", "64", "--split", "heldout", "--seed", "2"]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    with Image.open(out) as sheet:
        assert sheet.width == 8 * (64 + 12)
    assert list(tmp_path.iterdir()) == [out]


def test_preview_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    runner = CliRunner()
    assert isinstance(runner.invoke(app, ["preview", "--split", "test"]).exception, ValueError)
    named = runner.invoke(app, ["preview", "--out", str(tmp_path / "preview.gif")]).exception
    assert isinstance(named, ValueError) and "expected a name that ends in .png" in str(named)
    missing = str(tmp_path / "no" / "preview.png")
    assert isinstance(runner.invoke(app, ["preview", "--count", "1", "--out", missing]).exception, OSError)


def test_words_by_kind() -> None:
    lines = CliRunner().invoke(app, ["words"]).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["nouns", "plurals", "colors"]
    assert lines[0].startswith("nouns: cat, kitten, kitty, dog, ")
    printed = json.loads(CliRunner().invoke(app, ["words", "mini-base", "--json"]).stdout)
    assert printed["model"] == "mini-base"
    assert [f"{kind}: {', '.join(words)}" for kind, words in printed["words"].items()] == lines


def test_a_model_without_words_says_so(tiny_model: Path) -> None:
    error = CliRunner().invoke(app, ["words", str(tiny_model)]).exception
    assert isinstance(error, ValueError) and "has no list of words" in str(error)
