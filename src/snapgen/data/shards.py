"""Captioned pictures in tar files, as webdataset reads and img2dataset writes them.

Members of one sample share their name up to the first dot: `000001.jpg` is a picture, `000001.txt` its caption, or
`000001.json` holds the caption under a key; a list of strings there means several captions. The tars are scanned once
to find where their members start. This index is kept in files, so that any picture is then a single read.
"""

from __future__ import annotations

import json
import logging
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import torch
from torch import Tensor

from snapgen.config import RecipeError
from snapgen.data.captions import decode_caption, json_captions
from snapgen.data.files import PICTURES, FileSettings, FileSource
from snapgen.data.finding import HIDDEN, Skipped, find_files, is_hidden
from snapgen.data.folder import FolderSource
from snapgen.data.rows import Rows
from snapgen.files import UNREADABLE_TAR, TarHeader, atomic_folder, parse_json, short_fingerprint
from snapgen.messages import Progress, one_line, silent
from snapgen.pictures import picture_size
from snapgen.weights import load_file, save_file_atomic

SCANNERS = 16  # threads; a scan is mostly waiting
INDEX = ".snapgen-index"  # folder beside the tars
JSON_CAPTION = "caption"  # the key that img2dataset writes
RULES = 2  # raised whenever `scan` starts to choose other samples, so that tars are scanned again

# Columns of an index, one row per sample: offset and bytes of picture and caption, kind of caption, width, height.
PICTURE, CAPTION, IS_JSON, SIZE = slice(0, 2), slice(2, 4), 4, slice(5, 7)

logger = logging.getLogger(__name__)


class ShardSettings(FileSettings):
    """The `data:` section of a recipe that reads pictures from tars; `path` is their folder or a file pattern.

    Patterns may use `*` and `?`, and ranges as in `/data/{00000..00127}.tar`.
    """

    source: Literal["shards"]
    caption_key: str | None = None  # the caption's key in a sample's .json; null: its .txt, else "caption" in its .json
    index: Path | None = None  # folder for the index; null: `.snapgen-index` beside the tars

    def open(self, progress: Progress = silent) -> ShardSource:
        """The source; `progress` shows slow work."""
        return ShardSource(self, progress)


