"""Finding the files of a data set: what is followed, what is skipped, what is said about it."""

import os
from pathlib import Path

import pytest

from snapgen.data.finding import Skipped, find_files


def names_below(folder: Path, skipped: Skipped | None = None) -> list[str]:
    found = find_files(folder, {".png", ".jpg"}, skipped or Skipped())
    return [path.relative_to(folder).as_posix() for path in found]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_are_sorted_by_path_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.PNG", "a/z.jpg", "a.png", "a/b/c.png", "a.txt")))
    assert names_below(tmp_path) == ["a/b/c.png", "a/z.jpg", "a.png", "b.PNG"]
    touch(tmp_path / ".hidden" / "x" / "a.png")
    assert names_below(tmp_path / ".hidden") == ["x/a.png"]  # its user named it


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "pictures" / "a" / "0.png", tmp_path / "elsewhere" / "1.png")
    folder = tmp_path / "pictures"
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "back").symlink_to(folder)
    (folder / "file.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "elsewhere" / "itself").symlink_to(tmp_path / "elsewhere")
    assert names_below(folder) == ["a/0.png", "file.png", "linked/1.png"]


def test_hidden_and_irregular_files_are_counted_and_never_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(
        *(tmp_path / name for name in ("a.png", "._a.png", "x/._b.jpg", "__MACOSX/x/a.png", ".git/a.png", ".DS_Store"))
    )
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    skipped = Skipped()
    assert names_below(tmp_path, skipped) == ["a.png"]
    for _ in range(2):
        skipped.report(tmp_path)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}: skipped ")
    assert "hidden files and macOS's companions (2, first " in line
    assert "links to nothing, pipes and devices (2, first " in line


def test_nothing_is_said_where_nothing_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Skipped().report(tmp_path)
    assert caplog.messages == []
