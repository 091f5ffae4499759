"""Where pictures go, and that they arrive whole or not at all."""

from pathlib import Path

import pytest
from PIL import Image

from snapgen.cli.pictures import PictureRequest, choose_destination, save_picture

APPLES = PictureRequest(3, "Two red apples, on a blue background & much, much more", 42)


def test_one_picture_goes_to_the_file(tmp_path: Path) -> None:
    destination = choose_destination(str(tmp_path / "apples.PNG"), 1)
    assert destination.file_for(APPLES) == tmp_path / "apples.PNG"


@pytest.mark.parametrize("out", ["pictures", "pictures/", "v1.0/", "existing.png"])
def test_folders(out: str, tmp_path: Path) -> None:
    (tmp_path / "existing.png").mkdir()
    destination = choose_destination(f"{tmp_path}/{out}", 2)
    assert destination.is_folder
    assert destination.file_for(APPLES) == tmp_path / out / "0003-two-red-apples-on-a-blue-background-much-42.png"


@pytest.mark.parametrize("prompt", ["", "🍎", "../../etc/passwd", "a" * 10_000])
def test_a_name_from_any_prompt_is_safe(prompt: str, tmp_path: Path) -> None:
    path = choose_destination(f"{tmp_path}/", 1).file_for(PictureRequest(0, prompt, 7))
    assert path.parent == tmp_path
    assert path.name.startswith("0000-")
    assert path.name.endswith("-7.png")
    assert len(path.name) < 64


def test_a_png_carries_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    facts = {"prompt": "zwei rote Äpfel 🍎", "seed": "7"}
    save_picture(Image.new("RGB", (32, 32)), path, facts)
    with Image.open(path) as image:
        assert image.text == facts  # type: ignore[attr-defined]


@pytest.mark.parametrize(("suffix", "format_name"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_formats(suffix: str, format_name: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    save_picture(Image.new("RGB", (32, 32)), path, {"prompt": "a cat"})
    with Image.open(path) as image:
        assert image.format == format_name


def test_an_interrupted_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_text("the old picture")

    def stop_halfway(self: Image.Image, file: Path, **settings: object) -> None:
        file.write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop_halfway)
    with pytest.raises(KeyboardInterrupt):
        save_picture(Image.new("RGB", (32, 32)), path, {})
    assert path.read_text() == "the old picture"
    assert list(tmp_path.iterdir()) == [path]
