"""`snapgen profile`: what a preset, a model folder or the paper's ladder of architectures costs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

# The paper's change of each rung from the one before (Sec. 3.1), where it gives one; (c) counts from (b).
PAPER = {
    "b": "MACs -17 %",
    "c0": "parameters -24 %",
    "c": "from (b): parameters -15 %, MACs -27 %",
    "d": "parameters -12 %, MACs -12 %",
    "e1": "parameters -16 %, MACs -6 %",
    "e": "smaller",
    "f": "negligible",
}


def profile(
    model: Annotated[str, typer.Argument(metavar="PRESET|MODEL|ladder", help="A preset, a model folder, or 'ladder'.")],
    latent: Annotated[
        int | None, typer.Option(min=4, max=1024, help="Side of the latent; the model's own if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Count parameters and multiply-accumulates; nothing is loaded or run."""
    from snapgen.profiling import counts

    if model == "ladder":
        if latent is not None:
            raise ValueError("--latent does not go with ladder: it is counted at 32 and 128, as in the paper")
        rungs = counts.ladder()
        typer.echo(json.dumps({"rungs": rungs}) if as_json else ladder_table(rungs))
        return
    report = {"model": model} | counts.profile(*counts.configurations(model), latent)
    typer.echo(json.dumps(report) if as_json else report_table(report))


def ladder_table(rungs: list[dict[str, Any]]) -> str:
    """The rungs as Markdown, each with its change from the rung before and the paper's."""
    lines = [
        "| rung | parameters | MACs, 32x32 | MACs, 128x128 | change here (parameters, MACs at 128x128) | paper |",
        "|---|---|---|---|---|---|",
    ]
    before: dict[str, Any] | None = None
    for rung in rungs:
        change = ""
        if before is not None:
            percent = [100 * (rung[key] / before[key] - 1) for key in ("parameters", "macs_128")]
            change = f"{percent[0]:+.1f} %, {percent[1]:+.1f} %"
        size = f"{rung['parameters'] / 1e6:.1f} M | {rung['macs_32'] / 1e9:.1f} G | {rung['macs_128'] / 1e9:.1f} G"
        lines.append(f"| {rung['name']} | {size} | {change} | {PAPER.get(rung['name'], '')} |")
        before = rung
    return "\n".join(lines)


def report_table(report: dict[str, Any]) -> str:
    """The counts as Markdown, in millions of parameters and billions of multiply-accumulates."""
    rows = [f"{report['model']}, latent {report['latent']}x{report['latent']}", "", "| | |", "|---|---|"]
    for key, value in report.items():
        if key.endswith("parameters"):
            rows.append(f"| {key.replace('_', ' ')} | {value / 1e6:.3f} M |")
        elif key.endswith("macs"):
            rows.append(f"| {key.replace('_', ' ')} | {value / 1e9:.3f} G |")
        elif key.endswith("modules"):
            prefix = key.removesuffix("modules").replace("_", " ")
            rows += [f"| {prefix}{name} | {parameters / 1e6:.3f} M |" for name, parameters in value.items()]
    return "\n".join(rows)
