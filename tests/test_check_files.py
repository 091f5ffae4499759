"""What scripts/check_files.py, a hook before every commit, lets pass."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("page.md", b"text\n", None),
        ("empty.py", b"", None),
        ("plot.png", b"\0no newline", None),
        ("page.md", b"text", "does not end in one newline"),
        ("page.md", b"text\n\n", "does not end in one newline"),
        ("data.bin", b"\0" * 1_500_000, "1.5 MB, at most 1 MB"),
        ("model.safetensors", b"\0" * 1_500_000, None),
    ],
)
def test_files_are_small_and_end_in_a_newline(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    complaint: str | None,
) -> None:
    (tmp_path / name).write_bytes(content)
    assert script("check_files").main([str(tmp_path / name)]) == (complaint is not None)
    assert (complaint or "") in capsys.readouterr().err
