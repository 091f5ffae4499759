"""What verbs say while they work."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapgen.cli.progress import continuable, show_items


def test_short_work_is_silent_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(show_items("abc", "packing", 3)) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_work_that_is_stopped_says_what_it_leaves(
    stop: BaseException, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(stop)), continuable(tmp_path / "new", "--resume"):
        raise stop
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png", ".tmp-7-c.png"):
        (tmp_path / "pictures" / name).write_text("")
    with pytest.raises(type(stop)), continuable(tmp_path, "--resume"):
        raise stop
    with pytest.raises(ValueError, match="damaged"), continuable(tmp_path, "--resume"):
        raise ValueError("damaged")
    assert capfd.readouterr() == ("", f"{tmp_path} holds 2 files so far; --resume continues\n")
