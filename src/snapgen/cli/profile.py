"""`snapgen profile`: count and measure what a preset, a model folder or the paper's ladder of architectures costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from snapgen.cli.options import check_installed
from snapgen.cli.outputs import check_file
from snapgen.cli.progress import progress_bar
from snapgen.messages import markdown_table

if TYPE_CHECKING:
    from snapgen.profiling.measure import Conditions

# The paper's change from the rung before (Sec. 3.1), where it gives one.
PAPER = {
    "b": "MACs -17 %, latency -24 %",
    "c0": "parameters -24 %, latency -62 %",
    "c": "from (b): parameters -15 %, MACs -27 %, latency -58 %",
    "d": "parameters -12 %, MACs -12 %",
    "e1": "parameters -16 %, MACs -6 %, latency -9 %",
    "e": "smaller, faster",
    "f": "negligible",
}
BEFORE = {"c": "b"}  # the rung to compare with, where it is not the one before
PLOTS = (".png", ".svg", ".pdf")
LADDER_LATENT = 32  # default latent side for the ladder's latency: seconds per rung on a CPU


def profile(
    model: Annotated[str, typer.Argument(metavar="PRESET|MODEL|ladder", help="A preset, a model folder, or 'ladder'.")],
    latent: Annotated[
        int | None, typer.Option(min=4, max=1024, help="Side of the latent; the model's own (ladder: 32) if not given.")
    ] = None,
    latency: Annotated[bool, typer.Option(help="Also run the networks to measure latency and memory.")] = True,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Where to run them; the GPU if there is one.")
    ] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Their precision.")] = "float32",
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads; torch's choice if not given.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Timed calls; the median is reported.")] = 3,
    warmup: Annotated[int, typer.Option(min=1, max=1000, help="Untimed calls before them.")] = 1,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Ladder only: plot it as PNG, SVG or PDF.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Count parameters and multiply-accumulates; measure latency and memory with random weights."""
    if plot is not None:
        if model != "ladder":
            raise ValueError(f"--plot {plot}: it plots the ladder, not {model}")
        check_file("--plot", plot, PLOTS)
        check_installed(("matplotlib",), "plotting needs", "train")

    import torch

    from snapgen.profiling import counts, measure

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device; use --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    conditions = None
    if latency:
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        conditions = measure.Conditions(place, getattr(torch, dtype), repeats, warmup)
    if model == "ladder":
        rungs = ladder(latent or LADDER_LATENT, conditions)
        if plot is not None:
            save_plot(rungs, plot)
        typer.echo(json.dumps({"latent": latent or LADDER_LATENT, "rungs": rungs}) if as_json else ladder_table(rungs))
        return
    unet, autoencoder = counts.configurations(model)
    report = {"model": model} | counts.profile(unet, autoencoder, latent)
    side = report["latent"]
    if conditions is not None:
        parts = [
            *([("latency", measure.measure_unet, unet)] if unet else []),
            *([("decoder_latency", measure.measure_decoder, autoencoder)] if autoencoder else []),
        ]
        with run_progress(len(parts) * conditions.calls, conditions) as counted:
            for name, run, configuration in parts:
                report[name] = run(configuration, side, counted).model_dump()
    typer.echo(json.dumps(report) if as_json else report_table(report))


def ladder(latent: int, conditions: Conditions | None) -> list[dict[str, Any]]:
    """The counts of every rung and, if `conditions` are given, its latency at a latent of side `latent`."""
    from snapgen.models.presets import UNETS
    from snapgen.profiling import counts, measure

    rungs = counts.ladder()
    if conditions is not None:
        with run_progress(len(rungs) * conditions.calls, conditions) as counted:
            for rung in rungs:
                measured = measure.measure_unet(UNETS[f"rung-{rung['name']}"], latent, counted)
                rung["latency"] = measured.model_dump()
    return rungs


@contextmanager
def run_progress(total: int, conditions: Conditions) -> Iterator[Conditions]:
    """`conditions` whose calls are counted as progress towards `total`."""
    with progress_bar("measuring", total, "calls") as advance:
        yield replace(conditions, on_run=advance)


