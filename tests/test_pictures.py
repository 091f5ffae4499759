"""Pictures as arrays, tensors, contact sheets and files."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snapgen.pictures import (
    contact_sheet,
    data_url,
    encode_picture,
    random_crop,
    resize_square,
    save_png,
    to_tensor,
    to_uint8,
)


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


def test_pictures_survive_the_way_to_tensors_and_back() -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, axis=2)
    tensor = to_tensor([picture, picture])
    assert tensor.shape == (2, 3, 8, 32) and tensor.dtype == torch.float32
    assert (tensor.min().item(), tensor.max().item()) == (-1, 1)
    assert all(np.array_equal(back, picture) for back in to_uint8(tensor))
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.0]).reshape(1, 3, 1, 1))[0].tolist() == [[[0, 255, 128]]]


def test_crops_are_decided_by_the_seed() -> None:
    picture = np.arange(20 * 30).reshape(20, 30, 1).repeat(3, axis=2)
    crops = [random_crop(picture, 8, (0, number)) for number in range(200)]
    assert all(crop.shape == (8, 8, 3) for crop in crops)
    assert np.array_equal(crops[5], random_crop(picture, 8, (0, 5)))
    corners = {divmod(int(crop[0, 0, 0]), 30) for crop in crops}
    assert {min(y for y, _ in corners), max(y for y, _ in corners)} == {0, 12}  # the borders are reached
    assert {min(x for _, x in corners), max(x for _, x in corners)} == {0, 22}
    assert random_crop(picture, 32, (0,)) is picture


def test_a_picture_is_made_square() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert resize_square(picture, 4) is picture
    assert resize_square(np.full((4, 6, 3), 9, np.uint8), 8).tolist() == [[[9, 9, 9]] * 8] * 8


def test_a_url_holds_the_whole_file() -> None:
    content = encode_picture(Image.new("RGB", (2, 3), "red"), "webp", lossless=True)
    url = data_url(content, "webp")
    head, _, encoded = url.partition(",")
    assert head == "data:image/webp;base64" and base64.b64decode(encoded) == content
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.format, picture.size, picture.convert("RGB").getpixel((0, 0))) == ("WEBP", (2, 3), (255, 0, 0))


def test_facts_become_text_chunks(tmp_path: Path) -> None:
    save_png(Image.new("RGB", (2, 2)), tmp_path / "new" / "a.png", {"prompt": "ein Löwe", "seed": "3"})
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.text == {"prompt": "ein Löwe", "seed": "3"}
