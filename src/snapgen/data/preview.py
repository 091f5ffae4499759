"""Contact sheets: pictures in a grid, each above its caption; for looking at data and at samples in training."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from snapgen.weights import atomic_file

_PADDING = 6  # px around every cell
_FONT_SIZE = 11  # px
_PAPER, _INK = (245, 245, 245), (30, 30, 30)


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Image.Image:
    """An RGB sheet of `images` (uint8 H W 3, all of one size), row by row, `captions` wrapped underneath.

    Raises ValueError if there are no images, if captions do not match, or if `columns` < 1.
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


def save_png(image: Image.Image, path: Path) -> None:
    """Writes `image` to `path` as a PNG, whole or not at all: under a temporary name, then renamed."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} does not exist")
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