def save_plot(rungs: list[dict[str, Any]], path: Path) -> None:
    """Plot the ladder and save it to `path`."""
    from snapgen.files import atomic_file
    from snapgen.profiling.plots import plot_ladder

    title = "counted on the meta device"
    if "latency" in rungs[0]:
        title += "; latency: {device}, {threads} threads, {dtype}".format(**rungs[0]["latency"])
    with atomic_file(path) as temporary:
        plot_ladder(rungs, title).savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def ladder_table(rungs: list[dict[str, Any]]) -> str:
    """The rungs as Markdown, each with its change from the rung before, here and in the paper."""
    measured = "latency" in rungs[0]
    by_name = {rung["name"]: rung for rung in rungs}
    names = list(by_name)
    rows = []
    for index, (name, rung) in enumerate(by_name.items()):
        change = ""
        if index:
            before = by_name[BEFORE.get(name, names[index - 1])]
            kinds = {"parameters": "parameters", "MACs": "macs_128"}
            ratios = {kind: rung[key] / before[key] for kind, key in kinds.items()}
            if measured:
                ratios["latency"] = rung["latency"]["median_s"] / before["latency"]["median_s"]
            change = ", ".join(f"{kind} {100 * (ratio - 1):+.1f} %" for kind, ratio in ratios.items())
            change = f"from ({BEFORE[name]}): {change}" if name in BEFORE else change
        cells = [
            f"({name})",
            f"{rung['parameters'] / 1e6:.1f} M",
            f"{rung['macs_32'] / 1e9:.1f} G",
            f"{rung['macs_128'] / 1e9:.1f} G",
        ]
        if measured:
            cells += [seconds(rung["latency"]["median_s"]), megabytes(peak(rung["latency"]))]
        rows.append((*cells, change, PAPER.get(name, "")))
    extra = ("latency", "peak memory") if measured else ()
    columns = ("rung", "parameters", "MACs, 32x32", "MACs, 128x128", *extra, "change here", "paper")
    conditions = ["", conditions_line(rungs[0]["latency"])] if measured else []
    return "\n".join([*markdown_table(columns, rows), *conditions])


def report_table(report: dict[str, Any]) -> str:
    """Counts as Markdown, in millions of parameters and billions of multiply-accumulates; then the measurements."""
    rows = []
    for key, value in report.items():
        name = key.replace("_", " ")
        if key.endswith("parameters"):
            rows.append((name, f"{value / 1e6:.3f} M"))
        elif key.endswith("macs"):
            rows.append((name, f"{value / 1e9:.3f} G"))
        elif key.endswith("modules"):
            prefix = name.removesuffix("modules")
            rows += [(f"{prefix}{part}", f"{parameters / 1e6:.3f} M") for part, parameters in value.items()]
    measured = {key.replace("_", " "): value for key, value in report.items() if key.endswith("latency")}
    for name, value in measured.items():
        part = name.removesuffix("latency")
        spread = f"{seconds(value['fastest_s'])} to {seconds(value['slowest_s'])}"
        rows += [
            (name, f"{seconds(value['median_s'])} ({spread})"),
            (f"{part}activation memory", megabytes(value["activation_bytes"])),
            (f"{part}weights", megabytes(value["weight_bytes"])),
        ]
    conditions = ["", conditions_line(next(iter(measured.values())))] if measured else []
    title = f"{report['model']}, latent {report['latent']}x{report['latent']}"
    return "\n".join([title, "", *markdown_table(("", ""), rows), *conditions])


def conditions_line(measured: dict[str, Any]) -> str:
    """One line on the conditions of a measurement."""
    return (
        "Latency of one call without guidance: median of {repeats} after {warmup}; {device}, {threads} CPU threads, "
        "{dtype}, random weights.".format(**measured)
    )


def peak(measured: dict[str, Any]) -> int:
    """Memory of weights and activations together, bytes."""
    return int(measured["weight_bytes"] + measured["activation_bytes"])


def seconds(value: float) -> str:
    """`value` in seconds as text in s, or below 1 s in ms."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def megabytes(value: int) -> str:
    """`value` in bytes as text in MiB."""
    return f"{value / 2**20:.0f} MiB"
