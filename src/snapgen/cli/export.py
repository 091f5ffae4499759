"""`snapgen export`: convert a model for phones, browsers and other runtimes. Bad options are rejected before torch."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from snapgen.cli.options import check_installed, parse_size
from snapgen.cli.outputs import check_folder
from snapgen.cli.progress import show_message
from snapgen.export.targets import TARGETS
from snapgen.messages import markdown_table
from snapgen.runtime.bundle import other_files

if TYPE_CHECKING:
    from snapgen.runtime.bundle import Bundle


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="'mini', 'mini-base', a model folder, a hub name, or a preset (random weights)."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The bundle's folder; a bundle in it is replaced.")],
    target: Annotated[str, typer.Option(metavar="NAME", help="The runtime: " + ", ".join(TARGETS) + ".")],
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="Q",
            help="Precision of the weights; the first by default. "
            + "; ".join(f"{name}: {', '.join(facts.precisions)}" for name, facts in TARGETS.items())
            + ".",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Width and height in pixels, the default ones where the runtime takes any."),
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these of text_encoder, text_encoder_2, text_encoder_3; all by default."),
    ] = None,
    lora: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Adapters to fuse into the UNet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the bundle's description instead of a table.")] = False,
) -> None:
    """Convert MODEL for another runtime; the bundle is measured against torch, and written only if it is near."""
    if target not in TARGETS:
        raise ValueError(f"--target {target} is unknown: expected one of {', '.join(TARGETS)}")
    precisions = TARGETS[target].precisions
    if quantize is not None and quantize not in precisions:
        raise ValueError(f"--quantize {quantize} is unknown for {target}: expected one of {', '.join(precisions)}")
    check_installed(TARGETS[target].packages, f"exporting to {target} needs", "export")
    width, height = parse_size(size) if size is not None else (None, None)
    check_folder("OUT", out)
    if others := other_files(out):
        raise ValueError(f"{out} holds other files than a bundle, such as {others[0]}: name a new folder")

    from snapgen.export.model import ExportSettings, export_model

    names = None if encoders is None else [name.strip() for name in encoders.split(",")]
    settings = ExportSettings(target, quantize, height, width, names, lora)
    bundle = export_model(model, out, settings, show_message)
    typer.echo(json.dumps(bundle.model_dump(), ensure_ascii=False) if as_json else bundle_table(bundle, out))


def bundle_table(bundle: Bundle, out: Path) -> str:
    """What was written, and how near it is to torch."""
    rows = []
    for name, network in bundle.networks.items():
        own = Path(network.file).stem  # of all its files: a package's, or a graph and its weights beside it
        size = sum(facts.bytes for file, facts in bundle.files.items() if Path(Path(file).parts[0]).stem == own)
        rows.append([name, network.file, f"{size / 1e6:.1f}", f"{bundle.parity.relative_error[name]:.1e}"])
    lines = markdown_table(["network", "file", "MB", "relative error"], rows)
    if decibels := bundle.parity.psnr:
        worst, middle = min(decibels), median(decibels)
        lines.append(f"{len(decibels)} pictures: PSNR {worst:.1f} dB at worst, median {middle:.1f} dB")
    return "\n".join([*lines, f"written: {out}"])
