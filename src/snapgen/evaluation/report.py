"""Writes the report of a suite: report.json (with its manifest), report.md, plot.png and gallery.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapgen.evaluation.gallery import gallery_page
from snapgen.files import atomic_file, write_text
from snapgen.messages import between, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    title: str,
    report: dict[str, Any],
    markdown: str,
    figure: Figure,
    pictures: Sequence[dict[str, Any]],
    folder: Path,
) -> None:
    """Write a report to `folder`: `report` and `pictures` as JSON, `markdown`, `figure` and the gallery.

    `gallery_page` describes `pictures`. No file is ever left half written.
    """
    plot = folder / "plot.png"
    with atomic_file(plot) as temporary:
        figure.savefig(temporary, dpi=120)
    write_text(markdown, folder / "report.md")
    write_text(gallery_page(title, markdown, plot.read_bytes(), pictures, folder), folder / "gallery.html")
    # Written last: a folder with a report.json is complete.
    write_text(json.dumps(report | {"pictures": list(pictures)}, indent=1, ensure_ascii=False), folder / "report.json")


def origin(manifest: dict[str, Any]) -> str:
    """One line on how the score was measured: settings, seeds and hashes, as far as `manifest` has them."""
    parts = [f"{manifest['steps']} steps, guidance {manifest['guidance']}"] if "steps" in manifest else []
    if "guidance_interval" in manifest:
        low, high = manifest["guidance_interval"]
        parts[0] += f" at noise levels from {low} to {high}"
    if "side" in manifest:
        parts.append(f"{manifest['side']} px")
    if "seeds" in manifest:
        parts.append(f"seeds {', '.join(str(seed) for seed in manifest['seeds'])}")
    parts += [
        f"{name} {manifest[f'{name}_sha256'][:12]}" for name in ("model", "prompts") if manifest.get(f"{name}_sha256")
    ]
    return ", ".join(parts)


def score_summary(title: str, report: dict[str, Any], form: str, notes: Sequence[str]) -> str:
    """The report of a suite with one score, as Markdown: interval, categories if any, seeds, `notes`, origin.

    `form`: the format of a score, such as ".1%" or ".3f".
    """
    interval = between(report["interval"], form)
    lines = [f"# {title}", "", f"{report['count']} pictures" + (f", 95 % interval {interval}." if interval else ".")]
    if "categories" in report:
        intervals = report.get("category_intervals", {})
        rows = [
            (name, f"{score:{form}}", between(intervals.get(name), form))
            for name, score in report["categories"].items()
        ]
        lines += ["", *markdown_table(("category", "score", "95 % interval"), rows)]
    if len(report.get("by_seed", ())) > 1:
        by_seed = [(seed, f"{score:{form}}") for seed, score in report["by_seed"].items()]
        lines += ["", *markdown_table(("seed", "score"), by_seed)]
    return "\n".join([*lines, "", *notes, "", origin(report["manifest"])])
