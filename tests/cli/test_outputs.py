"""Whatever a verb writes to is checked before the work: a place that cannot be used is one line, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapgen.cli.main import run

FOLDERS = {  # the start of a command whose next argument is a folder to write to
    "evaluate": ["evaluate", "mini", "--suite", "scenes", "--out"],
    "study": ["study", "make", "mini", "mini-base", "--out"],
    "train": ["train", "recipe.yaml", "--out"],
    "reproduce": ["reproduce", "mini", "--out"],
    "reproduce-export": ["reproduce", "mini", "--export"],
    "pack": ["data", "pack", "pictures"],
}
FILES = {
    "preview": ["data", "preview", "--out"],
    "plot": ["profile", "ladder", "--plot"],
}
PLACES = {  # place: what the line says about it
    "-": " -: nothing but names and numbers goes to standard output; name a file or folder",
    "/proc/new": "cannot write in /proc: ",
    "a-file/new": "cannot write below a-file: it is not a folder",
    "a-file": " a-file exists and is not a folder",
}
FILE_PLACES = {
    "-": PLACES["-"],
    "/proc/new.png": "cannot write in /proc: ",
    "missing/new.png": " missing/new.png: folder missing does not exist",
    "a-file/new.png": " a-file/new.png: folder a-file does not exist",
    "folder.png": " folder.png is a folder: name a file in it",
    "new.gif": " new.gif: expected a name that ends in .png",
    "new": " new: expected a name that ends in .png",
    ".png": " .png: expected a name that ends in .png",
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder. Nothing can be loaded in it, so that whoever begins to work fails in another way."""
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    Path("folder.png").mkdir()
    Path("pictures").mkdir()

    def work(*arguments: object, **settings: object) -> None:
        raise AssertionError("work began")

    for name in ("cli.evaluate.load_pipeline", "cli.study.load_pipeline", "profiling.counts.ladder"):
        monkeypatch.setattr(f"snapgen.{name}", work)
    monkeypatch.setattr("snapgen.world.source.SceneSource", work)
    monkeypatch.setattr("snapgen.data.folder.FolderSource", work)
    return tmp_path


def assert_refused(command: list[str], expected: str, capfd: pytest.CaptureFixture[str], place: Path) -> None:
    before = sorted(place.rglob("*"))
    assert run(command) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("snapgen: error: ") and err.count("\n") == 1
    assert expected in err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("to", PLACES)
@pytest.mark.parametrize("verb", FOLDERS)
def test_folders(verb: str, to: str, capfd: pytest.CaptureFixture[str], place: Path) -> None:
    assert_refused([*FOLDERS[verb], to], PLACES[to], capfd, place)


@pytest.mark.parametrize("to", FILE_PLACES)
@pytest.mark.parametrize("verb", FILES)
def test_files(verb: str, to: str, capfd: pytest.CaptureFixture[str], place: Path) -> None:
    assert_refused([*FILES[verb], to], FILE_PLACES[to], capfd, place)


def test_a_new_folder_that_is_there(capfd: pytest.CaptureFixture[str], place: Path) -> None:
    assert_refused([*FOLDERS["pack"], "pictures"], "pictures exists already: name a new folder", capfd, place)
