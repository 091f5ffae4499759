"""Reproductions packed for another machine: in parts, damaged, and hostile."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from support.recipes import RECIPES

from snapgen.files import manifest
from snapgen.reproduce.archive import PART, export, needed, unpack
from snapgen.reproduce.plan import Plan, alone, choose_stages, read_plan, start

DEBUG = RECIPES / "debug"


def test_export_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder, state = tmp_path / "run", tmp_path / "state"
    finished = ("autoencoder", "text", "teacher")
    start(run_folder, DEBUG, Plan(name="debug", minutes=1.0, stages=choose_stages(()), finished=finished))
    for stage in ("autoencoder", "text", "flow", "teacher"):
        (run_folder / stage / "model" / "part").mkdir(parents=True)
        (run_folder / stage / "model" / "part" / "weights").write_bytes(b"same in all" * 9000)
    monkeypatch.setattr("snapgen.reproduce.archive.PART", 50_000)
    files = export(run_folder, state, print)
    assert PART == 16 * 2**20
    assert len(files) > 3 and all(file.stat().st_size <= 50_000 for file in files)
    assert sum(file.stat().st_size for file in files) < 2 * 99_000  # the same content once
    unpack(state, run_folder / ".." / "back")
    expected = {name: digest for name, digest in manifest(run_folder).items() if not name.startswith(("flow", ".lock"))}
    assert manifest(tmp_path / "back") == expected  # flow is not finished, and has no checkpoint yet
    teacher, plan = Path("teacher/model/part/weights"), read_plan(run_folder)
    assert teacher in needed(run_folder, plan, print)
    plan = plan.model_copy(update={"finished": (*finished, "distill")})
    assert teacher not in needed(run_folder, plan, print)  # nothing reads it any more

    part = files[-1]
    assert part.name == f"state.tar.{len(files) - 2:04}"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"--import .*state: {part.name} is damaged; copy it again"):
        unpack(state, tmp_path / "no")
    part.unlink()
    with pytest.raises(ValueError, match=f"{part.name} is missing"):
        unpack(state, tmp_path / "no")
    (state / "manifest.json").unlink()
    with pytest.raises(ValueError, match="manifest.json is missing or damaged"):
        unpack(state, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_folder_in_use_is_not_exported(tmp_path: Path) -> None:
    start(tmp_path / "run", DEBUG, Plan(name="debug", minutes=1.0, stages=()))
    with alone(tmp_path / "run"), pytest.raises(ValueError, match="run is in use by another snapgen reproduce"):
        export(tmp_path / "run", tmp_path / "state", print)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("name", "kind"), [("../out", tarfile.REGTYPE), ("/out", tarfile.REGTYPE), ("out", tarfile.SYMTYPE)]
)
def test_an_import_writes_files_inside_its_folder_only(tmp_path: Path, name: str, kind: bytes) -> None:
    (tmp_path / "state").mkdir()
    with tarfile.open(tmp_path / "state" / "state.tar.0000", "w") as tar:
        entry = tarfile.TarInfo(name if name != "/out" else str(tmp_path / "out"))
        entry.type, entry.linkname = kind, "/etc/hostname"
        tar.addfile(entry)
    (tmp_path / "state" / "manifest.json").write_text(json.dumps({"files": manifest(tmp_path / "state")}))
    with pytest.raises(ValueError, match="out is not a file inside the exported folder"):
        unpack(tmp_path / "state", tmp_path / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def make_state(folder: Path, *entries: tarfile.TarInfo, whole: bytes | None = None) -> Path:
    """An export in `folder` whose tar has these `entries`, each with as many bytes as it says, or `whole`."""
    folder.mkdir()
    file = folder / "state.tar.0000"
    with tarfile.open(file, "w") as tar:
        for entry in entries:
            tar.addfile(entry, BytesIO(b"x" * entry.size) if entry.isreg() else None)
    if whole is not None:
        file.write_bytes(whole)
    (folder / "manifest.json").write_text(json.dumps({"files": manifest(folder)}))
    return folder


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, link
    return made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "files: field required"),
        ({"files": {}}, "files: .* at least 1 item"),
        ({"files": []}, "files: input should be an object"),
        ({"files": {"state.tar.0000": 3}}, "files.state.tar.0000: input should be a valid string"),
        ({"files": {"state.tar.0000": "abc"}}, "files.state.tar.0000: string should match pattern"),
        ({"files": {"../state.tar.0000": "0" * 64}}, "string should match pattern"),
        ({"files": {"/etc/hostname": "0" * 64}}, "string should match pattern"),
        ({"files": {"state.tar.0000": "0" * 64}, "more": 1}, "more: extra inputs are not permitted"),
        ("[" * 100_000, "invalid json: recursion limit exceeded"),
        ("", "invalid json"),
    ],
)
def test_a_manifest_has_plain_names_and_digests(tmp_path: Path, content: Any, message: str) -> None:
    state = make_state(tmp_path / "state", entry("plan.json", size=9))
    text = content if isinstance(content, str) else json.dumps(content)
    (state / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=f"manifest.json is missing or damaged: .*{message}") as caught:
        unpack(state, tmp_path / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("a", tarfile.LNKTYPE, link="a")], "a is not a file inside"),  # a link to itself
        ([entry("a", tarfile.LNKTYPE, link="/etc/hostname")], "a is not a file inside"),
        ([entry("a", size=3), entry("a", size=3)], "a is not a file inside"),
        ([entry("a", tarfile.DIRTYPE)], "a is not a file inside"),
        ([entry("a", tarfile.FIFOTYPE)], "a is not a file inside"),
        ([entry("."), entry("b")], "is not a file inside"),
        ([entry("a/../b", size=3)], "is not a file inside"),
        ([entry("a", size=3), entry("a/b", size=3)], "cannot be unpacked: "),
        (
            [entry("a", size=2**20), *(entry(f"b{i}", tarfile.LNKTYPE, link="a") for i in range(40))],
            "the copies in the tar are more than 32 times its size",
        ),
    ],
)
def test_an_archive_holds_plain_files(tmp_path: Path, entries: list[tarfile.TarInfo], message: str) -> None:
    state = make_state(tmp_path / "state", *entries)
    with pytest.raises(ValueError, match=message):
        unpack(state, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("size", [2**40, 2**60, 2**88, -512])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S"])
def test_a_header_that_lies_is_one_line(tmp_path: Path, kind: bytes, size: int) -> None:
    header = bytearray(entry("a", size=3).tobuf())
    header[124:136] = (size % 2**96 | (0 if size < 0 else 2**95)).to_bytes(12, "big")
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    state = make_state(tmp_path / "state", whole=bytes(header) + b"abc".ljust(2048, b"\0"))
    with pytest.raises(ValueError, match="--import.*(cannot be unpacked: |is not a file inside)") as caught:
        unpack(state, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
