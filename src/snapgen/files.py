"""Writes files and folders whole or not at all, and identifies them by hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JSON_LIMIT = 128 * 2**20  # bytes; the tokenizer of a large language model has 35 million
TEXT_LIMIT = 64 * 2**20  # bytes, of a list of prompts


# What tarfile raises on damaged tars: it lets through what it meets when a header claims absurd numbers.
UNREADABLE_TAR = (tarfile.TarError, OSError, OverflowError, MemoryError, RecursionError, ValueError)
LONG_NAME = 2**20  # bytes, the most that is read of a header's extension


class TarHeader(tarfile.TarInfo):
    """A header whose size can be true: for a negative one tarfile steps back for ever, an extension fills memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> TarHeader:
        """The header in the block `buf`; ReadError if its size cannot be true."""
        header = super().frombuf(buf, encoding, errors)
        data = header.type in (*tarfile.REGULAR_TYPES, tarfile.LNKTYPE, tarfile.SYMTYPE)
        if not 0 <= header.size <= (2**62 if data else LONG_NAME):
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Lets an OSError name `path` if it names no file (as "no space left on device" does) or one below `temporary`."""
    try:
        yield
    except OSError as error:
        named, name = error.filename, str(error.filename or path)
        if temporary is not None and name.startswith(str(temporary)):
            name = str(path) + name.removeprefix(str(temporary))
        if error.errno is None or named == name:
            raise
        raise OSError(error.errno, error.strerror, name) from error  # of the same class: that follows the number


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling of `path` (same suffix) to write to; renamed on success, removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with naming(path, temporary):
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary sibling folder of `path` to fill; it replaces `path` only on success.

    A link is followed, and the folder that it leads to is replaced.
    """
    if path.is_symlink() or path.name in ("", ".."):  # no folder can be renamed to these
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    replaced = path.with_name(f".tmp-{os.getpid()}-replaced-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming(path, temporary):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            if path.exists():  # a folder cannot be renamed onto one that holds files
                os.replace(path, replaced)
            os.replace(temporary, path)
    finally:
        if replaced.exists() and not path.exists():  # it stopped between the two renames
            os.replace(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_text(text: str, path: Path) -> None:
    """Writes `text` and a final newline to `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_whole(path: Path, limit: int) -> bytes:
    """The content of the file `path`; ValueError if it is longer than `limit` bytes, as endless devices are.

    A pipe is read while something writes to it, and is empty otherwise: nothing waits for a writer.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        os.set_blocking(file.fileno(), True)
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} is longer than {limit / 2**20:g} MiB, the most that is read of such a file")
    return content


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The object in the JSON file `path`; ValueError naming the file if it is damaged, too long or nested too deep.

    limit: bytes.
    """
    try:
        value = parse_json(read_whole(path, limit))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds {type(value).__name__}, a JSON object is expected")
    return value


def parse_json(content: str | bytes) -> Any:
    """The value in JSON `content`; one-line ValueError if it is damaged or nested too deep."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def decode_text(content: bytes) -> str:
    """`content` as text: UTF-8, with or without a byte-order mark. ValueError for other encodings."""
    text = content.decode("utf-8-sig")
    if "\0" in text:  # UTF-16 without a mark often decodes, but to this
        raise ValueError("it contains zeros, as UTF-16 does, but not UTF-8")
    return text


def read_lines(path: Path, limit: int = TEXT_LIMIT) -> list[str]:
    """The lines of a UTF-8 text file of at most `limit` bytes, as `split_lines` gives them."""
    return split_lines(read_whole(path, limit))


def split_lines(content: bytes) -> list[str]:
    """The lines of UTF-8 text, without space around them and without blank ones.

    Only a line break ends a line: JSON and prompts may contain Unicode's separators, at which `splitlines` splits too.
    ValueError if it is not UTF-8.
    """
    lines = re.split(r"\r\n?|\n", decode_text(content))
    return [line.strip() for line in lines if line.strip()]


def read_prompts(path: Path) -> list[str]:
    """The prompts in the UTF-8 text file `path`, one per line; blank lines are skipped, `""` is the empty prompt."""
    content = read_whole(path, TEXT_LIMIT)
    try:
        return ["" if line == '""' else line for line in split_lines(content)]
    except ValueError:
        raise ValueError(f"{path} is not a UTF-8 text file: one prompt per line is expected") from None


def remove_leftovers(folder: Path, age: float = 0.0) -> None:
    """Removes what killed writers left in `folder`, if it was not touched for `age` seconds."""
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


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder`, by relative path, sorted."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def fingerprint(*parts: Any) -> str:
    """Hexadecimal SHA-256 that changes with any of `parts`, each a JSON value or bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def short_fingerprint(*parts: Any) -> str:
    """The first twelve digits of `fingerprint`, used to name caches."""
    return fingerprint(*parts)[:12]


def _flush(path: Path) -> None:
    """Forces a file's content to disk, so that a power cut after the rename cannot leave it empty."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
