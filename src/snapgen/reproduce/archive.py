"""Moves a reproduction to another machine: packs what it needs to continue into small files, and unpacks them there."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from snapgen.files import atomic_folder, manifest, sha256, write_text
from snapgen.messages import Notify
from snapgen.reproduce.plan import Plan, alone, read_plan
from snapgen.train.state import newest_checkpoint

PART = 16 * 2**20  # bytes, maximum size of an exported file


def export(folder: Path, target: Path, warn: Notify) -> list[Path]:
    """Packs what `folder` needs into `target`: a tar in parts of at most `PART` bytes, and their SHA-256.

    Returns the files. ValueError if `target` exists already; damaged checkpoints are reported to `warn`.
    """
    if target.exists():
        raise ValueError(f"--export {target} is there already: name a new folder")
    with (
        alone(folder),
        atomic_folder(target) as temporary,
        tempfile.TemporaryFile(dir=target.parent) as whole,  # the default temporary folder may be small
    ):
        pack(folder, needed(folder, read_plan(folder), warn), whole)
        whole.seek(0)
        for number, part in enumerate(iter(lambda: whole.read(PART), b"")):
            (temporary / f"state.tar.{number:04}").write_bytes(part)
        write_text(json.dumps({"files": manifest(temporary)}, indent=1), temporary / "manifest.json")
    return sorted(target.iterdir())


def needed(folder: Path, plan: Plan, warn: Notify) -> list[Path]:
    """The files that `folder` needs to continue elsewhere, relative to it, sorted."""
    patterns = ["plan.json", "report.*", "recipes/*", "evaluation/*/*/report.*", "evaluation/*/*/*.png"]
    for stage in plan.stages:
        patterns += [f"{stage}/{name}" for name in ("*.yaml", "*.jsonl", "plots/*", "samples/*")]
        if stage not in plan.finished:
            checkpoint = newest_checkpoint(folder / stage, warn)
            patterns += [] if checkpoint is None else [f"{stage}/checkpoints/{checkpoint.folder.name}/*"]
        elif stage != "teacher" or "distill" not in plan.finished:  # only distill reads the teacher
            patterns.append(f"{stage}/model/**/*")
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder) for path in found)


def pack(folder: Path, paths: list[Path], whole: IO[bytes]) -> None:
    """Writes the files at `paths`, relative to `folder`, as a tar that stores equal content only once."""
    first: dict[str, Path] = {}  # by SHA-256: every model holds a copy of the autoencoder
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for path in paths:
            entry = tar.gettarinfo(folder / path, path.as_posix())
            same = first.setdefault(sha256(folder / path), path)
            if same != path:
                entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, same.as_posix(), 0
            with (folder / path).open("rb") as file:
                tar.addfile(entry, file if same == path else None)


def unpack(source: Path, folder: Path) -> None:
    """Restores `folder` from what `export` wrote to `source`; ValueError if a part is missing or damaged."""
    if folder.exists():
        raise ValueError(f"{folder} is there already: give another --out")
    try:
        expected: dict[str, str] = json.loads((source / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--import {source}: manifest.json is missing or damaged: {error!r}") from None
    found = manifest(source)
    for name, digest in sorted(expected.items()):
        if found.get(name) != digest:
            raise ValueError(f"--import {source}: {name} is {'damaged' if name in found else 'missing'}; copy it again")
    with atomic_folder(folder) as temporary, tempfile.TemporaryFile(dir=folder.parent) as whole:
        for name in sorted(expected):
            with (source / name).open("rb") as part:
                shutil.copyfileobj(part, whole)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as tar:
            extract(tar, temporary)


def extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Extracts files into `folder` and nowhere else, which `extractall` can do only since Python 3.11.4."""
    for member in tar:
        path = Path(member.name)
        content = tar.extractfile(member) if member.isreg() or member.islnk() else None
        if content is None or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"--import: {member.name} is not a file inside the exported folder")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
        os.utime(target, (member.mtime, member.mtime))
