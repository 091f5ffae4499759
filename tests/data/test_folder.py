"""Pictures in a folder: captions from three places, odd files, held-out ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from snapgen.config import RecipeError
from snapgen.data.folder import FolderSettings, FolderSource
from snapgen.data.source import BadSampleError


def picture(path: Path, color: str = "red", size: tuple[int, int] = (64, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def open_folder(path: Path, **settings: Any) -> FolderSource:
    source = FolderSettings(source="folder", path=path, resolution=32, **settings).open()
    assert isinstance(source, FolderSource)
    return source


def test_captions_from_files_beside_and_from_metadata(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a red flag\n")
    picture(tmp_path / "more" / "a.jpg", "blue")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "more/a.jpg", "text": "a blue flag"}) + "\n")
    (tmp_path / "notes.md").write_text("no picture")
    source = open_folder(tmp_path)
    assert [source.caption(index, 3) for index in range(len(source))] == ["a red flag", "a blue flag"]
    assert source.image(0).shape == (32, 32, 3) and source.image(0).dtype == np.uint8
    assert source.image(0)[5, 5].tolist() == [255, 0, 0]


def test_classes_are_named_by_their_folders(tmp_path: Path) -> None:
    for folder in ("n01440764", "n02123045", "other"):
        picture(tmp_path / folder / "0.png")
    names = tmp_path / "names.txt"
    names.write_text("n01440764 tench, Tinca tinca\nn02123045 tabby, tabby cat\n")
    source = open_folder(tmp_path, template="a photo of {}", class_names=names)
    assert [source.caption(i, 0) for i in range(3)] == ["a photo of tench", "a photo of tabby", "a photo of other"]


def test_the_middle_square_upright_on_white(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (96, 32), (0, 0, 0, 0))
    wide.paste((0, 0, 255, 255), (32, 0, 64, 16))
    wide.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a bar")
    found = open_folder(tmp_path).image(0)
    assert (found[:16] == (0, 0, 255)).all() and (found[16:] == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    wide.convert("RGB").save(tmp_path / "b.jpg", exif=exif, quality=95)
    (tmp_path / "b.txt").write_text("a bar")
    turned = open_folder(tmp_path).image(1).astype(int)
    assert (turned[18:, 2:-2, 2] > 200).all() and (turned[:14].max(axis=2) < 60).all()


def test_held_out_pictures_are_not_trained_on(tmp_path: Path) -> None:
    for index in range(5):
        picture(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(str(index))
    settings = FolderSettings(source="folder", path=tmp_path, resolution=32, held_out=2)
    kept, apart = settings.open(), settings.validation(128).open()
    assert [kept.caption(i, 0) for i in range(len(kept))] == ["0", "1", "2"]
    assert [apart.caption(i, 0) for i in range(len(apart))] == ["3", "4"]
    assert len(settings.model_copy(update={"held_out": 0}).validation(128).open()) == 5


def test_the_signature_changes_with_the_files(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    before = open_folder(tmp_path).signature()
    assert open_folder(tmp_path).signature() == before
    picture(tmp_path / "a.png", "green", (48, 48))
    assert open_folder(tmp_path).signature() != before


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(BadSampleError, match=r"a\.png cannot be read"):
        open_folder(tmp_path).image(0)


def test_refusals_are_one_line(tmp_path: Path) -> None:
    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(RecipeError, match=message) as error:
            open_folder(**{"path": tmp_path} | settings)
        assert "\n" not in str(error.value)

    refused("folder .*nowhere does not exist", path=tmp_path / "nowhere")
    refused("holds no pictures")
    picture(tmp_path / "a.png")
    refused(r"a\.png has no caption: expected a\.txt beside it")
    refused("held_out 1 leaves none of 1 pictures", held_out=1)
    refused("class_names cannot be read", template="{}", class_names=tmp_path / "nowhere")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}')
    refused("metadata.jsonl is damaged")
    with pytest.raises(ValidationError, match="must stand once"):
        open_folder(tmp_path, template="a photo")


def test_captions_that_cannot_be_read_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "abcdef":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_bytes("\ufeffcats".encode())
    (tmp_path / "b.txt").write_bytes("un café".encode("latin-1"))
    (tmp_path / "f.txt").write_bytes("dogs".encode("utf-16"))
    lines: list[dict[str, Any]] = [
        {"file_name": "c.png", "text": None},
        {"file_name": "d.png", "text": ["one", "two"]},
        {"file_name": "e.png", "text": "before\u2028after\x85"},
    ]
    content = "\ufeff" + "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "metadata.jsonl").write_bytes(content.encode())
    source = open_folder(tmp_path)
    assert [source.name(index)[-5:] for index in range(len(source))] == ["a.png", "d.png", "e.png"]
    assert [source.caption(1, variant) for variant in range(3)] == ["one", "two", "one"]
    assert [source.caption(index, 0) for index in (0, 2)] == ["cats", "before\u2028after"]
    assert caplog.messages == [
        f"{tmp_path}: skipped captions that are not UTF-8 (2, first b.txt), "
        "pictures whose caption in metadata.jsonl is no text (1, first c.png)"
    ]
    held_out = open_folder(tmp_path, held_out=1, part="held out")
    assert held_out.caption(0, 0) == "before\u2028after"


def test_none_of_the_captions_can_be_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="none of the 1 pictures in .* has a readable caption"):
        open_folder(tmp_path)
