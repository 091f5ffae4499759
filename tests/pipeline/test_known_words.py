"""The words that a model has learned: where they are kept, and what a prompt says beyond them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snapgen.pipeline.load import load_pipeline
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.pipeline.words import unknown_words, words_of_model

WORDS = {"nouns": ["cat", "ice cream"], "plurals": ["cats", "ice creams"], "other": ["a", "the", "on", "red", "2"]}


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("", []),
        ("a cat", []),
        ("A RED Cat, on the ice-cream!!", []),
        ("2 red cats.", []),
        ("the cat's ice cream", []),
        ("the cat\u2019s ice", ["ice"]),
        ("cream on ice", ["cream", "ice"]),
        ("a penguin wearing a hat, a penguin", ["penguin", "wearing", "hat"]),
        ("22 cats", ["22"]),
        ("кошка, a 猫", ["кошка", "猫"]),
        ("catss", ["catss"]),
        ("🐈 & ...", []),
    ],
)
def test_what_a_prompt_says_beyond_the_list(prompt: str, unknown: list[str]) -> None:
    assert unknown_words([prompt], WORDS) == unknown


def test_prompts_share_one_list_and_may_be_long() -> None:
    assert unknown_words(["a dog", "a cat", "the dog and the bird"], WORDS) == ["dog", "and", "bird"]
    assert unknown_words(["a cat " * 200_000], WORDS) == []


def test_the_list_survives_diffusers(tiny_model: Path, tmp_path: Path) -> None:
    """Loaded and saved twice, and read without the networks."""
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    assert pipeline.config.known_words is None and words_of_model(str(tiny_model)) is None
    pipeline.register_to_config(known_words=WORDS)
    pipeline.save_pretrained(tmp_path / "one")
    SnapGenPipeline.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    loaded = load_pipeline(str(tmp_path / "two"))
    assert loaded.config.known_words == words_of_model(str(tmp_path / "two")) == WORDS
    assert loaded.components.keys() == pipeline.components.keys()


@pytest.mark.parametrize("words", [["cat"], {"nouns": "cat"}, {"nouns": [1]}, 3])
def test_a_list_that_is_none_is_one_line(words: Any, tiny_model: Path, tmp_path: Path) -> None:
    index = json.loads((tiny_model / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"known_words": words}))
    with pytest.raises(ValueError, match=r"model_index.json: known_words must be lists of words by kind$"):
        words_of_model(str(tmp_path))


def test_the_bundled_models_know_24_things() -> None:
    few, base = words_of_model("mini"), words_of_model("mini-base")
    assert few == base and few is not None
    assert list(few)[:3] == ["nouns", "plurals", "colors"]
    for prompt in ("two red apples", "A kitten to the left of a toadstool", "an emoji of 3 sailboats at night."):
        assert unknown_words([prompt], few) == []
    assert unknown_words(["a penguin wearing a hat"], few) == ["penguin", "wearing", "hat"]
