"""Checks and parsers for options that several verbs share: ranges, intervals, sizes, nouns, required packages."""

from __future__ import annotations

import re
from importlib.util import find_spec

from snapgen.pipeline.inputs import MAX_SIZE, SIZE_MULTIPLE, is_interval

LARGEST_SEED = 2**63 - 1
SIZES = range(SIZE_MULTIPLE, MAX_SIZE + 1, SIZE_MULTIPLE)  # px, of a side
TRAINING = ("accelerate", "tensorboard", "matplotlib")  # of the extra [train]


def check_range(option: str, value: float | None, lowest: float, highest: float) -> None:
    """Raise ValueError if `value` is given and lies outside the closed range."""
    if value is not None and not lowest <= value <= highest:
        raise ValueError(f"{option} {value} is out of range: from {lowest} to {highest} is expected")


def parse_interval(text: str) -> tuple[float, float]:
    """The lowest and highest noise level in "A,B"; ValueError unless 0 <= A <= B <= 1."""
    try:
        low, high = (float(level) for level in text.split(","))
    except ValueError:
        raise ValueError(f"--guidance-interval {text} is not of the form LOW,HIGH, for example 0.2,0.8") from None
    if not is_interval((low, high)):
        raise ValueError(f"--guidance-interval {text} is out of range: 0 <= LOW <= HIGH <= 1 is expected")
    return low, high


def parse_size(text: str) -> tuple[int, int]:
    """The width and height in "WxH"; ValueError unless the networks can generate both."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text, flags=re.ASCII)
    if not match:
        raise ValueError(f"--size {text} is not of the form WIDTHxHEIGHT, for example 256x256")
    width, height = int(match[1]), int(match[2])
    if width not in SIZES or height not in SIZES:
        allowed = f"multiples of {SIZES.step} from {SIZES[0]} to {SIZES[-1]}"
        raise ValueError(f"--size {text} cannot be used: width and height must be {allowed}")
    return width, height


def parse_nouns(text: str | None) -> tuple[str, ...] | None:
    """The nouns in text such as "cat,ice cream"; ValueError unless there are at least two, all in the vocabulary."""
    from snapgen.world.vocabulary import named_nouns

    if text is None:
        return None
    try:
        return named_nouns(part.strip() for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--nouns {text}: {error}") from None


def check_installed(packages: tuple[str, ...], need: str, extra: str) -> None:
    """Raise ValueError with the command that installs missing packages; `need` is, for example, "training needs"."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ValueError(f"{need} {', '.join(missing)}: pip install 'snapgen[{extra}]'")
