"""Captions, as text files and JSON hold them."""

from __future__ import annotations

from typing import Any

from snapgen.files import decode_text

LONGEST = 10_000  # characters; tokenizers read a text to its end, then keep a few hundred tokens


def decode_caption(content: bytes) -> str:
    """The caption in the content of a text file. ValueError if that is not UTF-8."""
    return _clean(decode_text(content))


def json_captions(value: Any) -> list[str]:
    """The captions in a JSON value: a text, or those in a list; anything else, such as null, holds none."""
    values = value if isinstance(value, list) else [value]
    return [_clean(text) for text in values if isinstance(text, str)]


def _clean(text: str) -> str:
    """`text` without space around it, no longer than `LONGEST`, and without the halves of characters of some JSON."""
    return text.strip()[:LONGEST].encode("utf-8", "replace").decode()
