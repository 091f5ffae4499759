"""What the benchmarks share: the option `--out`, facts of the machine, and how results are written."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import torch

from snapgen.files import atomic_file, write_text
from snapgen.machine.device import device_name, library_versions
from snapgen.messages import Notify

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path("benchmarks/results")  # from the repository's root, where scripts are called
OUT_OF_MEMORY = ("OutOfMemory", "MemoryError", "allocate memory", "bad_alloc")  # in an error's last line


def make_parser(description: str | None) -> ArgumentParser:
    """A parser with a script's docstring as its help and the option `--out`, a folder."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    return parser


def machine_facts(device: str | torch.device = "cpu", *libraries: str) -> dict[str, Any]:
    """The device, CPU threads, system and library versions that a measurement depends on; `libraries` names more."""
    return {
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": library_versions() | {library: version(library) for library in libraries},
    }


def in_own_process(script: str, *arguments: str, notify: Notify = lambda line: None) -> dict[str, Any]:
    """The object that `script` prints last, as JSON, or {"failure": why there is none}.

    When memory is short, the system ends that process first. `notify` gets each line of its standard error.
    """
    command = [sys.executable, script, *arguments]
    last = ["sh", "-c", 'echo 1000 > /proc/self/oom_score_adj 2>/dev/null; exec "$@"', "sh", *command]
    lines: list[str] = []
    with TemporaryFile("w+") as printed:
        with subprocess.Popen(last, stdout=printed, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line.rstrip())
                notify(lines[-1])
        printed.seek(0)
        if process.returncode == 0:
            found: dict[str, Any] = json.loads(printed.read().splitlines()[-1])
            return found
    errors = [line for line in lines if line and not line[0].isspace()]  # not a script's stack
    reason = (errors or [f"ended with status {process.returncode}"])[-1]
    fits = process.returncode not in (-9, 137) and not any(part in reason for part in OUT_OF_MEMORY)
    return {"failure": reason if fits else "does not fit in memory"}


def page(script: str, heading: str, lines: Iterable[str]) -> str:
    """A result as Markdown: the file name of `script` in a comment, `heading`, an empty line, `lines`."""
    return "\n".join([f"<!-- python benchmarks/{Path(script).name} -->", heading, "", *lines])


def write_results(stem: Path, report: Any, text: str, figure: Figure | None = None) -> None:
    """Writes `report` as `stem`.json, `text` as .md and `figure` as .png, each whole or not at all; prints `text`."""
    write_text(json.dumps(report, indent=1), stem.with_name(f"{stem.name}.json"))
    write_text(text, stem.with_name(f"{stem.name}.md"))
    if figure is not None:
        with atomic_file(stem.with_name(f"{stem.name}.png")) as temporary:
            figure.savefig(temporary)
    print(text)
