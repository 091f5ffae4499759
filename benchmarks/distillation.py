"""What distillation gives, at the miniature's size: the paper's Tab. 3 and Fig. 9 in small.

    python benchmarks/distillation.py kd --teacher runs/mini/teacher/model [--steps 2000] [--seeds 0,1,2]
    python benchmarks/distillation.py kd --teacher mini-base --model mini-small --initial none --draws 1
    python benchmarks/distillation.py steps --student runs/mini/step/model [--base mini-base]

`kd` trains the student of recipes/mini/distill.yaml without a teacher and under it, with the losses of VARIANTS, for as
many steps and with the same seeds. The teacher is scored too, and must beat what the students start from. `steps`
scores a base model and its step-distilled student at several numbers of steps. Scores are the embedded world's
benchmark, by its detector and its second judge, the classifier, and the Frechet distance to true renders (features of
the classifier), which tells models apart where benchmark scores are low; of the students of `kd` also the loss of the
task on held-out compositions at the end of training and, of the taught ones, the output loss there (Eq. 4).

With `--draws` the taught students see as many fixed draws of noise of a picture; to be fair to the one without a
teacher, no draw should come round twice.

Trainings and evaluations lie in `--work` and go on there after an interruption; what is finished is not done again, so
other options need another folder. All students of one seed come before those of the next, and the report is written
after each.
Writes distillation_kd or distillation_steps as .json, .md and .png to `--out`. Needs the emoji font.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from shared import RESULTS, machine_facts, write_results

from snapgen.evaluation.statistics import interval_of_values
from snapgen.machine.device import default_device
from snapgen.messages import between, markdown_table
from snapgen.train.report import read_metrics
from snapgen.train.stages import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes" / "mini"
DISTILL = RECIPES / "distill.yaml"
Losses = dict[str, Any] | None  # settings of `distillation`; None: the stage flow

WEIGHTINGS: dict[str, dict[str, Any]] = {
    "constant weights": {"scaling": "constant"},
    "timestep-aware": {"scaling": "timestep", "magnitudes": "running"},
    "timestep-aware by samples": {"scaling": "timestep", "magnitudes": "sample", "max_ratio": None},
}
VARIANTS: dict[str, Losses] = {
    "no teacher": None,
    **{
        f"{losses}, {weighting}": {"output": True, "features": losses != "output"} | settings
        for losses in ("output", "output and features")
        for weighting, settings in WEIGHTINGS.items()
    },
}
SHARED = ("model", "initial", "autoencoder", "text", "cache", "data", "timesteps", "caption_dropout", "train")

MEASURES = ("scene score", "second judge", "Frechet distance", "held-out loss", "output loss")

Report = dict[str, Any]


def snapgen(*arguments: object, processes: int = 1) -> None:
    """Runs the command line, in several processes if asked to; its progress is shown."""
    scripts = Path(sys.executable).parent
    command = [str(scripts / "snapgen"), *map(str, arguments)]
    if processes > 1:
        command = [str(scripts / "torchrun"), "--standalone", f"--nproc_per_node={processes}", "--no-python", *command]
    subprocess.run(command, check=True, stdout=sys.stderr)


def evaluation(model: str, suite: str, folder: Path, *arguments: object) -> Report:
    """The report of `suite` on `model`, made if it is not in `folder` yet."""
    path = folder / suite / "report.json"
    if not path.exists():
        snapgen("evaluate", model, "--suite", suite, "--out", folder, *arguments)
    report: Report = json.loads(path.read_text())
    return report


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """`settings` as arguments of `snapgen train`."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def train(variant: str, seed: int, options: argparse.Namespace) -> Path:
    """The student of `variant`, trained if it is not there yet."""
    run: Path = options.work / f"{variant.replace(', ', '_').replace(' ', '-')}_{seed}"
    losses = VARIANTS[variant]
    recipe = load_recipe(DISTILL).model_dump(mode="json")
    initial = None if options.initial == "none" else options.initial
    settings = {key: recipe[key] for key in SHARED} | {"model": options.model, "initial": initial, "seed": seed}
    settings["data"]["nouns"] = options.nouns
    settings["train"] |= {"steps": options.steps, "batch_size": options.batch}
    if losses is not None:
        settings |= {"teacher": options.teacher, "distillation": losses}
        if options.draws:  # the teacher is asked once, for all students
            settings |= {"draws": options.draws, "target_cache": str(options.work / "targets")}
    if not (run / "model").exists():
        file = RECIPES / "flow.yaml" if losses is None else DISTILL
        more = [part for setting in options.set for part in ("--set", setting)]
        snapgen("train", file, *overrides(settings), *more, "--out", run, "--resume", processes=options.processes)
    return run / "model"


