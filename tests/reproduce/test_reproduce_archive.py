"""Reproductions packed for another machine: in parts, damaged, and hostile."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

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