class ShardSource(FileSource):
    """The source "shards": all samples with a picture and a caption, in the order of tars and members."""

    settings: ShardSettings

    def __init__(self, settings: ShardSettings, progress: Progress = silent) -> None:
        """`progress` is shown while tars are scanned."""
        super().__init__(settings)
        self.tars = find_tars(settings.path)
        with ThreadPoolExecutor(SCANNERS) as pool:
            indices = progress(pool.map(self._index, self.tars), "indexing shards", len(self.tars))
            self._rows = Rows(list(indices))
        if not len(self._rows):
            wanted = "a .txt or .json" if settings.caption_key is None else f'"{settings.caption_key}" in a .json'
            raise RecipeError(f"data.path: the tars in {settings.path} hold no pictures with a caption ({wanted})")
        self._kept = settings.kept(len(self._rows))

    def _index(self, tar: Path) -> Tensor:
        """The index of one tar, read from its file if the tar was scanned before."""
        state = tar.stat()
        key = short_fingerprint([RULES, tar.name, state.st_size, state.st_mtime_ns, self.settings.caption_key])
        path = (self.settings.index or tar.parent / INDEX) / f"{tar.stem}-{key}.safetensors"
        if not path.exists():
            samples = scan(tar, self.settings.caption_key)
            try:
                save_file_atomic({"samples": samples}, path)
            except OSError as error:
                raise RecipeError(f"the index {path} cannot be written ({error.strerror}); set data.index") from None
        index = load_file(path).get("samples")
        if index is None or not is_index(index, state.st_size):
            raise RecipeError(f"the index {path} is damaged: remove it, and it is made again")
        return index

    def __len__(self) -> int:
        return len(self._kept)

    def signature(self) -> Any:
        """The settings that decide shapes and choice of samples, and every tar's name, size and modification time."""
        tars = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in self.tars]
        choice = {"caption_key": self.settings.caption_key, "first": self._kept.start, "count": len(self)}
        return self.shape_signature() | choice | {"tars": tars}

    def name(self, index: int) -> str:
        """The tar and the member that hold picture `index`."""
        number, place = self._rows.locate(self._kept[index])
        offset = int(self._rows.parts[number][place, PICTURE][0])
        header = _read(self.tars[number], offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        try:
            return f"{self.tars[number]}: {tarfile.TarInfo.frombuf(header, 'utf-8', 'replace').name}"
        except tarfile.HeaderError:
            return f"{self.tars[number]}: picture at byte {offset}"

    def open(self, index: int) -> BinaryIO:
        """The bytes of picture `index`."""
        number, place = self._rows.locate(self._kept[index])
        return BytesIO(_read(self.tars[number], *self._rows.parts[number][place, PICTURE].tolist()))

    def sizes(self) -> np.ndarray:
        """Widths and heights of all pictures in px (N 2), from the index."""
        sizes = torch.cat([part[:, SIZE] for part in self._rows.parts])
        return sizes[self._kept.start : self._kept.stop].numpy()

    def caption(self, index: int, variant: int) -> str:
        """Caption `variant` of picture `index`, modulo the number of its captions."""
        number, place = self._rows.locate(self._kept[index])
        row = self._rows.parts[number][place]
        content = _read(self.tars[number], *row[CAPTION].tolist())
        texts = _captions(content, bool(row[IS_JSON]), self.settings.caption_key)
        if not texts:
            raise ValueError(f"{self.tars[number]} holds no caption where its index says: remove the index")
        return texts[variant % len(texts)]


def is_index(samples: Tensor, size: int) -> bool:
    """Whether `samples` can be the index of a tar of `size` bytes: seven columns, all places inside the tar."""
    if samples.dtype != torch.int64 or samples.ndim != 2 or samples.shape[1] != 7:
        return False
    starts, lengths = samples[:, [0, 2]], samples[:, [1, 3]]
    inside = (starts >= tarfile.BLOCKSIZE) & (lengths >= 0) & (lengths <= size) & (starts <= size - lengths)
    return bool(inside.all() and (samples >= 0).all() and (samples[:, SIZE] < 2**31).all())


def find_tars(path: Path) -> list[Path]:
    """The tars below the folder `path`, or those that match the pattern `path`. RecipeError if there are none."""
    if path.is_dir():
        skipped = Skipped()
        tars = find_files(path, {".tar"}, skipped)
        skipped.report(path)
        if not tars:
            raise RecipeError(f"data.path: folder {path} holds no .tar files")
        return tars
    tars = []
    for pattern in _ranges(str(path)):
        found = sorted(tar for name in glob(pattern, recursive=True) if (tar := Path(name)).is_file())
        if not found:
            raise RecipeError(f"data.path: no file is named {pattern}")
        tars += found
    return tars


def _ranges(pattern: str) -> Iterator[str]:
    """`pattern` with every range of numbers `{first..last}` expanded, as a shell does."""
    match = re.search(r"{(\d+)\.\.(\d+)}", pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _ranges(f"{pattern[: match.start()]}{number:0{len(first)}d}{pattern[match.end() :]}")


def scan(tar: Path, caption_key: str | None) -> Tensor:
    """The index of `tar`, int64, one row per sample; a damaged tar is read up to the damage."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    rows, skipped, size = [], Skipped(), tar.stat().st_size
    try:
        with tarfile.open(tar, "r:", tarinfo=TarHeader) as file:
            try:
                for member in file:
                    if member.size < 0:
                        raise tarfile.ReadError("a header has a negative size")  # tarfile would step back for ever
                    path = PurePosixPath(member.name)
                    key, _, kind = path.name.partition(".")
                    if cause := _cause_to_skip(member, path):
                        skipped.add(cause, member.name)
                    elif member.isreg() and not member.issparse() and kind and member.offset_data + member.size <= size:
                        samples.setdefault(f"{path.parent}/{key}", {})[kind.lower()] = member
                if _read(tar, file.offset, tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError("a header cannot be read")  # tarfile takes it for the end
            except UNREADABLE_TAR as error:
                reason = one_line(error, 200) or type(error).__name__
                logger.warning(f"{tar} is damaged: {reason}; the {len(samples)} samples before that are kept")
            for sample in samples.values():
                # A failed download leaves a caption without a picture: that is no sample.
                picture = next((member for kind, member in sample.items() if f".{kind}" in PICTURES), None)
                if picture is None:
                    continue
                try:
                    caption = _caption_place(file, sample, caption_key)
                except ValueError:
                    skipped.add("captions that are not UTF-8", picture.name)
                    continue
                if caption is None:
                    skipped.add("pictures without a caption", picture.name)
                else:
                    place = [picture.offset_data, picture.size]
                    rows.append([*place, *caption, *picture_size(_content(file, picture))])
    except UNREADABLE_TAR as error:
        reason = one_line(error, 200) or type(error).__name__
        logger.warning(f"{tar} is skipped, it is damaged or no uncompressed tar: {reason}")
    skipped.report(tar)
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 7)


def _cause_to_skip(member: tarfile.TarInfo, path: PurePosixPath) -> str | None:
    """Why a picture in a tar is skipped whatever its sample holds; None for other members."""
    if path.suffix.lower() not in PICTURES:
        return None
    if any(map(is_hidden, path.parts)):
        return HIDDEN
    if not member.isreg():
        return "members that are no files"
    # The key of a sample ends at the first dot: what follows is no suffix of a picture.
    return "pictures with a dot in their name" if "." in path.stem else None


def _caption_place(
    file: tarfile.TarFile, sample: dict[str, tarfile.TarInfo], caption_key: str | None
) -> tuple[int, int, int] | None:
    """Offset, length in bytes and kind (1 for JSON) of a sample's caption; None if there is none.

    ValueError for text that is not UTF-8.
    """
    is_json = caption_key is not None or "txt" not in sample
    member = sample.get("json" if is_json else "txt")
    if member is None or not _captions(_content(file, member).read(), is_json, caption_key):
        return None
    return member.offset_data, member.size, int(is_json)


def _content(file: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    return cast(BinaryIO, file.extractfile(member))


def _captions(content: bytes, is_json: bool, key: str | None) -> list[str]:
    """The captions in the content of a .txt or .json member. ValueError for text that is not UTF-8."""
    if not is_json:
        return [decode_caption(content)]
    try:
        return json_captions(parse_json(content)[key or JSON_CAPTION])
    except (ValueError, KeyError, TypeError):
        return []


def _read(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def write_shards(source: FolderSource, out: Path, samples: int, progress: Progress = silent) -> list[Path]:
    """Packs the unchanged files of `source` and their captions into the new folder `out`, `samples` per tar.

    The folder appears only when it is complete. Returns its tars. ValueError if `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: name a new folder")
    starts = range(0, len(source), samples)
    with atomic_folder(out) as folder:
        for shard, start in enumerate(progress(starts, "packing shards", len(starts))):
            with tarfile.open(folder / f"{shard:05d}.tar", "w") as file:
                for index in range(start, min(start + samples, len(source))):
                    path = source.files[index]
                    _add(file, f"{index:09d}{path.suffix.lower()}", path.read_bytes())
                    captions = source.captions(index)
                    if len(captions) == 1:
                        _add(file, f"{index:09d}.txt", captions[0].encode())
                    else:
                        _add(file, f"{index:09d}.json", json.dumps({JSON_CAPTION: captions}).encode())
    return sorted(out.glob("*.tar"))


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, BytesIO(content))
