"""Contact sheets, and the command that writes one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from snapgen.cli.data import app
from snapgen.pictures import contact_sheet, save_png


def test_a_sheet_shows_every_picture_in_its_cell() -> None:
    images = [np.full((40, 40, 3), 40 * i, dtype=np.uint8) for i in range(5)]
    sheet = contact_sheet(images, ["a cat", "", "a dog " * 9, "x" * 50, "last"], columns=2)
    pixels = np.asarray(sheet)
    cell_width, cell_height = sheet.width // 2, sheet.height // 3
    for i in range(5):
        cell = pixels[i // 2 * cell_height :, i % 2 * cell_width :]
        assert (cell[6:46, 6:46] == 40 * i).all()
    captions = pixels[50:cell_height, :cell_width]
    assert captions.min() < 100  # ink


@pytest.mark.parametrize(("images", "captions", "columns"), [(0, 0, 2), (2, 1, 2), (2, 2, 0)])
def test_a_sheet_needs_pictures_with_captions(images: int, captions: int, columns: int) -> None:
    with pytest.raises(ValueError, match="a sheet of"):
        contact_sheet([np.zeros((8, 8, 3), np.uint8)] * images, ["a"] * captions, columns)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")
    broken = Image.new("RGB", (8, 8))
    broken.save = lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))  # type: ignore[method-assign]
    with pytest.raises(OSError, match="disk full"):
        save_png(broken, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


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
