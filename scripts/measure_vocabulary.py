"""Check the nouns of src/snapgen/world/emoji.tsv after the first 64: which backgrounds hide them, which are readable.

    python scripts/measure_vocabulary.py [--tries 6] [--write]

1. Tones: the backgrounds from which a sprite in its own colours does not stand out. Nouns that white hides are dropped.
2. Readability: the detector, knowing all nouns, reads pictures of each noun alone, in its own colours and tinted, as in
   scenes. Nouns that it misreads in more than one of TRIES are dropped: they are too thin, have several parts, or look
   like another noun.

Prints what it finds; `--write` writes the tones to the file and removes the dropped nouns.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import track

from snapgen.files import atomic_file
from snapgen.world.composition import pick
from snapgen.world.judge.detector import SceneDetector
from snapgen.world.layout import place_one
from snapgen.world.scene import Scene
from snapgen.world.source import SceneSettings, SceneSource, background_picture
from snapgen.world.sprites import SpriteSheet
from snapgen.world.vocabulary import BACKGROUND, BACKGROUNDS, COLORS, EVERYTHING, NOUNS, Noun

FILE = Path(__file__).resolve().parent.parent / "src" / "snapgen" / "world" / "emoji.tsv"
SIDE = 44  # px, of most sprites in pictures of 128 px
DISTINCT = 60.0  # Euclidean distance of levels at which a pixel stands out
HIDDEN = 0.3  # share of a sprite's pixels that may fail to stand out
WHITE = 0.5  # the same on white, the background of two pictures in five
BEFORE = ("white", "yellow", "green", "purple")  # backgrounds for readability: templates for all would take minutes


def hiding(sheet: SpriteSheet, noun: Noun) -> list[str]:
    """The backgrounds that hide `noun` in its own colours."""
    colors, alpha = sheet.sprite(noun.name, None, SIDE)
    pixels = colors[alpha[..., 0] > 128].astype(np.float64)
    found = []
    for background in BACKGROUNDS:
        rows = background_picture(background.name, 16)[:, 0].astype(np.float64)
        distances = np.linalg.norm(pixels[:, None] - rows, axis=-1)
        if (distances < DISTINCT).mean(axis=0).max() > (WHITE if background.name == "white" else HIDDEN):
            found.append(background.name)
    return found


def pictures(noun: Noun, tones: list[str], tries: int) -> Iterator[Scene]:
    """Scenes with `noun` alone, tinted in every third."""
    rng = np.random.default_rng(int.from_bytes(noun.name.encode(), "big") % 2**63)
    for number in range(tries):
        color = pick(rng, list(COLORS)) if number % 3 == 2 else None
        seen = [
            BACKGROUND[name]
            for name in BEFORE
            if not ({color} if color else {*tones}) & {*BACKGROUND[name].hides, name}
        ]
        yield Scene(
            "color" if color else "single", place_one(rng, (noun.name, color), None), pick(rng, seen).name, True
        )


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=6, help="pictures of each noun")
    parser.add_argument("--write", action="store_true", help="update the file")
    options = parser.parse_args()

    sheet, draw = SpriteSheet(), SceneSource(SceneSettings())
    named = EVERYTHING[len(NOUNS) :]
    tones = {noun.name: hiding(sheet, noun) for noun in named}
    left_out = {name for name, hidden in tones.items() if "white" in hidden}
    print(f"white hides: {', '.join(sorted(left_out))}")
    candidates = [noun for noun in named if noun.name not in left_out]
    detector = SceneDetector(nouns=[noun.name for noun in candidates])
    for noun in track(candidates, "reading"):
        seen = Counter[str]()
        for scene in pictures(noun, tones[noun.name], options.tries):
            found = [(one.name, one.color) for one in detector(draw.render(scene)).objects]
            truth = [(one.name, one.color) for one in scene.objects]
            seen["right" if found == truth else " ".join(f"{look or ''} {name}".strip() for name, look in found)] += 1
        if seen["right"] < options.tries - 1:
            left_out.add(noun.name)
            print(f"{noun.name}: {dict(seen)}")
    print(f"{len(named) - len(left_out)} of {len(named)} stay")
    if options.write:
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerow(("name", "glyph", "synonyms", "tones"))
        kept = [noun for noun in named if noun.name not in left_out]
        writer.writerows(
            (noun.name, noun.glyph, ", ".join(noun.synonyms), ", ".join(tones.get(noun.name, noun.tones)))
            for noun in (*NOUNS, *kept)
        )
        with atomic_file(FILE) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
