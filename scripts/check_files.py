"""Refuses large files, and text that does not end in one newline: check_files.py FILE...

Models that ship are as `scripts/bundle.py` writes them, which has a limit of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

LARGEST = 1_000_000  # bytes


def complaint(path: Path) -> str | None:
    """What is wrong with the file, if anything."""
    if "bundled" in path.parts or path.suffix == ".safetensors":
        return None
    content = path.read_bytes()
    if len(content) > LARGEST:
        return f"{path}: {len(content) / 1e6:.1f} MB, at most {LARGEST / 1e6:.0f} MB belong in the repository"
    is_text = b"\0" not in content
    if content and is_text and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        return f"{path}: does not end in one newline"
    return None


def main(names: list[str]) -> int:
    """Prints what is wrong with the files; the exit status."""
    complaints = [text for name in names if (text := complaint(Path(name))) is not None]
    for text in complaints:
        print(text, file=sys.stderr)
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
