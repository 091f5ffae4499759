"""Writes what the web app's code must compute as Python does, for its tests: `python scripts/web_golden.py`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from snapgen.files import write_text
from snapgen.flow.noise import seeded_noise
from snapgen.flow.schedule import sampling_levels
from snapgen.pipeline.words import unknown_words
from snapgen.text.tokenizer import train_tokenizer

GOLDEN = Path(__file__).parents[1] / "web" / "tests" / "golden.json"

SEEDS = (0, 7, 2**32 - 1, 2**63 - 1)
LONG, SHORT = 65_536, (16, 17, 100)  # numbers of noise
SCHEDULES = ((1, 1.0), (4, 3.0), (28, 3.0), (5, 1.75), (50, 0.5))  # steps, shift
KNOWN = {"nouns": ["cat", "ice cream", "café"], "colors": ["red"], "numbers": ["two", "2"], "other": ["a", "of"]}
TEXTS = (
    "",
    "a cat",
    "A CAT, two red  cats!",
    "the cat's ice cream",
    "ICE cream of ice",
    "cat\N{RIGHT SINGLE QUOTATION MARK}s dog's dog'snow",
    "2 cats and 22 dogs, 3cats cat2",
    "Caf\N{LATIN SMALL LETTER E WITH ACUTE} straße größer, 猫 and кот_red",
    "a [EOS] b\tc \N{CAT FACE}",
    "a cat " * 12 + "two red apples",
)
CAPTIONS = ("a cat", "two red apples", "a dog on a blue background")
TOKENS = 16


def golden() -> dict[str, Any]:
    """The values by kind, as JSON."""
    tokenizer = train_tokenizer(CAPTIONS, 100, TOKENS)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {
        "noise": [noise_of(seed, count) for seed in SEEDS for count in (*SHORT, LONG)],
        "schedules": [
            {"steps": steps, "shift": shift, "levels": sampling_levels(steps, shift)} for steps, shift in SCHEDULES
        ],
        "known": KNOWN,
        "unknown": [{"text": text, "words": unknown_words([text], KNOWN)} for text in TEXTS],
        "tokenizer": rules,
        "tokens": [
            {"text": text, "ids": tokenizer(text, truncation=True, max_length=TOKENS)["input_ids"]} for text in TEXTS
        ],
    }


def noise_of(seed: int, count: int) -> dict[str, Any]:
    """The noise's first and last numbers, and a hash of all, little-endian."""
    noise = seeded_noise(seed, (count,))
    digest = hashlib.sha256(noise.astype("<f4").tobytes()).hexdigest()
    return {"seed": str(seed), "count": count, "ends": [float(noise[0]), float(noise[-1])], "sha256": digest}


if __name__ == "__main__":
    write_text(json.dumps(golden(), indent=1, ensure_ascii=False), GOLDEN)
