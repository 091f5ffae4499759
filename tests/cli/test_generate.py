"""`snapgen generate` refuses what it cannot do in one line, before anything heavy is imported or written."""

import sys
from pathlib import Path

import pytest

from snapgen.cli.generate import read_prompts
from snapgen.cli.main import run

FOLDER_WITHOUT_MODEL = "folder-without-model"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with what the bad inputs below point at."""
    monkeypatch.chdir(tmp_path)
    # A pipeline that is asked for would be an error: everything here is refused before.
    monkeypatch.setitem(sys.modules, "snapgen.pipeline", None)
    (tmp_path / FOLDER_WITHOUT_MODEL).mkdir()
    (tmp_path / "a-file").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00cat")
    (tmp_path / "blank.txt").write_text("\n  \n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["a cat", "-o", "a.png", "--steps", "0"], "--steps 0 is out of range"),
        (["a cat", "-o", "a.png", "--steps", "1000000"], "--steps 1000000 is out of range"),
        (["a cat", "-o", "a.png", "--guidance", "-1"], "--guidance -1.0 is out of range"),
        (["a cat", "-o", "a.png", "--guidance", "nan"], "--guidance nan is out of range"),
        (["a cat", "-o", "a.png", "--guidance", "inf"], "--guidance inf is out of range"),
        (["a cat", "-o", "a.png", "--count", "0"], "--count 0 is out of range"),
        (["a cat", "-o", "a.png", "--seed", "-1"], "--seed -1 is out of range"),
        (["a cat", "-o", "a.png", "--seed", str(2**63)], "is out of range"),
        (["a cat", "-o", "a/", "--seed", str(2**63 - 1), "--count", "2"], "is out of range"),
        (["a cat", "-o", "a.png", "--size", ""], "WIDTHxHEIGHT"),
        (["a cat", "-o", "a.png", "--size", "big"], "WIDTHxHEIGHT"),
        (["a cat", "-o", "a.png", "--size", "128"], "WIDTHxHEIGHT"),
        (["a cat", "-o", "a.png", "--size", "-128x128"], "WIDTHxHEIGHT"),
        (["a cat", "-o", "a.png", "--size", "100x128"], "multiples of 32"),
        (["a cat", "-o", "a.png", "--size", "0x0"], "multiples of 32"),
        (["a cat", "-o", "a.png", "--size", "4128x128"], "multiples of 32"),
        (["a cat", "-o", "a.png", "--model", "unknown"], "there is no model 'unknown'"),
        (["a cat", "-o", "a.png", "--model", "./no/such/model"], "there is no model"),
        (["a cat", "-o", "a.png", "--model", ""], "'' is not a model folder"),
        (["a cat", "-o", "a.png", "--model", FOLDER_WITHOUT_MODEL], "no model_index.json"),
        (["a cat", "-o", "a.png", "--model", "a-file"], "'a-file' is a file"),
        (["-o", "a.png"], "no prompt given"),
        (["-o", "a.png", "--prompts", "blank.txt"], "no prompt given"),
        (["-o", "a.png", "--prompts", "missing.txt"], "missing.txt: no such file"),
        (["-o", "a.png", "--prompts", FOLDER_WITHOUT_MODEL], "is a directory"),
        (["-o", "a.png", "--prompts", "binary.txt"], "binary.txt is not a UTF-8 text file"),
        (["a cat", "a dog", "-o", "a.png"], "2 pictures do not fit in one file"),
        (["a cat", "--count", "3", "-o", "a.png"], "3 pictures do not fit in one file"),
        (["a cat", "-o", ""], "--out is empty"),
        (["a cat", "-o", "a.gif"], "cannot write .gif pictures"),
        (["a cat", "-o", "missing/a.png"], "there is no folder missing"),
        (["a cat", "-o", "a-file/a.png"], "there is no folder a-file"),
        (["a cat", "-o", "a-file"], "a-file exists and is not a folder"),
        (["a cat", "-o", "a-file/b/"], "a-file: it is not a folder"),
        (["a cat", "-o", "/proc/a.png"], "cannot write in /proc"),
        (["a cat", "-o", "/proc/pictures/"], "cannot write in /proc"),
        (["a cat", "-o", "x" * 300 + ".png"], "file name too long"),
    ],
)
def test_refused(arguments: list[str], fragment: str, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(workplace.rglob("*"))
    assert run(["generate", *arguments]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("snapgen: error: ")
    assert err.count("\n") == 1
    assert fragment in err
    assert sorted(workplace.rglob("*")) == before


def test_prompts_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\n  zwei rote Äpfel \n🍎\n".encode())
    assert read_prompts(path) == ["a cat", "zwei rote Äpfel", "🍎"]
