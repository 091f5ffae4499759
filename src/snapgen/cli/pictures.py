"""Chooses and checks where generated pictures go before any work starts, and saves them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snapgen.cli.outputs import check_no_stream, check_writable

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # suffix: Pillow's name
SLUG_LENGTH = 40  # characters of the prompt in a file's name


@dataclass(frozen=True)
class PictureRequest:
    """One picture to generate: the prompt's index, the prompt, and the seed of the noise."""

    index: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class Destination:
    """One file, or a folder in which pictures are named after their prompts."""

    path: Path
    is_folder: bool

    def file_for(self, request: PictureRequest) -> Path:
        """The file for the picture of `request`."""
        if not self.is_folder:
            return self.path
        slug = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower())[:SLUG_LENGTH].strip("-") or "picture"
        return self.path / f"{request.index:04d}-{slug}-{request.seed}.png"


def choose_destination(out: str, count: int) -> Destination:
    """The destination `out` for `count` pictures, checked to be writable.

    It is a folder if it exists as one, ends in a slash or has no suffix; otherwise a file, for one picture only.
    Raises ValueError or OSError with a message for the user. Creates nothing.
    """
    path = Path(out)
    if not out:
        raise ValueError("--out is empty: name a file such as picture.png, or a folder")
    check_no_stream("--out", out)
    if path.name.lower() in FORMATS and not (path.is_dir() or out.endswith(os.sep)):
        raise ValueError(f"--out {out} has no name before its suffix: name a file such as picture{path.name}")
    if path.is_dir() or out.endswith(os.sep) or not path.suffix:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{out} exists and is not a folder")
        check_writable(path)
        return Destination(path, is_folder=True)
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"cannot write {path.suffix} pictures to {out}: use one of {known}, or a folder ({out}/)")
    if count > 1:
        raise ValueError(f"{count} pictures do not fit in one file: give a folder instead of {out}")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {path.parent}")
    check_writable(path.parent)
    return Destination(path, is_folder=False)


def save_picture(image: Image, path: Path, facts: dict[str, str]) -> None:
    """Write `image` to `path`, whole or not at all; a PNG carries `facts` as text chunks."""
    from snapgen.files import atomic_file
    from snapgen.pictures import save_png

    kind = FORMATS[path.suffix.lower()]
    if kind == "PNG":
        save_png(image, path, facts)
        return
    with atomic_file(path) as temporary:
        image.save(temporary, format=kind, quality=95)
