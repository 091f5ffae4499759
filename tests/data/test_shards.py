"""Tars of captioned pictures: packed from folders, written by others, damaged, indexed once."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from snapgen.cli.data import app
from snapgen.config import RecipeError
from snapgen.data.buckets import BucketSettings
from snapgen.data.folder import FolderSettings
from snapgen.data.shards import INDEX, ShardSettings, ShardSource, find_tars, write_shards
from snapgen.data.source import BadSampleError
from snapgen.weights import load_file, save_file_atomic


def encoded(color: str = "red", size: tuple[int, int] = (48, 32), kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, kind)
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def open_shards(path: Path, **settings: Any) -> ShardSource:
    source = ShardSettings(source="shards", path=path, resolution=32, **settings).open()
    assert isinstance(source, ShardSource)
    return source


def captions(source: ShardSource) -> list[str]:
    return [source.caption(index, 0) for index in range(len(source))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures of noise in several shapes and formats, with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, kind in enumerate(["png", "jpg", "webp", "JPG", "bmp", "png", "jpeg"]):
        pixels = random.integers(0, 256, (40 + 20 * (number % 3), 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{kind}")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


@pytest.mark.parametrize("buckets", [None, BucketSettings(step=32)])
def test_packed_pictures_are_those_of_the_folder(folder: Path, tmp_path: Path, buckets: BucketSettings | None) -> None:
    result = CliRunner().invoke(app, ["pack", str(folder), str(tmp_path / "tars"), "--per-shard", "3"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in sorted((tmp_path / "tars").iterdir())] == ["00000.tar", "00001.tar", "00002.tar"]
    options: dict[str, Any] = {"resolution": 64, "buckets": buckets, "held_out": 2}
    plain = FolderSettings(source="folder", path=folder, **options)
    packed = ShardSettings(source="shards", path=tmp_path / "tars", **options)
    for one, other in ((plain, packed), (plain.validation(1), packed.validation(1))):
        here, there = one.open(), other.open()
        assert len(here) == len(there)
        assert [group.tolist() for group in here.groups()] == [group.tolist() for group in there.groups()]
        for index in range(len(here)):
            assert np.array_equal(here.image(index), there.image(index))
            assert here.caption(index, 0) == there.caption(index, 5)


def test_packing_needs_a_new_folder(folder: Path, tmp_path: Path) -> None:
    source = FolderSettings(source="folder", path=folder, resolution=32).open()
    with pytest.raises(ValueError, match="pictures exists already"):
        write_shards(source, folder, 3)  # type: ignore[arg-type]
    (folder / "5.png").unlink()
    with pytest.raises(FileNotFoundError):
        write_shards(source, tmp_path / "tars", 3)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_samples_as_img2dataset_writes_them(tmp_path: Path) -> None:
    """Text and JSON beside each picture; of failed downloads the picture is missing."""
    members: dict[str, bytes | str] = {}
    for number in range(3):
        members[f"{number:09d}.json"] = json.dumps(
            {"caption": f"json {number}", "recaption": [f"a {number}", "b", "c"]}
        )
        if number != 1:
            members[f"{number:09d}.jpg"] = encoded()
        members[f"{number:09d}.txt"] = f"text {number}\n"
    tar = write_tar(tmp_path / "00000.tar", members)
    assert captions(open_shards(tmp_path)) == ["text 0", "text 2"]
    assert captions(open_shards(tar, caption_key="caption")) == ["json 0", "json 2"]
    several = open_shards(tar, caption_key="recaption")
    assert [several.caption(1, variant) for variant in range(4)] == ["a 2", "b", "c", "a 2"]
    with pytest.raises(RecipeError, match=r'no pictures with a caption \("other" in a .json\)'):
        open_shards(tar, caption_key="other")


def test_json_is_read_where_there_is_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples: list[tuple[str, Any]] = [("a", {"caption": "one"}), ("b", {"url": "two"}), ("c", {"caption": None})]
    members: dict[str, bytes | str] = {}
    for name, content in samples:
        members |= {f"x/{name}.png": encoded(kind="PNG"), f"x/{name}.json": json.dumps(content)}
    assert captions(open_shards(write_tar(tmp_path / "0.tar", members))) == ["one"]
    assert "0.tar: skipped pictures without a caption (2, first x/b.png)" in caplog.text


def test_members_that_are_skipped_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members: dict[str, bytes | str] = {
        "a.jpg": encoded(),
        "a.txt": "\ufeffcats",
        "a.mask.png": encoded(kind="PNG"),
        "photo.v2.jpg": encoded(),
        "photo.v2.txt": "lost",
        "b.jpg": encoded(),
        "b.txt": "un café".encode("latin-1"),
        "._a.jpg": b"resource fork",
        "__MACOSX/x/c.jpg": b"resource fork",
        "__MACOSX/x/c.txt": "resource fork",
        "x.y/d.jpg": encoded(),
        "x.y/d.json": json.dumps({"caption": "in a folder\u2028with a dot"}),
    }
    tar = write_tar(tmp_path / "0.tar", members)
    with tarfile.open(tar, "a") as file:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        file.addfile(link)
    assert captions(open_shards(tmp_path)) == ["cats", "in a folder\u2028with a dot"]
    assert caplog.messages == [
        f"{tar}: skipped pictures with a dot in their name (2, first a.mask.png), "
        "hidden files and macOS's companions (2, first ._a.jpg), members that are no files (1, first link.jpg), "
        "captions that are not UTF-8 (1, first b.jpg)"
    ]


def test_hidden_tars_and_pipes_are_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    write_tar(tmp_path / "0.tar", {"a.jpg": encoded(), "a.txt": "a"})
    (folder / "linked").symlink_to(tmp_path)
    (folder / "._0.tar").write_bytes(b"resource fork")
    os.mkfifo(folder / "pipe.tar")
    assert [tar.relative_to(folder).as_posix() for tar in find_tars(folder)] == ["linked/0.tar"]
    with pytest.raises(RecipeError, match="no file is named"):
        find_tars(folder / "pipe*.tar")


def test_several_captions_are_packed(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encoded())
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "text": ["one", "two"]}))
    source = FolderSettings(source="folder", path=folder, resolution=32).open()
    write_shards(source, tmp_path / "tars", 3)  # type: ignore[arg-type]
    packed = open_shards(tmp_path / "tars")
    assert [packed.caption(0, variant) for variant in range(3)] == ["one", "two", "one"]


def test_tars_are_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_tar(tmp_path / "0.tar", {"a.jpg": encoded(), "a.txt": "a"})
    write_tar(tmp_path / "1.tar", {"b.jpg": encoded(), "b.txt": "b"})
    assert captions(open_shards(tmp_path)) == ["a", "b"]
    scanned: list[str] = []
    from snapgen.data.shards import scan

    def counted(tar: Path, key: str | None) -> Any:
        scanned.append(tar.name)
        return scan(tar, key)

    monkeypatch.setattr("snapgen.data.shards.scan", counted)
    assert captions(open_shards(tmp_path)) == ["a", "b"]
    assert scanned == []
    write_tar(first, {"a.jpg": encoded("blue", (64, 64)), "a.txt": "other"})
    assert captions(open_shards(tmp_path)) == ["other", "b"]
    assert scanned == ["0.tar"]
    assert {path.suffix for path in (tmp_path / INDEX).iterdir()} == {".safetensors"}
    assert captions(open_shards(tmp_path, index=tmp_path / "elsewhere")) == ["other", "b"]
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"the index .*file/0-.* cannot be written \(.*\); set data.index"):
        open_shards(tmp_path, index=tmp_path / "file")


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    whole = encoded(size=(64, 64), kind="PNG")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    members: dict[str, bytes | str] = {"a.png": whole, "a.txt": "a", "b.png": content.getvalue()[:3000], "b.txt": "b"}
    members |= {"c.jpg": b"no picture", "c.txt": "c"}
    source = open_shards(write_tar(tmp_path / "0.tar", members), buckets=BucketSettings(step=32))
    assert source.image(0).shape == (32, 32, 3)
    for index, name in ((1, "b.png"), (2, "c.jpg")):
        with pytest.raises(BadSampleError, match=rf"0\.tar: {name} cannot be read: \S"):
            source.image(index)


def test_of_a_damaged_tar_the_beginning_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members: dict[str, bytes | str] = {}
    for name in "abc":
        members |= {f"{name}.jpg": encoded(), f"{name}.txt": name}
    whole = write_tar(tmp_path / "whole.tar", members)
    with tarfile.open(whole) as file:
        places = {member.name: member for member in file}
    content = whole.read_bytes()
    assert captions(open_shards(whole)) == ["a", "b", "c"]

    cut = tmp_path / "cut.tar"  # in the middle of the last picture
    cut.write_bytes(content[: places["c.jpg"].offset_data + 10])
    assert captions(open_shards(cut)) == ["a", "b"]
    assert "cut.tar is damaged" in caplog.text
    header = bytearray(content)
    header[places["c.jpg"].offset : places["c.jpg"].offset + 300] = b"x" * 300
    (tmp_path / "header.tar").write_bytes(header)
    assert captions(open_shards(tmp_path / "header.tar")) == ["a", "b"]
    assert "header.tar is damaged" in caplog.text
    (tmp_path / "none.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(RecipeError, match="hold no pictures with a caption"):
        open_shards(tmp_path / "none.tar")
    assert "none.tar is skipped" in caplog.text
    assert "whole.tar" not in caplog.text


def test_tars_are_named_by_folders_patterns_and_ranges(tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / f"part{number % 2}"
        folder.mkdir(exist_ok=True)
        write_tar(folder / f"{number:03d}.tar", {"a.jpg": encoded(), "a.txt": str(number)})
    everything = [*map(str, range(0, 12, 2)), *map(str, range(1, 12, 2))]
    assert captions(open_shards(tmp_path)) == everything
    assert captions(open_shards(tmp_path / "part{0..1}" / "*.tar")) == everything
    assert captions(open_shards(tmp_path / "*" / "01?.tar")) == ["10", "11"]
    with pytest.raises(RecipeError, match=r"data.path: no file is named .*part0/009.tar"):
        open_shards(tmp_path / "part0" / "{008..010}.tar")
    with pytest.raises(RecipeError, match=r"data.path: no file is named .*nowhere"):
        open_shards(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"data.path: folder .*empty holds no .tar files"):
        open_shards(tmp_path / "empty")
    with pytest.raises(RecipeError, match="held_out 12 leaves none of 12 pictures"):
        open_shards(tmp_path, held_out=12)


def test_the_signature_changes_with_the_tars_and_the_choice(tmp_path: Path) -> None:
    first: dict[str, bytes | str] = {"a.jpg": encoded(), "a.json": '{"caption": "a"}'}
    tar = write_tar(tmp_path / "0.tar", first | {"b.jpg": encoded(), "b.txt": "b"})
    choices: list[dict[str, Any]] = [{}, {"caption_key": "caption"}, {"held_out": 1}]
    signatures = [open_shards(tmp_path, **choice).signature() for choice in choices]
    write_tar(tar, {"a.jpg": encoded("blue"), "a.txt": "a"})
    signatures.append(open_shards(tmp_path).signature())
    assert len({json.dumps(signature) for signature in signatures}) == 4
    assert json.dumps(open_shards(tmp_path).signature()) == json.dumps(signatures[-1])


def with_header(content: bytes, place: int, change: Callable[[bytearray], None]) -> bytes:
    """A tar's content with the header at byte `place` changed and its checksum right."""
    header = bytearray(content[place : place + 512])
    change(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:place] + bytes(header) + content[place + 512 :]


