"""Moves a reproduction to another machine: packs what it needs to continue into small files, and unpacks them there."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import IO, Annotated

from pydantic import Field, ValidationError

from snapgen.config import Settings
from snapgen.files import JSON_LIMIT, UNREADABLE_TAR, TarHeader, atomic_folder, manifest, read_whole, sha256, write_text
from snapgen.messages import Notify, first_mistake, one_line
from snapgen.reproduce.plan import Plan, alone, read_plan
from snapgen.train.state import newest_checkpoint

MOST_COPIES = 32  # unpacked over packed size: equal files are stored once
PART = 16 * 2**20  # bytes, maximum size of an exported file


class Manifest(Settings):
    """The content of manifest.json: the parts of the tar and their SHA-256."""

    files: dict[
        Annotated[str, Field(pattern=r"^state\.tar\.\d{4,}$")], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    ] = Field(min_length=1)


class ArchiveError(ValueError):
    """A tar that holds what no export writes."""


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
        expected = Manifest.model_validate_json(read_whole(source / "manifest.json", JSON_LIMIT)).files
    except (OSError, ValueError) as error:
        reason = first_mistake(error) if isinstance(error, ValidationError) else one_line(error)
        raise ValueError(f"--import {source}: manifest.json is missing or damaged: {reason}") from None
    found = {name: sha256(source / name) for name in expected if (source / name).is_file()}
    for name, digest in sorted(expected.items()):
        if found.get(name) != digest:
            raise ValueError(f"--import {source}: {name} is {'damaged' if name in found else 'missing'}; copy it again")
    with atomic_folder(folder) as temporary, tempfile.TemporaryFile(dir=folder.parent) as whole:
        for name in sorted(expected):
            with (source / name).open("rb") as part:
                shutil.copyfileobj(part, whole)
        size = whole.tell()
        whole.seek(0)
        try:
            with tarfile.open(fileobj=whole, mode="r:", tarinfo=TarHeader) as tar:
                extract(tar, temporary, MOST_COPIES * size)
        except ArchiveError:
            raise
        except UNREADABLE_TAR as error:
            reason = one_line(error, 200) or type(error).__name__
            raise ValueError(f"--import {source}: its tar cannot be unpacked: {reason}") from None


def extract(tar: tarfile.TarFile, folder: Path, most: int) -> None:
    """Extracts files of at most `most` bytes into `folder` and nowhere else; ArchiveError for anything else.

    `extractall` has such a filter only since Python 3.11.4.
    """
    names: set[Path] = set()
    for member in tar:
        path = Path(member.name)
        whole = member.isreg() and not member.issparse() and member.size >= 0  # a sparse one fills the disk with zeros
        same = member.islnk() and Path(member.linkname) in names
        if not (whole or same) or path in names or not is_plain(member.name):
            raise ArchiveError(f"--import: {one_line(member.name, 100)} is not a file inside the exported folder")
        names.add(path)
        content = tar.extractfile(member)
        assert content is not None
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
            most -= file.tell()
        if most < 0:
            raise ArchiveError(f"--import: the copies in the tar are more than {MOST_COPIES} times its size")
        os.utime(target, (member.mtime, member.mtime))


def is_plain(name: str) -> bool:
    """Whether `name` is a relative path downwards, as `pack` writes it."""
    path = PurePosixPath(name)
    return name == path.as_posix() and name != "." and not path.is_absolute() and ".." not in path.parts
