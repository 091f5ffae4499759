"""How far a fixed number of minutes takes the miniature on this machine: records of what was tried, change by change.

    python benchmarks/speedrun.py "all as it is" --minutes 60
    python benchmarks/speedrun.py "AdamW" --minutes 60 --against "all as it is" --set flow.train.optimizer=adamw
    python benchmarks/speedrun.py "AdamW" --minutes 20 --autoencoder DIR --text DIR --set ...    # the UNet alone
    python benchmarks/speedrun.py --table    # docs/speedrun.md anew, from the records

Trains the stages autoencoder, text and flow from nothing (or flow alone, on given ones) by `snapgen reproduce`, which
sets their steps to what fits into the minutes. Then it measures scene benchmark, second judge, Frechet distance, PSNR,
binding (`snapgen.train.binding`) and held-out loss. A record goes to benchmarks/results/speedrun.json, the table of all
to docs/speedrun.md. An interrupted run continues when it is called again. Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from snapgen.files import write_text
from snapgen.messages import between, markdown_table
from snapgen.reproduce.plan import KEPT, OPTIONAL, Plan, choose_stages, start
from snapgen.reproduce.report import Report
from snapgen.reproduce.run import Reproduction
from snapgen.train.report import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "speedrun.json"
PAGE = ROOT / "docs" / "speedrun.md"
INTRODUCTION = """# Speedrun

How far a fixed number of minutes takes the miniature on two CPU cores, and what each change gained. The first column
says what differs from the run named in the second; everything else is the same. `python benchmarks/speedrun.py --help`
shows the commands; the records, with the settings of each, are in
[benchmarks/results/speedrun.json](../benchmarks/results/speedrun.json).

Score: the scene benchmark over all 64 nouns on held-out compositions, 28 guided steps, with its 95 % interval. Judge:
the second judge. Binding: the share of held-out pictures whose loss rises when the caption is made wrong in one point,
the mean of the six kinds, and the lowest (chance is 50 %).
"""


def read_records() -> list[dict[str, Any]]:
    """All records, the oldest first."""
    return json.loads(RECORDS.read_text()) if RECORDS.exists() else []


def make_record(options: argparse.Namespace, report: Report, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of a run: its report, and the last evaluation among the `metrics` of its stage flow."""
    (model,) = report["models"]
    last = next(line for line in reversed(metrics) if "eval/heldout" in line)
    prefix = "eval/binding/"
    return {
        "name": options.name,
        "against": options.against,
        "minutes": options.minutes,
        "given": sorted(stage for stage in KEPT if getattr(options, stage) is not None),
        "settings": options.set,
        "device": report["device"],
        "stages": {
            stage["stage"]: {key: stage[key] for key in ("steps", "samples", "seconds")} for stage in report["stages"]
        },
        **{
            key: model[key] for key in ("score", "interval", "categories", "count", "second_judge", "distance", "truth")
        },
        "psnr": report["autoencoder"]["psnr"],
        "heldout": last["eval/heldout"],
        "binding": {key.removeprefix(prefix): value for key, value in last.items() if key.startswith(prefix)},
    }


def write_page(records: list[dict[str, Any]]) -> None:
    """docs/speedrun.md, a table for each number of minutes and what was given."""
    lines = [INTRODUCTION]
    for minutes, given in sorted({(record["minutes"], tuple(record["given"])) for record in records}):
        chosen = [r for r in records if (r["minutes"], tuple(r["given"])) == (minutes, given)]
        lines += [f"## {minutes:g} minutes, {'given ' + ' and '.join(given) if given else 'from nothing'}", ""]
        rows = [
            (
                record["name"],
                record["against"] or "",
                f"{record['stages']['flow']['samples']:,}",
                f"{record['score']:.1%} ({between(record['interval'], '.0%')} of {record['count']})",
                f"{record['second_judge']:.1%}",
                f"{record['distance']:.3f}",
                f"{record['psnr']:.2f}",
                f"{record['heldout']:.4f}",
                f"{fmean(record['binding'].values()):.0%}, {min(record['binding'].values()):.0%}",
            )
            for record in chosen
        ]
        header = ("what differs", "from", "samples", "score", "judge", "distance", "PSNR, dB", "loss", "binding")
        lines += [*markdown_table(header, rows), "", f"On {', '.join(dict.fromkeys(r['device'] for r in chosen))}.", ""]
    write_text("\n".join(lines), PAGE)


def main() -> None:
    """Read the command line, run, and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the record: what differs")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training")
    parser.add_argument("--against", help="name of the record that it differs from")
    parser.add_argument("--autoencoder", type=Path, help="folder of an autoencoder to take")
    parser.add_argument("--text", type=Path, help="folder of a text stage's model to take")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="override a setting")
    parser.add_argument("--count", type=int, default=20, help="prompts a category")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "speedrun", help="folder for the runs")
    parser.add_argument("--table", action="store_true", help="only write docs/speedrun.md anew")
    options = parser.parse_args()
    records = read_records()
    if options.table:
        write_page(records)
        return
    if options.name is None:
        parser.error("give the record a name: what differs")
    if options.against is not None and options.against not in {record["name"] for record in records}:
        parser.error(f"--against {options.against}: there is no such record")
    given = {
        stage: str(getattr(options, stage).resolve()) for stage in ("autoencoder", "text") if getattr(options, stage)
    }
    folder = options.work / re.sub(r"\W+", "_", options.name.lower())
    if not folder.exists():
        plan = Plan(
            name="mini",
            minutes=options.minutes,
            stages=choose_stages(OPTIONAL, given=given),
            given=given,
            count=options.count,
            overrides=tuple(options.set),
        )
        start(folder, ROOT / "recipes" / "mini", plan)
    report = Reproduction(folder, lambda text: print(text, file=sys.stderr, flush=True)).run()
    record = make_record(options, report, read_metrics(folder / "flow" / "metrics.jsonl"))
    records = [other for other in records if other["name"] != record["name"]] + [record]
    write_text(json.dumps(records, indent=1), RECORDS)
    write_page(records)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
