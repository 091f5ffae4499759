"""Reads pictures from files, and converts them between arrays, tensors, contact sheets and files."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from snapgen.files import atomic_file
from snapgen.messages import one_line

if TYPE_CHECKING:
    import torch

# What is recognised, whatever a file's suffix says. Pillow reads more, some of it by running other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF")
_TURNED = (5, 6, 7, 8)  # EXIF's orientations of pictures that lie on their side
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour spaces of ICC profiles: Pillow's modes
_ALIKE = 2  # of 255: a profile that changes no colour by more is sRGB's

_PADDING = 6  # px around every cell of a sheet
_FONT_SIZE = 11  # px
_PAPER, _INK = (245, 245, 245), (30, 30, 30)


def read_rgb(file: Path | BinaryIO) -> Image.Image:
    """The picture in `file`: RGB with 8 bits, sRGB, upright, on white. ValueError saying why it cannot be read.

    An ICC profile is applied; one that is damaged, or does not fit the picture, is ignored.
    """
    try:
        with Image.open(file, formats=_FORMATS) as encoded:
            picture = ImageOps.exif_transpose(encoded)
        if picture.mode.startswith("I"):
            picture = _eight_bits(picture)
        if picture.mode == "F":
            raise ValueError("its numbers are floating-point, whose white is unknown")
        grey = picture.mode in ("1", "L", "LA")
        if not picture.has_transparency_data:
            return _to_srgb(picture, grey)
        picture = picture.convert("RGBA")
        colors = _to_srgb(picture, grey)
        colors.putalpha(picture.getchannel("A"))
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), colors).convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("it is no picture, or of an unknown format") from None
    except Exception as error:  # Pillow raises whatever its parsers stumble over
        raise ValueError(one_line(error) or type(error).__name__) from error


def picture_size(file: Path | BinaryIO) -> tuple[int, int]:
    """Width and height in px of the picture in `file` when upright, without decoding it; 0, 0 if it is unreadable."""
    try:
        with Image.open(file, formats=_FORMATS) as encoded:
            # A PNG may store its orientation after its pixels; that is so rare that it is ignored.
            turned = encoded.format != "PNG" and encoded.getexif().get(ExifTags.Base.Orientation) in _TURNED
            width, height = encoded.size
    except Exception:  # as in `read_rgb`
        return 0, 0
    return (height, width) if turned else (width, height)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey `picture` of 16 bits as L, or LA if one of its levels is transparent."""
    levels = np.asarray(picture).astype(np.int64).clip(0, 65535)
    grey = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if (clear := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    grey.info["icc_profile"] = picture.info.get("icc_profile")
    return grey


def _to_srgb(picture: Image.Image, grey: bool) -> Image.Image:
    """The colours of `picture` (stored as `grey` levels, or not) as RGB, converted by its profile if that fits."""
    mode, transform = _read_profile(picture.info.get("icc_profile") or b"")
    if transform is None or (mode == "L" and not grey) or (mode == "CMYK") != (picture.mode == "CMYK"):
        colors = picture if picture.mode == "RGB" else picture.convert("RGB")
    else:
        colors = transform.apply(picture.convert(mode))
    colors.info = {}  # Pillow would save the profile again
    return colors


@lru_cache(maxsize=64)
def _read_profile(content: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that an ICC profile describes, and the transform to sRGB, if one is possible and needed."""
    try:
        profile, srgb = ImageCms.ImageCmsProfile(BytesIO(content)), ImageCms.createProfile("sRGB")
        mode = _MODES[profile.profile.xcolor_space]
        transform = ImageCms.buildTransform(profile, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError):
        return "", None
    if mode == "RGB":
        steps = np.arange(0, 256, 51, dtype=np.uint8)
        colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, len(steps), 3)
        converted = np.asarray(transform.apply(Image.fromarray(colors)))
        if np.abs(converted.astype(int) - colors).max() <= _ALIKE:
            return mode, None
    return mode, transform


def to_tensor(pictures: list[np.ndarray], device: torch.device | None = None) -> torch.Tensor:
    """uint8 pictures H W 3, all of one size -> float32 B 3 H W in [-1, 1], on `device` (by default the CPU)."""
    import torch  # contact sheets and files need no torch

    return torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_uint8(pictures: torch.Tensor) -> list[np.ndarray]:
    """B 3 H W in [-1, 1] (clamped) -> uint8 pictures H W 3."""
    scaled = (pictures.float().clamp(-1, 1) + 1.0) * 127.5
    return list(scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy())


def random_crop(picture: np.ndarray, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """A `size` x `size` part of `picture` (H W 3) at a place chosen by `seed`; `picture` itself if it is no larger."""
    height, width = picture.shape[:2]
    if height <= size and width <= size:
        return picture
    top, left = np.random.default_rng(seed).integers(0, (height - size + 1, width - size + 1))
    return picture[top : top + size, left : left + size]


def resize_square(picture: np.ndarray, side: int) -> np.ndarray:
    """`picture`, uint8 H W 3, resized to `side` x `side` px (Lanczos); itself if it has that size already."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Image.Image:
    """An RGB sheet of `images` (uint8 H W 3, all of one size), row by row, each with its caption wrapped underneath.

    Raises ValueError if there are no images, if the number of captions differs, or if `columns` < 1.
    """
    if not len(images) or len(images) != len(captions) or columns < 1:
        raise ValueError(f"a sheet of {columns} columns for {len(images)} images with {len(captions)} captions")
    height, width = images[0].shape[:2]
    font = ImageFont.load_default(_FONT_SIZE)
    letter = font.getlength("abcdefghijklmnopqrstuvwxyz ") / 27
    texts = [textwrap.wrap(caption, max(8, int(width / letter))) for caption in captions]
    line = _FONT_SIZE + 3
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_width = width + 2 * _PADDING
    cell_height = height + 2 * _PADDING + line * max(1, *(len(text) for text in texts))
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        left = i % columns * cell_width + _PADDING
        top = i // columns * cell_height + _PADDING
        sheet.paste(Image.fromarray(image), (left, top))
        draw.multiline_text((left, top + height + 2), "\n".join(text), fill=_INK, font=font, spacing=2)
    return sheet


def save_png(image: Image.Image, path: Path, facts: dict[str, str] | None = None) -> None:
    """Writes `image` to `path` as a PNG, whole or not at all, with `facts` as its text chunks."""
    info = PngInfo()
    for name, value in (facts or {}).items():
        info.add_text(name, value)
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def encode_picture(image: Image.Image, kind: str, **settings: Any) -> bytes:
    """`image` as the content of a file of this kind, such as "webp"; `settings` are passed to Pillow."""
    file = BytesIO()
    image.save(file, format=kind, **settings)
    return file.getvalue()


def data_url(content: bytes, kind: str) -> str:
    """A data URL with the content of a picture file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
