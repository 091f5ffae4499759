"""Weights on disk: safetensors in and out, every write atomic, and where a model came from."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

VERSIONED = ("snapgen", "torch", "diffusers", "transformers", "safetensors", "numpy")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to (same suffix), renamed to `path` on success, removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty temporary sibling folder of `path` to fill; it takes the place of `path` on success only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    replaced = path.with_name(f".tmp-{os.getpid()}-replaced-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():  # a folder cannot be renamed onto one that holds files
            os.replace(path, replaced)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(folder: Path, age: float = 0.0) -> None:
    """Removes what writes that were killed half-way left in `folder`, if untouched for `age` seconds."""
    for leftover in folder.glob(".tmp-*"):
        try:
            young = time.time() - leftover.stat().st_mtime < age
        except FileNotFoundError:  # another process was faster
            continue
        if young:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def save_file_atomic(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes `tensors` (any device or memory format; no two may share storage) as the safetensors file `path`."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        safetensors.torch.save_file(contiguous, temporary, metadata=metadata)


def load_file(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of the safetensors file `path`; a truncated or foreign file is a ValueError naming it."""
    try:
        return safetensors.torch.load_file(path, device=device)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {' '.join(str(error).split())}") from None


def load_pretrained(load: Callable[..., Any], place: str, **settings: Any) -> Any:
    """`load`, a library's `from_pretrained`, of the folder or hub name `place`; ValueError of one line if it cannot."""
    try:
        return load(place, **settings)
    except Exception as error:  # each library has its own for what is missing, truncated, offline or something else
        where = "/".join([place, *filter(None, [settings.get("subfolder")])])
        raise ValueError(f"{where} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def load_network(kind: Any, place: str, **settings: Any) -> Any:
    """The network of class `kind` in the folder or hub name `place`; ValueError of one line unless it is complete.

    diffusers and transformers fill weights that are missing with random numbers and only warn.
    """
    network, report = load_pretrained(kind.from_pretrained, place, output_loading_info=True, **settings)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{place} lacks {len(missing)} tensors of its {type(network).__name__}, such as {missing[0]}")
    return network


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its relative path, sorted."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def provenance(folder: Path, recipe: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Where the model in `folder` came from: its recipe, step, library versions and the files' SHA-256."""
    versions = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"recipe": dict(recipe), "step": step, "versions": versions, "files": manifest(folder)}


def _flush(path: Path) -> None:
    """Forces a file's content to disk, so that a power cut after the rename cannot leave it empty."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
