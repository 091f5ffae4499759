"""Where a step's time goes, by kind of operator: the profile behind the latencies of `peers.py`.

    python benchmarks/operators.py ["SnapGen,Sana-0.6B"] [--size 1024] [--dtype bfloat16] [--out benchmarks/results]

Each network of `peers.py`, channels-last with random weights, makes one step under PyTorch's profiler on the CPU, after
two that warm up. Seconds are those in which an operator itself ran, without those that it called.
Writes operators_cpu.json and .md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peers import PEERS, place
from shared import machine_facts, make_parser, page, write_results
from torch.profiler import ProfilerActivity, profile

from snapgen.machine.memory import keep_freed_memory
from snapgen.messages import markdown_table
from snapgen.profiling.measure import Conditions, random_network

WARMUP = 2
ATTENTION = ("scaled_dot_product", "flash_attention")
KINDS = {  # of PyTorch's other operators, by a part of their names
    "matrix products": ("addmm", "::mm", "bmm", "linear"),
    "norms": ("norm", "rsqrt", "var", "mean"),
    "activations": ("silu", "gelu", "relu", "sigmoid"),
    "copies": ("copy_", "contiguous", "::cat", "clone"),
}
OTHER = "everything else"


def kind_of(name: str, shapes: Sequence[Sequence[int]]) -> str:
    """The row of the table that an operator called `name` with inputs of `shapes` belongs to."""
    if "conv" in name and len(shapes) > 1 and len(shapes[1]) == 4:
        weight = shapes[1]
        if weight[1] == 1 < weight[0]:
            return f"depthwise convolutions {weight[2]}x{weight[3]}"
        return f"convolutions {weight[2]}x{weight[3]}"
    if any(part in name for part in ATTENTION) and len(shapes) > 1 and len(shapes[1]) == 4:
        return f"attention to {shapes[1][-2]} tokens"
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def profiled(name: str, size: int, conditions: Conditions) -> dict[str, Any]:
    """One step of the peer `name`: its seconds, and by kind of operator seconds and calls."""
    network, inputs = random_network(PEERS[name].build, conditions), place(PEERS[name].inputs(1, size), conditions)
    with torch.inference_mode():
        for _ in range(WARMUP):
            network(**inputs)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as run:
            network(**inputs)
    kinds: dict[str, dict[str, float]] = {}
    for event in run.key_averages(group_by_input_shape=True):
        row = kinds.setdefault(kind_of(event.key, event.input_shapes), {"seconds": 0.0, "calls": 0})
        row["seconds"] += event.self_cpu_time_total / 1e6
        row["calls"] += event.count
    return {"name": name, "kinds": kinds}


def summary(report: dict[str, Any]) -> str:
    """The report as Markdown: seconds and share of every kind, a column a network."""
    results = report["results"]
    totals = [sum(row["seconds"] for row in result["kinds"].values()) for result in results]
    kinds = {kind for result in results for kind in result["kinds"]}
    spent = {kind: [result["kinds"].get(kind, {}).get("seconds", 0.0) for result in results] for kind in kinds}
    rows = [
        (kind, *(f"{seconds:.2f} s, {seconds / total:.0%}" for seconds, total in zip(spent[kind], totals, strict=True)))
        for kind in sorted(kinds, key=lambda kind: -spent[kind][0])
    ]
    heading = f"{report['device']}, {report['threads']} CPU threads, {report['dtype']}, {report['size']} px"
    rows.append(("all", *(f"{total:.2f} s" for total in totals)))
    lines = markdown_table(("operators", *(result["name"] for result in results)), rows)
    return page(__file__, heading, lines)


def main() -> None:
    """Profile the networks one after the other and write the results."""
    parser = make_parser(__doc__)
    parser.add_argument("names", nargs="?", default="SnapGen,Sana-0.6B")
    parser.add_argument("--size", type=int, default=1024, help="pixels a side, a multiple of 32")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    options = parser.parse_args()
    keep_freed_memory()
    conditions = Conditions("cpu", getattr(torch, options.dtype))
    results = [profiled(name, options.size, conditions) for name in options.names.split(",")]
    report = machine_facts() | {"dtype": options.dtype, "size": options.size, "results": results}
    write_results(options.out / "operators_cpu", report, summary(report))


if __name__ == "__main__":
    main()
