"""Reads folders of existing pictures, one file at a time, for the suites that score or compare with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from snapgen.data.files import PICTURES
from snapgen.data.finding import Skipped, find_files
from snapgen.files import fingerprint, sha256
from snapgen.pictures import read_rgb


def picture_files(folder: Path, count: int | None = None) -> list[Path]:
    """The pictures in `folder` and below it, sorted by path, without hidden ones; the first `count` if given.

    Raises ValueError if there are none, or fewer than `count`.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of pictures")
    skipped = Skipped()
    files = find_files(folder, PICTURES, skipped)
    skipped.report(folder)
    if not files or (count is not None and len(files) < count):
        wanted = "at least one picture" if count is None else f"{count} pictures"
        raise ValueError(f"{folder} holds {len(files)} pictures ({', '.join(sorted(PICTURES))}), expected {wanted}")
    return files[:count]


def read_picture(file: Path) -> np.ndarray:
    """The picture in `file` as uint8 H W 3, read as in training; ValueError naming it if it is not a picture."""
    try:
        return np.asarray(read_rgb(file))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as a picture: {error}") from None


def files_hash(files: list[Path]) -> str:
    """SHA-256 of the files' names and contents."""
    return fingerprint([[file.name, sha256(file)] for file in files])
