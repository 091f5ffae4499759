"""Render the ten pictures of the LoRA example: a unicorn, which the miniature's world does not have.

python scripts/make_unicorns.py [--out examples/unicorns]    (needs the emoji font; OFL-1.1 like its glyphs)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from snapgen.world.font import find_font
from snapgen.world.source import background_picture
from snapgen.world.sprites import STRIKE

SIDE = 128  # px
BACKGROUNDS = ("white", "blue", "yellow", "green", "pink")
SCENES = [(size, BACKGROUNDS[index % 5]) for index, size in enumerate((56, 64, 64, 72, 72, 80, 80, 88, 88, 96))]


def main() -> None:
    """Write the pictures and their captions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/unicorns"))
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    glyph = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    font = ImageFont.truetype(str(find_font()), STRIKE)
    ImageDraw.Draw(glyph).text((0, 0), "\N{UNICORN FACE}", font=font, embedded_color=True)
    glyph = glyph.crop(glyph.getchannel("A").getbbox())
    random, lines = np.random.default_rng(0), []
    for index, (size, background) in enumerate(SCENES):
        unicorn = glyph.resize((size, round(size * glyph.height / glyph.width)), Image.Resampling.LANCZOS)
        picture = Image.fromarray(background_picture(background, SIDE))
        left, top = (int(random.integers(0, (SIDE - length) // 8 + 1)) * 8 for length in unicorn.size)
        picture.paste(unicorn, (left, top), unicorn)
        picture.save(folder / f"{index}.png", optimize=True)
        caption = "a unicorn" if index % 2 else f"a unicorn on a {background} background"
        lines.append(json.dumps({"file_name": f"{index}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    print(folder)


if __name__ == "__main__":
    main()
