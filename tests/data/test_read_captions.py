"""Captions in text files and JSON."""

from typing import Any

import pytest

from snapgen.data.captions import LONGEST, decode_caption, json_captions


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_utf_8_with_and_without_a_byte_order_mark(mark: bytes) -> None:
    assert decode_caption(mark + "café au lait\u2028twice\n".encode()) == "café au lait\u2028twice"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32-be"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(ValueError):
        decode_caption("a café".encode(encoding))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a cat ", ["a cat"]),
        (["a cat", None, 3, "a red cat"], ["a cat", "a red cat"]),
        (None, []),
        ([], []),
        ({"a": "b"}, []),
        (7, []),
        ("half \ud83d of a character", ["half ? of a character"]),
    ],
)
def test_json_values(value: Any, expected: list[str]) -> None:
    assert json_captions(value) == expected


def test_long_captions_are_cut() -> None:
    assert decode_caption(b"cat " * 1_000_000) == ("cat " * LONGEST)[:LONGEST]
    assert len(json_captions("x" * 3_000_000)[0]) == LONGEST
