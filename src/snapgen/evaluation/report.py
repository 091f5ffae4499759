"""Reports of a suite: report.json, report.md, and a contact sheet with verdicts; each written whole or not at all."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from snapgen.data.preview import contact_sheet, save_png
from snapgen.weights import VERSIONED, atomic_file

COLUMNS = 8
SHEET_ROWS = 2  # of the sheet for every category


def library_versions() -> dict[str, str]:
    """Python's and the libraries' versions that pictures and scores depend on."""
    return {"python": platform.python_version()} | {package: version(package) for package in (*VERSIONED, "pillow")}


def write_report(
    title: str,
    report: dict[str, Any],
    pictures: Sequence[dict[str, Any]],
    images: Sequence[np.ndarray],
    folder: Path,
) -> None:
    """Writes the report of the suite `title` to `folder`.

    `pictures`: for each of `images` (uint8 H W 3) its `category`, `split`, `prompt` and `verdict`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_png(sheet(pictures, images), folder / "sheet.png")
    write_text(table(title, report), folder / "report.md")
    # Last, so that a folder with a report.json is complete.
    write_text(json.dumps(report | {"pictures": list(pictures)}, indent=1, ensure_ascii=False), folder / "report.json")


def write_text(text: str, path: Path) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def sheet(pictures: Sequence[dict[str, Any]], images: Sequence[np.ndarray]) -> Image:
    """The first pictures of every category of the first split, each above its verdict and prompt."""
    first = [i for i, picture in enumerate(pictures) if picture["split"] == pictures[0]["split"]]
    chosen: list[int] = []
    for category in dict.fromkeys(pictures[i]["category"] for i in first):
        chosen += [i for i in first if pictures[i]["category"] == category][: SHEET_ROWS * COLUMNS]
    captions = []
    for i in chosen:
        verdict = pictures[i]["verdict"]
        mark = "RIGHT" if verdict["correct"] else f"WRONG ({verdict['reason']})"
        captions.append(f"{mark}: {pictures[i]['prompt']}")
    return contact_sheet([images[i] for i in chosen], captions, COLUMNS)


def table(title: str, report: dict[str, Any]) -> str:
    """The report as markdown."""
    train, manifest = report["train"], report["manifest"]
    low, high = report["interval"]
    lines = [
        f"# {title}: {report['score']:.1%}",
        "",
        f"Mean of the categories on held-out compositions, 95 % interval {low:.1%} to {high:.1%}, "
        f"{report['count']} pictures.",
        "",
        "| category | score | 95 % interval | seen in training | ceiling | detector | failures |",
        "|---|---|---|---|---|---|---|",
    ]
    for category, score in report["categories"].items():
        below, above = report["category_intervals"][category]
        failures = ", ".join(f"{rule} {number}" for rule, number in report["failures"][category].items())
        lines.append(
            f"| {category} | {score:.1%} | {below:.1%} to {above:.1%} | {train['categories'][category]:.1%} "
            f"| {report['ceiling']['categories'][category]:.1%} | {report['detector'][category]:.1%} | {failures} |"
        )
    lines += [
        f"| mean | {report['score']:.1%} | {low:.1%} to {high:.1%} | {train['score']:.1%} "
        f"| {report['ceiling']['score']:.1%} | {sum(report['detector'].values()) / len(report['detector']):.1%} | |",
        "",
        f"Floor: shuffled prompts {report['floor']['shuffled']:.1%}, random pictures {report['floor']['random']:.1%}. "
        f"Backgrounds asked for: {report['background']['right']} of {report['background']['stated']} right.",
        "",
        f"{manifest['steps']} steps, guidance {manifest['guidance']}, {manifest['side']} px, "
        f"seeds {', '.join(str(seed) for seed in manifest['seeds'])}, model {manifest['model_sha256'][:12]}, "
        f"prompts {manifest['prompts_sha256'][:12]}"
        + ("." if manifest["nouns"] == "all" else f", of {len(manifest['nouns'])} nouns only."),
    ]
    return "\n".join(lines)
