"""Pictures as arrays, tensors, contact sheets and files."""

import base64
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from snapgen.pictures import (
    contact_sheet,
    data_url,
    encode_picture,
    picture_size,
    random_crop,
    read_rgb,
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
    with Image.open(BytesIO(content)) as picture:
        assert (picture.format, picture.size, picture.convert("RGB").getpixel((0, 0))) == ("WEBP", (2, 3), (255, 0, 0))


def test_facts_become_text_chunks(tmp_path: Path) -> None:
    save_png(Image.new("RGB", (2, 2)), tmp_path / "new" / "a.png", {"prompt": "ein Löwe", "seed": "3"})
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.text == {"prompt": "ein Löwe", "seed": "3"}


def saved(image: Image.Image, kind: str = "PNG", **settings: Any) -> BytesIO:
    """The file that Pillow writes, as somebody else's."""
    file = BytesIO()
    image.save(file, kind, **settings)
    file.seek(0)
    return file


def icc_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 for a display, such as Pillow cannot make."""
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(">4x4sI4s4s4s12x4s", b"lcms", 0x02400000, b"mntr", space, b"XYZ ", b"acsp").ljust(68, b"\0")
    head += struct.pack(">iii", 63190, 65536, 54061)  # D50
    content = head.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(content)) + content[4:]


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(65536 * value) for value in values))


LINEAR = b"curv\0\0\0\0\0\0\0\0"
WHITE = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
RED, GREEN, BLUE = xyz(0.4361, 0.2225, 0.0139), xyz(0.3851, 0.7169, 0.0971), xyz(0.1431, 0.0606, 0.7139)  # sRGB's
CURVES = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), LINEAR)
LINEAR_GREY = icc_profile(b"GRAY", WHITE | {b"kTRC": LINEAR})
LINEAR_RGB = icc_profile(b"RGB ", WHITE | {b"rXYZ": RED, b"gXYZ": GREEN, b"bXYZ": BLUE} | CURVES)
SWAPPED_RGB = icc_profile(b"RGB ", WHITE | {b"rXYZ": GREEN, b"gXYZ": RED, b"bXYZ": BLUE} | CURVES)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_sixteen_bits_keep_their_range() -> None:
    levels = np.array([[0, 128, 257, 32896, 65278, 65535]], np.uint16)
    file = saved(Image.fromarray(levels))
    assert Image.open(file).mode == "I;16"
    assert np.asarray(read_rgb(file))[0].tolist() == [[level] * 3 for level in (0, 0, 1, 128, 254, 255)]
    clear = np.asarray(read_rgb(saved(Image.fromarray(levels), transparency=32896)))[0, :, 0]
    assert clear.tolist() == [0, 0, 1, 255, 254, 255]
    linear = np.asarray(read_rgb(saved(Image.fromarray(levels), icc_profile=LINEAR_GREY)))[0, :, 0]
    assert linear[3] == pytest.approx(188, abs=1)  # sRGB's curve at one half


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 1), (80, 80, 80, 255))
    image.putpixel((1, 0), (80, 80, 80, 0))
    if mode == "P":
        image = Image.new("P", (4, 1))
        image.putpalette([80, 80, 80, 20, 20, 20])
        image.putpixel((1, 0), 1)
    file = saved(image.convert(mode), **({"transparency": 1} if mode == "P" else {}))
    read = read_rgb(file)
    assert read.mode == "RGB"
    assert np.asarray(read)[0, :, 0].tolist() == [80, 255, 80, 80]


def test_colors_become_srgb() -> None:
    half = Image.new("RGB", (2, 2), (255, 0, 0))
    assert read_rgb(saved(half, icc_profile=SWAPPED_RGB)).getpixel((0, 0)) == pytest.approx((0, 255, 0), abs=2)
    linear = Image.new("RGB", (2, 2), (128, 128, 128))
    assert read_rgb(saved(linear, icc_profile=LINEAR_RGB)).getpixel((0, 0)) == pytest.approx((188,) * 3, abs=1)
    assert read_rgb(saved(linear.convert("L"), icc_profile=LINEAR_GREY)).getpixel((0, 0)) == pytest.approx(
        (188,) * 3, abs=1
    )
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 51))
    assert read_rgb(saved(clear, icc_profile=SWAPPED_RGB)).getpixel((0, 0)) == pytest.approx((204, 255, 204), abs=2)
    assert "icc_profile" not in read_rgb(saved(linear, icc_profile=LINEAR_RGB)).info


def test_srgb_changes_nothing() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert np.array_equal(read_rgb(saved(image, icc_profile=SRGB)), image)


@pytest.mark.parametrize("profile", [b"", b"no profile", SWAPPED_RGB[:200], LINEAR_GREY])
def test_profiles_that_are_damaged_or_do_not_fit_are_ignored(profile: bytes) -> None:
    assert read_rgb(saved(Image.new("RGB", (2, 2), (9, 99, 199)), icc_profile=profile)).getpixel((0, 0)) == (9, 99, 199)


def test_cmyk() -> None:
    file = saved(Image.new("CMYK", (16, 16), (255, 0, 255, 0)), "JPEG", quality=95, icc_profile=SWAPPED_RGB)
    assert Image.open(file).mode == "CMYK"
    assert read_rgb(file).getpixel((8, 8)) == pytest.approx((0, 255, 0), abs=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 32, 32))
    file = saved(image, kind, exif=exif)
    read = np.asarray(read_rgb(file).convert("L"))
    assert read.shape == (64, 32) and read[:28].min() > 200 and read[36:].max() < 50
    if kind != "PNG":
        assert picture_size(file) == (32, 64)


def test_what_is_no_picture() -> None:
    cut = saved(Image.effect_noise((64, 64), 50)).read(1000)
    for content, reason in ((b"no picture", "it is no picture"), (cut, "truncated")):
        with pytest.raises(ValueError, match=reason):
            read_rgb(BytesIO(content))
    assert picture_size(BytesIO(b"no picture")) == (0, 0)
    with pytest.raises(ValueError, match="floating-point"):
        read_rgb(saved(Image.new("F", (2, 2)), "TIFF"))
    with pytest.raises(ValueError, match="it is no picture"):
        read_rgb(saved(Image.new("RGB", (4, 4)), "EPS"))  # a program, for Ghostscript to run
