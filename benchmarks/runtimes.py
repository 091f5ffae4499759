"""The same networks in every runtime, in one run on one machine: latency, peak memory, size.

    python benchmarks/runtimes.py [--full] [--bundles FOLDER] [--threads N] [--rounds N] [--only TEXT] [--out FOLDER]

Torch eager in fp32, `SnapGenPipeline.optimize`, ONNX Runtime, ExecuTorch, and onnxruntime-web in Chromium draw with the
miniature: text encoder, UNet, decoder, whole picture. With `--full`, the full-size networks with random weights, and
Sana-0.6B's beside them, in those runtimes that take them within minutes.

Every measurement is a process of its own, which loads one network, calls it once, and times further calls. The rounds
take all runtimes in turn, so that a change of pace of the machine touches all alike; ratios are to torch eager of that
run. Memory is the process's peak with everything that it loaded. Bundles are made once and kept in `--bundles`.
Writes runtimes.json, .md and .png; with `--full`, runtimes_full.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from argparse import SUPPRESS
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import calls
from calls import BARE, PICTURE, TEXT, Call
from matplotlib.figure import Figure
from shared import in_own_process, machine_facts, make_parser, page, write_results

from snapgen.export.targets import TARGETS
from snapgen.files import atomic_folder, write_text
from snapgen.messages import Notify, markdown_table, one_line
from snapgen.runtime.bundle import DECODER, UNET

ROOT = Path(__file__).parents[1]
# Where onnxruntime-web may lie: in the web app's packages, and in the built app.
WEB = ("web/node_modules/onnxruntime-web/dist", "src/snapgen/web/app/assets/ort-*")
FULL, PEER = "t2i", "Sana-0.6B"
SIZES = {FULL: (8, 77), PEER: (32, 300)}  # of full-size networks: pixels per latent position, tokens of text
EXPORT_MARK = "export:"
EXPORT_SIZE = 256  # pixels; ONNX takes any size afterwards


@dataclass(frozen=True)
class Runtime:
    """A column of the comparison."""

    name: str
    runtime: str  # as `calls.Call` has it
    target: str | None = None  # of the bundle
    precision: str | None = None


RUNTIMES = (
    Runtime("torch eager", "eager"),
    Runtime("optimize()", "optimize"),
    Runtime("ONNX Runtime fp32", "onnx", "onnx", "fp32"),
    Runtime("ONNX Runtime w16", "onnx", "onnx", "w16"),
    Runtime("ONNX Runtime int8", "onnx", "onnx", "int8"),
    Runtime("ONNX Runtime int8-conv", "onnx", "onnx", "int8-conv"),
    Runtime("ExecuTorch fp32", "executorch", "executorch", "fp32"),
    Runtime("ExecuTorch int8", "executorch", "executorch", "int8"),
    Runtime("browser, WASM", "wasm", "onnx", "w16"),
)
COLOURS = {"eager": "tab:gray", "optimize": "tab:blue", "onnx": "tab:orange", "executorch": "tab:green"}
OTHER_COLOUR = "tab:purple"


def miniature(model: str, sizes: Iterable[int]) -> list[Call]:
    """What is called of a whole model; the runtime is filled in later."""
    networks = (TEXT, UNET, DECODER, PICTURE)
    first, *others = [Call("", model, network, size) for size in sizes for network in networks]
    return [first, *(call for call in others if call.network != TEXT)]  # texts have no size


def full_size(sizes: Iterable[int]) -> list[Call]:
    """What is called of the full-size networks: 77 tokens of one text encoder, 377 of all three."""
    found = []
    for size in sizes:
        found += [Call("", FULL, UNET, size, tokens) for tokens in (77, 377)]
        found += [Call("", PEER, UNET, size, SIZES[PEER][1]), Call("", FULL, DECODER, size)]
    return found


def fill_in(call: Call, runtime: Runtime, bundles: Path, web: Path | None) -> Call | str:
    """`call` in `runtime`, or why it cannot be."""
    call = replace(call, runtime=runtime.runtime)
    if runtime.target is None:
        return call
    if runtime.target not in TARGETS:
        return f"no target {runtime.target}"
    for package in TARGETS[runtime.target].packages:
        try:
            version(package)
        except PackageNotFoundError:
            return f"{package} is not installed"
    whole = call.model not in SIZES
    if not whole and runtime.runtime != "onnx":
        return "not measured at full size"
    if runtime.runtime == "wasm" and web is None:
        return "the web app is not built"
    name = f"{Path(call.model).name}-{runtime.target}-{runtime.precision}"
    if TARGETS[runtime.target].fixed:
        name += f"-{call.size}"
    return replace(call, bundle=str(bundles / name), files=None if web is None else str(web))


def web_runtime() -> Path | None:
    """The folder of onnxruntime-web, if there is one."""
    folders = (folder for pattern in WEB for folder in sorted(ROOT.glob(pattern)))
    return next((folder for folder in folders if (folder / calls.RUNTIME).is_file()), None)


def make_bundle(call: Call, runtime: Runtime) -> dict[str, Any]:
    """Makes the bundle that `call` needs, unless it is there."""
    from snapgen.export.model import ExportSettings, export_model

    assert runtime.target is not None and runtime.precision is not None and call.bundle is not None
    folder = Path(call.bundle)

    def notify(message: str) -> None:
        show(f"{EXPORT_MARK} {folder.name}: {message}")

    if folder.is_dir():
        return {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    if call.model in SIZES:
        write_bare(replace(call, size=EXPORT_SIZE), runtime, folder, notify)
        return {}
    side = call.size if TARGETS[runtime.target].fixed else None
    export_model(call.model, folder, ExportSettings(runtime.target, runtime.precision, side, side), notify)
    return {}


def write_bare(call: Call, runtime: Runtime, folder: Path, notify: Notify) -> None:
    """Converts networks with random weights, which no parity check is for; small ones, as at initialisation."""
    pixels, tokens = SIZES[call.model]
    if call.model == PEER:
        parts = [calls.peer_part(call.model, call.size)]
    else:
        pipeline = calls.open_pipeline(call.model)
        wanted = [replace(call, network=network, tokens=tokens) for network in (UNET, DECODER)]
        parts = [calls.pipeline_part(pipeline, part) for part in wanted]
    for part in parts:
        part.module.requires_grad_(False)
    converter, precision = TARGETS[runtime.target or ""].open(), runtime.precision or ""
    with atomic_folder(folder) as written:
        networks = {part.name: converter.convert(part, written, precision, notify).model_dump() for part in parts}
        facts = {"networks": networks, "tokens": tokens, "pixels": pixels}
        write_text(json.dumps(facts), written / BARE)


def measure_all(
    wanted: Sequence[Call], runtimes: Sequence[Runtime], bundles: Path, web: Path | None, rounds: int
) -> list[dict[str, Any]]:
    """A row for every call and runtime; the rounds of a call go through all runtimes in turn."""
    rows = []
    for number, call in enumerate(wanted, 1):
        found = []
        for runtime in runtimes:
            row: dict[str, Any] = {"runtime": runtime.name, "kind": runtime.runtime, **described(call)}
            given = fill_in(call, runtime, bundles, web)
            found.append((row, given))
            if isinstance(given, str):
                row["failure"] = given
            elif given.bundle is not None and not Path(given.bundle).is_dir():
                show(f"{runtime.name}: exporting {call.model}, which takes minutes")
                arguments = ("--inside", json.dumps(asdict(given)), "--runtime", runtime.name)
                row |= in_own_process(__file__, *arguments, notify=show_export)
        for turn in range(rounds):
            for row, given in found:
                if "failure" in row or isinstance(given, str):
                    continue
                result = in_own_process(calls.__file__, json.dumps(asdict(given)))
                seconds = row.get("seconds", []) + result.pop("seconds", [])
                row |= result | {"seconds": seconds}
                done = row.get("failure") or f"{1000 * statistics.median(seconds):.1f} ms"
                show(f"[{number}/{len(wanted)}, round {turn + 1}/{rounds}] {label(row)}, {row['runtime']}: {done}")
        for row, _ in found:
            if "failure" in row:
                row.pop("seconds", None)
                show(f"[{number}/{len(wanted)}] {label(row)}, {row['runtime']}: {row['failure']}")
            rows.append(row)
    return rows


def show(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def show_export(line: str) -> None:
    """A line of an export, without what libraries say."""
    if line.startswith(EXPORT_MARK):
        show(line)


def described(call: Call) -> dict[str, Any]:
    """What a row says of its call."""
    return {"model": Path(call.model).name, "network": call.network, "size": call.size, "tokens": call.tokens}


def label(row: dict[str, Any]) -> str:
    """The name of what a row measures."""
    network = {TEXT: "text encoder", UNET: "UNet", DECODER: "decoder", PICTURE: "whole picture"}[row["network"]]
    if row["model"] == PEER:
        network = "transformer"
    sizes = "" if row["network"] == TEXT else f", {row['size']} px"
    return f"{row['model']} {network}{sizes}" + (f", {row['tokens']} tokens" if row["tokens"] else "")


def groups(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of every call, by its label."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in report["results"]:
        found.setdefault(label(row), []).append(row)
    return found


def table(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    versions = report["versions"]
    heading = f"{report['device']}, {report['threads']} CPU threads, torch {versions['torch']}"
    columns = ("network", "runtime", "median", "fastest to slowest", "to torch eager", "peak memory", "weights")
    cells = []
    for name, rows in groups(report).items():
        eager = next(
            (statistics.median(row["seconds"]) for row in rows if usable(row) and row["kind"] == "eager"), None
        )
        for row in rows:
            if not usable(row):
                cells.append([name, row["runtime"], one_line(row["failure"], 120), *[""] * (len(columns) - 3)])
                continue
            seconds, median = row["seconds"], statistics.median(row["seconds"])
            peak = f"{row['peak_bytes'] / 2**20:.0f} MiB" if row["peak_bytes"] else ""
            measured = [
                milliseconds(median),
                f"{milliseconds(min(seconds))} to {milliseconds(max(seconds))}",
                f"{median / eager:.2f}x" if eager else "",
                peak,
                f"{row['weight_bytes'] / 1e6:.1f} MB",
            ]
            cells.append([name, row["runtime"], *measured])
    return page(__file__, heading, markdown_table(columns, cells))


def usable(row: dict[str, Any]) -> bool:
    """Whether a row has been measured."""
    return "failure" not in row


def milliseconds(seconds: float) -> str:
    """`seconds` for the table: three digits or whole milliseconds."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def plot(report: dict[str, Any]) -> Figure:
    """The latency of every call, a panel each, with its fastest and slowest repetition."""
    found = {name: [row for row in rows if usable(row)] for name, rows in groups(report).items()}
    found = {name: rows for name, rows in found.items() if rows}
    height = max(1, (len(found) + 1) // 2)
    figure = Figure(figsize=(11, 2.2 * height), dpi=130, layout="constrained")
    panels = figure.subplots(height, 2, squeeze=False).ravel()
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    for axes, (name, rows) in zip(panels, found.items(), strict=False):
        medians = [1000 * statistics.median(row["seconds"]) for row in rows]
        below = [middle - 1000 * min(row["seconds"]) for middle, row in zip(medians, rows, strict=True)]
        above = [1000 * max(row["seconds"]) - middle for middle, row in zip(medians, rows, strict=True)]
        colours = [COLOURS.get(row["kind"], OTHER_COLOUR) for row in rows]
        names = [row["runtime"] for row in rows]
        axes.barh(names, medians, xerr=[below, above], color=colours, error_kw={"elinewidth": 0.8, "capsize": 2})
        for position, middle in enumerate(medians):
            axes.annotate(f" {middle:.3g}", (middle, position), (2, 5), textcoords="offset points", fontsize=6)
        axes.invert_yaxis()
        axes.set_title(f"{name}, ms", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report['device']}, {report['threads']} CPU threads", fontsize=9)
    return figure


def main() -> None:
    """Measure and write the results."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="mini", help="a bundled model or a model folder")
    parser.add_argument("--sizes", help="pixels a side, separated by commas (128,256; with --full 512,1024)")
    parser.add_argument("--full", action="store_true", help="the full-size networks instead")
    parser.add_argument("--bundles", type=Path, default=Path("runs/bundles"), help="folder in which bundles are kept")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (all cores)")
    parser.add_argument("--rounds", type=int, default=5, help="how often every runtime has its turn (5)")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls in a turn (3)")
    parser.add_argument("--only", help="runtimes: those with one of these in their name, separated by commas")
    parser.add_argument("--inside", help=SUPPRESS)  # the call that this process makes a bundle for
    parser.add_argument("--runtime", help=SUPPRESS)  # and its runtime's name
    options = parser.parse_args()
    if options.inside:
        runtime = next(runtime for runtime in RUNTIMES if runtime.name == options.runtime)
        print(json.dumps(make_bundle(Call(**json.loads(options.inside)), runtime)))
        return
    sizes = [int(size) for size in (options.sizes or ("512,1024" if options.full else "128,256")).split(",")]
    wanted = full_size(sizes) if options.full else miniature(options.model, sizes)
    wanted = [replace(call, threads=options.threads, repeats=options.repeats) for call in wanted]
    parts = options.only.split(",") if options.only else [""]
    runtimes = [runtime for runtime in RUNTIMES if any(part in runtime.name for part in parts)]
    results = measure_all(wanted, runtimes, options.bundles, web_runtime(), options.rounds)
    report = machine_facts() | {"threads": options.threads, "rounds": options.rounds, "results": results}
    stem = options.out / ("runtimes_full" if options.full else "runtimes")
    write_results(stem, report, table(report), plot(report))


if __name__ == "__main__":
    main()