def scene_options(options: argparse.Namespace) -> list[object]:
    """Arguments of the suites on scenes: the nouns, the seeds."""
    nouns = [] if options.nouns is None else ["--nouns", ",".join(options.nouns)]
    return [*nouns, "--seeds", ",".join(map(str, options.picture_seeds))]


def scene_report(model: str, folder: Path, options: argparse.Namespace, *arguments: object) -> Report:
    """The report of the suite scenes on `model`."""
    return evaluation(model, "scenes", folder, "--count", options.count, *arguments, *scene_options(options))


def merits(scenes: Report) -> tuple[float, float]:
    """By which models are ranked: the score, then the second judge's opinion."""
    return scenes["score"], scenes["classifier"]["score"]


def measured(model: str, folder: Path, options: argparse.Namespace, *arguments: object) -> tuple[Report, Report]:
    """The reports of the suites scenes and fid on `model`."""
    scenes = scene_report(model, folder, options, *arguments)
    shared = [*arguments, *scene_options(options)]
    return scenes, evaluation(model, "fid", folder, "--count", options.pictures, *shared)


def distillation(options: argparse.Namespace) -> None:
    """Tab. 3: students under several losses, over several seeds of training; a report after every seed."""
    folder = options.work / "evaluation"
    scenes, distance = measured(options.teacher, folder / "teacher", options)
    rows: list[Report] = [
        {"name": name, "scores": [], "opinions": [], "distances": [], "heldout": [], "output": [], "by_category": []}
        for name in ("the teacher", *VARIANTS)
    ]
    add(rows[0], scenes, distance)
    if options.initial != "none":
        before = scene_report(options.initial, folder / "before", options)
        if merits(scenes) <= merits(before):
            raise SystemExit(f"the teacher does not beat {options.initial} on the scene benchmark: train it longer")
    for done, seed in enumerate(options.seeds, start=1):
        # With features first: they fill the store of the teacher's answers for all
        for row in sorted(rows[1:], key=lambda row: not (VARIANTS[row["name"]] or {}).get("features", False)):
            model = train(row["name"], seed, options)
            add(row, *measured(str(model), folder / model.parent.name, options))
            last = read_metrics(model.parent / "metrics.jsonl")[-1]
            row["heldout"].append(last["eval/heldout"])
            row["output"] += [last["eval/heldout/output"]] if "eval/heldout/output" in last else []
        report_students(rows, options.seeds[:done], distance["truth"], options)


def add(row: Report, scenes: Report, distance: Report) -> None:
    """Adds one more training's measurements to `row`."""
    row["scores"].append(scenes["score"])
    row["opinions"].append(scenes["classifier"]["score"])
    row["distances"].append(distance["score"])
    row["by_category"].append(scenes["categories"])


def report_students(rows: list[Report], seeds: list[int], truth: float, options: argparse.Namespace) -> None:
    """Writes the comparison over the trainings that are done."""
    forms = {"scores": ".1%", "opinions": ".1%", "distances": ".4g", "heldout": ".4g", "output": ".4g"}
    categories = list(rows[0]["by_category"][0])
    cells = []
    for row in rows:
        line = [row["name"]]
        for key, form in forms.items():
            line.append(f"{fmean(row[key]):{form}}" if row[key] else "")  # the teacher's losses are not known
            line.append(between(interval_of_values(row[key]), form))
        cells.append([*line, *(f"{fmean(each[name] for each in row['by_category']):.0%}" for name in categories)])
    spread = "95 % interval"
    measures = [part for name in MEASURES for part in (name, spread)]
    lines = markdown_table(("student", *measures, *categories), cells)
    origin = "from scratch" if options.initial == "none" else f"from {options.initial}"
    trained = "one seed of training" if len(seeds) == 1 else f"mean over {len(seeds)} seeds of training"
    title = (
        f"Students ({options.model}, {origin}) after {options.steps} steps of {options.batch}, {trained} "
        f"(true renders have the distance {truth:.4g})"
    )
    figure = Figure(figsize=(15, 3), dpi=120, layout="constrained")
    for axes, key, label in zip(figure.subplots(1, len(forms), sharey=True), forms, MEASURES, strict=True):
        shown = [row for row in rows if row[key]]
        axes.barh([row["name"] for row in shown], [fmean(row[key]) for row in shown], color="tab:blue")
        for row in shown:
            axes.plot(row[key], [row["name"]] * len(row[key]), ".", color="black")
        axes.set_xlabel(label)
    axes.invert_yaxis()  # of all
    content = {"seeds_done": seeds, "truth": truth, "rows": rows}
    write("distillation_kd", content, title, lines, figure, options)


