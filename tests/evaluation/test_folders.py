"""Pictures are scored as training reads them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapgen.data.folder import FolderSettings
from snapgen.evaluation.folders import picture_files, read_picture


def test_a_picture_is_the_same_in_training_and_in_evaluation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "alpha.png")
    Image.fromarray(noise).convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(noise[..., 0].astype(np.uint16) * 200).save(tmp_path / "grey.png")
    Image.fromarray(noise).convert("CMYK").save(tmp_path / "print.jpg")
    source = FolderSettings(source="folder", path=tmp_path, resolution=32, template="{}").open()
    files = picture_files(tmp_path)
    assert len(files) == len(source) == 4
    for index, file in enumerate(files):
        assert np.array_equal(read_picture(file), source.image(index))


def test_hidden_files_are_not_scored(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    assert [file.name for file in picture_files(tmp_path)] == ["a.png"]
    with pytest.raises(ValueError, match=r"\._a.png cannot be read as a picture: it is no picture"):
        read_picture(tmp_path / "._a.png")
