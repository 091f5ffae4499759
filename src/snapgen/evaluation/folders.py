"""Folders of pictures that were not drawn here, read one after the other."""

from __future__ import annotations

from pathlib import Path

from snapgen.data.files import PICTURES


def picture_files(folder: Path, count: int | None = None) -> list[Path]:
    """The pictures in `folder` and below it, sorted by path; the first `count` if given.

    Raises ValueError if there are none, or fewer than `count`.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of pictures")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not files or (count is not None and len(files) < count):
        wanted = "at least one picture" if count is None else f"{count} pictures"
        raise ValueError(f"{folder} holds {len(files)} pictures ({', '.join(sorted(PICTURES))}), expected {wanted}")
    return files[:count]
