"""Generate the README's contact sheet: every prompt of docs/gallery_prompts.txt once, with seed 0, no cherry-picking.

python scripts/gallery.py [--model NAME|FOLDER] [--steps N] [--out docs/gallery.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from snapgen.pictures import contact_sheet, save_png
from snapgen.pipeline.load import load_pipeline

DOCS = Path(__file__).parent.parent / "docs"
COLUMNS = 8


def main() -> None:
    """Read the command line and write the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="a bundled model or a pipeline folder")
    parser.add_argument("--steps", type=int, help="by default the model's own")
    parser.add_argument("--out", type=Path, default=DOCS / "gallery.png")
    options = parser.parse_args()

    pipeline = load_pipeline(options.model)
    prompts = (DOCS / "gallery_prompts.txt").read_text().splitlines()
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    pictures = pipeline(prompts, num_inference_steps=options.steps, generator=generators, return_dict=False)[0]
    save_png(contact_sheet([np.asarray(picture) for picture in pictures], prompts, COLUMNS), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
