"""How fast scenes are rendered and captioned on one core.

    python benchmarks/scene_rendering.py [--count 3000] [--out benchmarks/results]

For each resolution and split: scenes per second of processor time, with warm sprite caches. Needs the emoji font.
Writes scene_rendering.json and .md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

from shared import machine_facts, make_parser, page, write_results

from snapgen.messages import markdown_table
from snapgen.world.font import font_sha256
from snapgen.world.source import SceneSettings, SceneSource
from snapgen.world.splits import Split

CASES: tuple[tuple[int, Split], ...] = ((128, "train"), (256, "train"), (128, "heldout"))


def rate(work: Callable[[int], object], start: int, count: int) -> float:
    """Calls of `work(index)` per second of processor time, over `count` indices from `start`."""
    before = time.process_time()
    for index in range(start, start + count):
        work(index)
    return round(count / (time.process_time() - before), 1)


def main() -> None:
    """Measure every case and write the results."""
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=int, default=3000, help="scenes measured per case, after as many to warm up")
    options = parser.parse_args()
    count: int = options.count
    cases, cells = [], []
    for resolution, split in CASES:
        source = SceneSource(SceneSettings(resolution=resolution, split=split, count=2 * count))
        for index in range(count):  # fills the caches
            source.image(index)
        images = rate(source.image, count, count)
        captions = rate(partial(source.caption, variant=0), count, count)
        cases.append({"resolution": resolution, "split": split, "images_s": images, "captions_s": captions})
        cells.append((f"{resolution} px", split, f"{images:.0f}", f"{captions:.0f}"))
    unit = "per second of processor time on one core"
    report = {"unit": unit, "count": count} | machine_facts() | {"font_sha256": font_sha256(), "cases": cases}
    heading = f"{report['device']}, {os.cpu_count()} cores; {unit}, {count} scenes per case"
    table = markdown_table(("resolution", "split", "pictures", "captions"), cells)
    write_results(options.out / "scene_rendering", report, page(__file__, heading, table))


if __name__ == "__main__":
    main()
