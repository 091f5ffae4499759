"""The emoji font: where it lies, and which file it is."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from snapgen.files import sha256

_FONT_NAME = "NotoColorEmoji.ttf"
_FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
)


class FontMissingError(FileNotFoundError):
    """The emoji font is not there, or is not the one with bitmaps; the message says how to get it."""


@cache
def find_font(font: str | None = None) -> Path:
    """The path of the emoji font: `font` if given, else the first found in the system's font folders."""
    if font is not None:
        candidates = [Path(font)]
    else:
        folders = [Path(folder).expanduser() for folder in _FONT_FOLDERS]
        candidates = [path for folder in folders if folder.is_dir() for path in sorted(folder.rglob(_FONT_NAME))]
    for path in candidates:
        if path.is_file():
            return path
    given = "" if font is None else f" at {font}"
    raise FontMissingError(
        f"Noto Color Emoji font not found{given}; install it: apt-get install fonts-noto-color-emoji (or set data.font)"
    )


def font_sha256(font: str | None = None) -> str:
    """Hexadecimal SHA-256 of the font file, recorded with weights that were trained on its sprites."""
    return _sha256(find_font(font))


_sha256 = cache(sha256)  # of a file that does not change while the program runs