def sized(size: int) -> Callable[[bytearray], None]:
    """Sets the size in a header, in tar's binary form."""

    def change(header: bytearray) -> None:
        header[124:136] = (size % 2**96 | (0 if size < 0 else 2**95)).to_bytes(12, "big")

    return change


def typed(kind: bytes, size: int) -> Callable[[bytearray], None]:
    """Sets the type and the size in a header."""

    def change(header: bytearray) -> None:
        sized(size)(header)
        header[156:157] = kind

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(sized(size) for size in (2**33, 2**60, 2**63, 2**88, -512, -1, -(2**60))),
        *(typed(kind, size) for kind in (b"x", b"g", b"L", b"K", b"S") for size in (2**33, 2**60, 2**88, -512)),
    ],
)
def test_a_header_that_lies_ends_its_tar_and_not_the_run(
    change: Callable[[bytearray], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members: dict[str, bytes | str] = {}
    for name in "abc":
        members |= {f"{name}.jpg": encoded(), f"{name}.txt": name}
    path = write_tar(tmp_path / "0.tar", members)
    with tarfile.open(path) as file:
        place = next(member.offset for member in file if member.name == "b.jpg")
    path.write_bytes(with_header(path.read_bytes(), place, change))
    write_tar(tmp_path / "1.tar", {"d.jpg": encoded(), "d.txt": "d"})
    tracemalloc.start()
    started = time.monotonic()
    assert captions(open_shards(tmp_path)) == ["a", "d"]
    assert time.monotonic() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
    assert "0.tar is damaged" in caplog.text and "\n" not in caplog.messages[0]


def test_headers_without_end_end_their_tar(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    (tmp_path / "0.tar").write_bytes(header.tobuf() * 5000)  # each describes the next
    write_tar(tmp_path / "1.tar", {"d.jpg": encoded(), "d.txt": "d"})
    assert captions(open_shards(tmp_path)) == ["d"]


def test_captions_nested_without_end_are_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": encoded(), "a.json": "[" * 100_000, "b.jpg": encoded(), "b.txt": "b"})
    assert captions(open_shards(tmp_path)) == ["b"]


@pytest.mark.parametrize(("column", "value"), [(0, -1), (0, 100), (0, 10**9), (1, 2**62), (2, 2**62), (3, -1), (5, -1)])
def test_an_index_that_lies_is_refused(column: int, value: int, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": encoded(), "a.txt": "a"})
    open_shards(tmp_path)
    (file,) = (tmp_path / INDEX).iterdir()
    samples = load_file(file)["samples"].clone()
    samples[0, column] = value
    save_file_atomic({"samples": samples}, file)
    with pytest.raises(RecipeError, match=r"the index .*safetensors is damaged: remove it, and it is made again"):
        open_shards(tmp_path)
    for other in ({"samples": samples[:, :6]}, {"samples": samples.float()}, {"rows": samples}):
        save_file_atomic(other, file)
        with pytest.raises(RecipeError, match="is damaged: remove it"):
            open_shards(tmp_path)


def test_a_caption_that_is_not_where_the_index_says(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": encoded(), "a.json": '{"caption": "a"}'})
    open_shards(tmp_path)
    (file,) = (tmp_path / INDEX).iterdir()
    samples = load_file(file)["samples"].clone()
    samples[0, 2] += 1
    save_file_atomic({"samples": samples}, file)
    with pytest.raises(ValueError, match=r"0\.tar holds no caption where its index says: remove the index"):
        captions(open_shards(tmp_path))
