"""Checks the places that a verb will write to before any work starts. Creates nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

STANDARD_OUTPUT = "-"  # what it is called elsewhere


def check_folder(option: str, path: Path) -> None:
    """Raise ValueError or OSError unless `path`, given as `option`, is or can become a folder to write to."""
    check_no_stream(option, str(path))
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option} {path} exists and is not a folder")
    check_writable(path)


def check_file(option: str, path: Path, suffixes: Collection[str]) -> None:
    """Raise ValueError or OSError unless `path`, given as `option`, can become a file with one of `suffixes`."""
    check_no_stream(option, str(path))
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} {path}: expected a name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: folder {path.parent} does not exist")
    check_writable(path.parent)


def check_no_stream(option: str, path: str) -> None:
    """Raise ValueError if `path` stands for standard output, which carries names and numbers only."""
    if path == STANDARD_OUTPUT:
        raise ValueError(f"{option} -: nothing but names and numbers goes to standard output; name a file or folder")


def check_writable(folder: Path) -> None:
    """Raise OSError unless a file can be made in `folder`, or in the nearest folder above it that exists."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write below {folder}: it is not a folder")
    try:
        # Permission bits do not tell enough (read-only or full disk, root user): try it.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write in {folder}: {(error.strerror or str(error)).lower()}") from error
