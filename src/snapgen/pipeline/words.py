"""The words that a model has learned, as its `model_index.json` lists them, and those of a prompt that it has not.

Only models that were trained on captions of a small built-in world have a list; others may know any word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from snapgen.files import read_json
from snapgen.pipeline.bundled import BUNDLED, bundled_folder
from snapgen.pipeline.load import INDEX, check_model_name

KEY = "known_words"  # of the pipeline's configuration: lists of words by kind
KINDS = ("nouns", "plurals", "colors", "backgrounds", "numbers", "sizes", "positions")  # in this order, then others
Words = Mapping[str, Sequence[str]]

_WORD = re.compile(r"[^\W\d_]+|\d+")  # letters of any script, or a number
_POSSESSIVE = re.compile(r"(?<=\w)['\N{RIGHT SINGLE QUOTATION MARK}]s\b")


def words_of_model(model: str) -> Words | None:
    """The words that `model` (a bundled model, a folder or a hub name) has learned, by kind; None if it has no list."""
    check_model_name(model)
    folder = bundled_folder() / BUNDLED[model] if model in BUNDLED else Path(model)
    if folder.is_dir():
        entries: dict[str, Any] = read_json(folder / INDEX)
    else:
        from snapgen.pipeline.text_to_image import SnapGenPipeline

        entries = SnapGenPipeline.load_config(model)
    return checked_words(entries.get(KEY), str(folder / INDEX))


def checked_words(words: Any, origin: str) -> Words | None:
    """`words` if they are None or lists of texts by kind, in the order of `KINDS`; else ValueError naming `origin`."""
    if words is None:
        return None
    if not (
        isinstance(words, Mapping)
        and all(isinstance(found, list | tuple) for found in words.values())
        and all(isinstance(word, str) for found in words.values() for word in found)
    ):
        raise ValueError(f"{origin}: {KEY} must be lists of words by kind")
    first = [kind for kind in KINDS if kind in words]
    return {kind: words[kind] for kind in dict.fromkeys([*first, *words])}


def unknown_words(prompts: Iterable[str], words: Words) -> list[str]:
    """The words in `prompts` that are not among `words`, lower-case, in order, each once.

    Case and punctuation do not matter. Names of several words count as a whole: "ice cream" is known and "ice" is not.
    """
    names = {tuple(_split(word)) for found in words.values() for word in found}
    longest = max(map(len, names), default=1)
    unknown: dict[str, None] = {}
    for prompt in prompts:
        found, start = _split(prompt), 0
        while start < len(found):
            length = next((n for n in range(longest, 0, -1) if tuple(found[start : start + n]) in names), 0)
            if not length:
                unknown[found[start]] = None
            start += max(1, length)
    return list(unknown)


def _split(text: str) -> list[str]:
    """The words and numbers of `text`, lower-case, without punctuation and the possessive's s."""
    return _WORD.findall(_POSSESSIVE.sub("", text.lower()))
