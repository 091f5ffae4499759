"""How fast scenes are drawn and told on one core: `python benchmarks/scene_rendering.py [--count 3000]`.

Writes `benchmarks/scene_rendering.json`: scenes a second of processor time, drawn with warm sprite
caches, for each resolution and split.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from snapgen.world.source import SceneSettings, SceneSource
from snapgen.world.splits import Split
from snapgen.world.sprites import font_sha256

CASES: tuple[tuple[int, Split], ...] = ((128, "train"), (256, "train"), (128, "heldout"))


def rate(work: Callable[[int], object], start: int, count: int) -> float:
    """Calls of `work(index)` a second of processor time, over `count` indices from `start`."""
    before = time.process_time()
    for index in range(start, start + count):
        work(index)
    return round(count / (time.process_time() - before), 1)


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description="Scenes drawn and told a second, on one core.")
    parser.add_argument("--count", type=int, default=3000, help="scenes measured a case, after as many to warm up")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    count: int = arguments.count
    cases = []
    for resolution, split in CASES:
        source = SceneSource(SceneSettings(resolution=resolution, split=split, count=2 * count))
        for index in range(count):  # fills the caches
            source.image(index)
        images = rate(source.image, count, count)
        captions = rate(partial(source.caption, variant=0), count, count)
        cases.append({"resolution": resolution, "split": split, "images_s": images, "captions_s": captions})
        print(f"{resolution} px {split:8} {images:8.0f} images/s {captions:8.0f} captions/s")
    result = {
        "unit": "per second of processor time on one core",
        "count": count,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "font_sha256": font_sha256(),
        "cases": cases,
    }
    temporary = arguments.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(temporary, arguments.out)


if __name__ == "__main__":
    main()