def few_steps(options: argparse.Namespace) -> None:
    """Fig. 9: base model and step-distilled student at several numbers of steps."""
    rows: list[Report] = []
    for name, model, at in (
        ("base", options.base, options.at),
        ("step-distilled", options.student, options.student_at),
    ):
        for steps in at:
            scenes, distance = measured(model, options.work / f"{name}_{steps}", options, "--steps", steps)
            rows.append(
                {
                    "name": name,
                    "steps": steps,
                    "guidance": scenes["manifest"]["guidance"],
                    "score": scenes["score"],
                    "interval": scenes["interval"],
                    "opinion": scenes["classifier"]["score"],
                    "categories": scenes["categories"],
                    "distance": distance["score"],
                    "distance_interval": distance["interval"],
                    "truth": distance["truth"],
                }
            )
            print(f"{name} at {steps}: {scenes['score']:.1%}, {distance['score']:.4g}", file=sys.stderr, flush=True)
    lines = markdown_table(
        ("model", "steps", "guidance", *MEASURES[:1], "95 % interval", *MEASURES[1:3], "95 % interval"),
        [
            (
                row["name"],
                str(row["steps"]),
                f"{row['guidance']:g}",
                f"{row['score']:.1%}",
                between(row["interval"], ".1%"),
                f"{row['opinion']:.1%}",
                f"{row['distance']:.4g}",
                between(row["distance_interval"], ".4g"),
            )
            for row in rows
        ],
    )
    title = (
        f"Before and after step distillation: {len(options.picture_seeds)} seeds of {options.count} held-out prompts a "
        f"category, and of {options.pictures} pictures for the distance (true renders get {rows[0]['truth']:.4g})"
    )
    figure = Figure(figsize=(8, 3.4), dpi=120, layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("score", "distance"), ("scene score", "Frechet distance"), strict=True
    ):
        for name in dict.fromkeys(row["name"] for row in rows):
            own = [row for row in rows if row["name"] == name]
            axes.plot([row["steps"] for row in own], [row[key] for row in own], "o-", label=name)
        axes.set_xscale("log", base=2)
        ticks = sorted({*options.at, *options.student_at})
        axes.set_xticks(ticks, [str(steps) for steps in ticks])
        axes.set(xlabel="steps", ylabel=label)
        axes.legend(frameon=False)
    write("distillation_steps", {"rows": rows}, title, lines, figure, options)


def write(name: str, report: Report, title: str, lines: list[str], figure: Figure, options: argparse.Namespace) -> None:
    """`report`, a table and a plot."""
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    del asked["run"]
    text = "\n".join([f"# {title}", "", *lines])
    content = {"options": asked} | machine_facts(default_device()) | report
    write_results(options.out / name, content, text, figure)


def numbers(text: str) -> list[int]:
    """The whole numbers of "1,2,3"."""
    return [int(part) for part in text.split(",")]


def words(text: str) -> list[str]:
    """The words of "apple,fish"."""
    return text.split(",")


def main() -> None:
    """One of the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    taught = commands.add_parser("kd")
    taught.add_argument("--teacher", required=True, help="pipeline folder, or mini-base, the bundled one")
    taught.add_argument("--model", default="mini", help="preset of the students")
    taught.add_argument("--initial", default="mini-base", help="where all students start; none: from scratch")
    taught.add_argument("--steps", type=int, default=2000)
    taught.add_argument("--batch", type=int, default=32)
    taught.add_argument(
        "--draws", type=int, help="of noise for each picture, the teacher's answers to which are stored"
    )
    taught.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all trainings' recipes")
    taught.add_argument("--processes", type=int, default=1, help="of each training; on a CPU, one a core")
    taught.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="of training")
    taught.set_defaults(run=distillation, work=Path("runs/distillation/kd"))
    few = commands.add_parser("steps")
    few.add_argument("--student", required=True, help="pipeline folder")
    few.add_argument("--base", default="mini-base")
    few.add_argument("--at", type=numbers, default=[1, 2, 4, 8, 28], help="numbers of steps of the base model")
    few.add_argument("--student-at", type=numbers, default=[1, 2, 4, 8], help="of the student")
    few.set_defaults(run=few_steps, work=Path("runs/distillation/steps"))
    for command in (taught, few):
        command.add_argument("--nouns", type=words, help="of all scenes, by default the miniature's 64")
        command.add_argument("--count", type=int, default=20, help="prompts a category")
        command.add_argument("--pictures", type=int, default=300, help="for the Frechet distance, a seed")
        command.add_argument("--picture-seeds", type=numbers, default=[0, 1, 2])
        command.add_argument("--work", type=Path)
        command.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
