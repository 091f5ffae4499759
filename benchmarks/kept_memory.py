"""What page faults cost on a CPU: the same work with and without `snapgen.machine.memory.keep_freed_memory`.

    python benchmarks/kept_memory.py [--repeats 5] [--out benchmarks/results]

ReLU of a 96-channel map of 1024 px, the full-size decoder, and one step of the full-size UNet at 1024 px, in bf16, each
in a process of its own, because the setting lasts for the process. Writes kept_memory.json and .md.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from argparse import SUPPRESS
from collections.abc import Callable
from typing import Any

import torch
from shared import machine_facts, make_parser, page, write_results

from snapgen.machine.memory import keep_freed_memory
from snapgen.messages import markdown_table
from snapgen.models.presets import create_autoencoder, create_unet
from snapgen.profiling.measure import Conditions, random_network

WARMUP = 3  # until the heap has its size


def workload(name: str) -> Callable[[], object]:
    """One call of what is measured."""
    conditions, dtype = Conditions(dtype=torch.bfloat16), torch.bfloat16
    if name == "ReLU":
        x = torch.randn(1, 96, 1024, 1024, dtype=dtype)
        return lambda: torch.relu(x)
    latent = torch.randn(1, 16, 128, 128, dtype=dtype).to(memory_format=torch.channels_last)
    if name == "decoder":
        decoder = random_network(lambda: create_autoencoder("decoder").decoder, conditions)
        return lambda: decoder(latent)
    unet = random_network(lambda: create_unet("t2i"), conditions)
    states = torch.randn(1, 77, unet.config.cross_attention_dim, dtype=dtype)
    return lambda: unet(latent, torch.tensor(500.0), states)


@torch.no_grad()
def inside(name: str, kept: bool, repeats: int) -> dict[str, float]:
    """Median seconds and page faults of a call, in this process."""
    if kept and not keep_freed_memory():
        raise SystemExit("kept_memory.py: this system's C library has no such setting")
    run, times = workload(name), []
    for _ in range(WARMUP):
        run()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"median_s": statistics.median(times), "page_faults": faults / repeats}


def main() -> None:
    """Measure each in a process of its own; print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--inside", nargs=2, help=SUPPRESS)  # what this process measures, and how
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(options.inside[0], options.inside[1] == "kept", options.repeats)))
        return
    rows: list[dict[str, Any]] = []
    cells = []
    for name in ("ReLU", "decoder", "UNet step"):
        row: dict[str, Any] = {"name": name}
        for how in ("default", "kept"):
            command = [sys.executable, __file__, "--repeats", str(options.repeats), "--inside", name, how]
            row[how] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        slow, fast = row["default"], row["kept"]
        gain = slow["median_s"] / fast["median_s"]
        times = [f"{slow['median_s']:.3f} s", f"{fast['median_s']:.3f} s", f"{gain:.2f}x"]
        cells.append([name, *times, f"{slow['page_faults']:,.0f} -> {fast['page_faults']:,.0f}"])
        rows.append(row)
    report = machine_facts() | {"rows": rows}
    heading = f"{report['device']}, {report['threads']} threads, torch {report['versions']['torch']}"
    table = markdown_table(("work", "default", "kept", "gain", "page faults a call"), cells)
    write_results(options.out / "kept_memory", report, page(__file__, heading, table))


if __name__ == "__main__":
    main()
