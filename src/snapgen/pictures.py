"""Converts pictures between arrays, tensors, contact sheets and files."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from snapgen.files import atomic_file

if TYPE_CHECKING:
    import torch

_PADDING = 6  # px around every cell of a sheet
_FONT_SIZE = 11  # px
_PAPER, _INK = (245, 245, 245), (30, 30, 30)


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """uint8 pictures H W 3, all of one size -> float32 B 3 H W in [-1, 1]."""
    import torch  # contact sheets and files need no torch

    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


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
