"""`snapgen data preview`: a contact sheet of scenes, and its refusals."""

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
