"""What distillation gives, at the miniature's size: the paper's Tab. 3 and Fig. 9 in small.

    python benchmarks/distillation.py kd --teacher runs/mini/teacher/model [--steps 2000] [--seeds 0,1,2]
    python benchmarks/distillation.py steps --student runs/mini/step/model [--base mini-base]

`kd` trains the student of recipes/mini/distill.yaml without a teacher and under it, with the losses of VARIANTS, for as
many steps and with the same seeds, and scores every one on the embedded world's benchmark. The teacher is scored too.
`steps` scores a base model and its step-distilled student at several numbers of steps: the scene benchmark, and the
Frechet distance to true renders (features of the bundled encoder), which tells models apart where scores are low.

Trainings and evaluations lie in `--work` and go on there after an interruption; what is finished is not done again.
Writes distillation_kd or distillation_steps as .json, .md and .png to `--out`. Needs the emoji font.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from snapgen.evaluation.report import between, library_versions, table
from snapgen.evaluation.statistics import interval_of_values
from snapgen.weights import atomic_file

RECIPES = Path(__file__).parents[1] / "recipes" / "mini"
DISTILL = RECIPES / "distill.yaml"
VARIANTS = {  # settings of `distillation`; None: the stage flow
    "no teacher": None,
    "output, constant weights": {"output": True, "features": False, "scaling": "constant"},
    "output, timestep-aware": {"output": True, "features": False, "scaling": "timestep"},
    "output and features, constant weights": {"output": True, "features": True, "scaling": "constant"},
    "output and features, timestep-aware": {"output": True, "features": True, "scaling": "timestep"},
}
SHARED = ("model", "initial", "autoencoder", "text", "cache", "data", "timesteps", "caption_dropout", "train")

Report = dict[str, Any]


def snapgen(*arguments: object) -> None:
    """Runs the command line; its progress is shown."""
    subprocess.run([Path(sys.executable).with_name("snapgen"), *map(str, arguments)], check=True, stdout=sys.stderr)


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
    recipe = yaml.safe_load(DISTILL.read_text())
    settings = {key: recipe[key] for key in SHARED} | {"initial": options.initial, "seed": seed}
    settings["train"] |= {"steps": options.steps, "batch_size": options.batch}
    if losses is not None:
        settings |= {"teacher": options.teacher, "distillation": losses}
    if not (run / "model").exists():
        file = RECIPES / "flow.yaml" if losses is None else DISTILL
        snapgen("train", file, *overrides(settings), "--out", run, "--resume")
    return run / "model"


def scene_options(options: argparse.Namespace) -> list[object]:
    """Arguments of the suites on scenes: the recipe's nouns, the seeds."""
    nouns = yaml.safe_load(DISTILL.read_text())["data"]["nouns"]
    return ["--nouns", ",".join(nouns), "--seeds", ",".join(map(str, options.picture_seeds))]


def distillation(options: argparse.Namespace) -> None:
    """Tab. 3: students under several losses, over several seeds of training."""
    asked = ["--count", options.count, *scene_options(options)]
    folder = options.work / "evaluation"
    taught = evaluation(options.teacher, "scenes", folder / "teacher", *asked)
    rows: list[Report] = [{"name": "the teacher", "scores": [taught["score"]], "categories": taught["categories"]}]
    for variant in VARIANTS:
        reports = []
        for seed in options.seeds:
            model = train(variant, seed, options)
            reports.append(evaluation(str(model), "scenes", folder / model.parent.name, *asked))
        rows.append(
            {
                "name": variant,
                "scores": [report["score"] for report in reports],
                "categories": {
                    name: sum(report["categories"][name] for report in reports) / len(reports)
                    for name in reports[0]["categories"]
                },
            }
        )
    for row in rows:
        row["score"] = sum(row["scores"]) / len(row["scores"])
        row["interval"] = interval_of_values(row["scores"])
    categories = list(rows[0]["categories"])
    lines = table(
        ("student", "score", "95 % interval", *categories),
        [
            (
                row["name"],
                f"{row['score']:.1%}",
                between(row["interval"], ".1%"),
                *(f"{row['categories'][name]:.0%}" for name in categories),
            )
            for row in rows
        ],
    )
    title = f"Students after {options.steps} steps of {options.batch}, mean over {len(options.seeds)} seeds of training"
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.barh([row["name"] for row in rows], [row["score"] for row in rows], color="tab:blue")
    for place, row in enumerate(rows):
        axes.plot(row["scores"], [place] * len(row["scores"]), ".", color="black")
    axes.invert_yaxis()
    axes.set_xlabel("scene score, held-out compositions")
    write(
        "distillation_kd", {"steps": options.steps, "batch": options.batch, "rows": rows}, title, lines, figure, options
    )


def few_steps(options: argparse.Namespace) -> None:
    """Fig. 9: base model and step-distilled student at several numbers of steps."""
    rows: list[Report] = []
    for name, model, at in (
        ("base", options.base, options.at),
        ("step-distilled", options.student, options.student_at),
    ):
        for steps in at:
            folder = options.work / f"{name}_{steps}"
            shared = ["--steps", steps, *scene_options(options)]
            scenes = evaluation(model, "scenes", folder, "--count", options.count, *shared)
            distance = evaluation(model, "fid", folder, "--count", options.pictures, *shared)
            rows.append(
                {
                    "name": name,
                    "steps": steps,
                    "guidance": scenes["manifest"]["guidance"],
                    "score": scenes["score"],
                    "interval": scenes["interval"],
                    "categories": scenes["categories"],
                    "distance": distance["score"],
                    "distance_interval": distance["interval"],
                    "truth": distance["truth"],
                }
            )
            print(f"{name} at {steps}: {scenes['score']:.1%}, {distance['score']:.4g}", file=sys.stderr, flush=True)
    lines = table(
        ("model", "steps", "guidance", "scene score", "95 % interval", "Frechet distance", "95 % interval"),
        [
            (
                row["name"],
                str(row["steps"]),
                f"{row['guidance']:g}",
                f"{row['score']:.1%}",
                between(row["interval"], ".1%"),
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
    figure = Figure(figsize=(8, 3.4), layout="constrained")
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
    options.out.mkdir(parents=True, exist_ok=True)
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    del asked["run"]
    text = "\n".join([f"# {title}", "", *lines, ""])
    content = json.dumps({"options": asked, "versions": library_versions()} | report, indent=1) + "\n"
    for suffix, body in ((".json", content), (".md", text)):
        with atomic_file(options.out / f"{name}{suffix}") as temporary:
            temporary.write_text(body)
    with atomic_file(options.out / f"{name}.png") as temporary:
        figure.savefig(temporary, dpi=120)
    print(text)


def numbers(text: str) -> list[int]:
    """The whole numbers of "1,2,3"."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """One of the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    taught = commands.add_parser("kd")
    taught.add_argument("--teacher", required=True, help="pipeline folder")
    taught.add_argument("--initial", default="mini-base", help="where all students start")
    taught.add_argument("--steps", type=int, default=2000)
    taught.add_argument("--batch", type=int, default=32)
    taught.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="of training")
    taught.set_defaults(run=distillation, work=Path("runs/distillation/kd"))
    few = commands.add_parser("steps")
    few.add_argument("--student", required=True, help="pipeline folder")
    few.add_argument("--base", default="mini-base")
    few.add_argument("--at", type=numbers, default=[1, 2, 4, 8, 28], help="numbers of steps of the base model")
    few.add_argument("--student-at", type=numbers, default=[1, 2, 4, 8], help="of the student")
    few.add_argument("--pictures", type=int, default=300, help="for the Frechet distance, a seed")
    few.set_defaults(run=few_steps, work=Path("runs/distillation/steps"))
    for command in (taught, few):
        command.add_argument("--count", type=int, default=20, help="prompts a category")
        command.add_argument("--picture-seeds", type=numbers, default=[0, 1, 2])
        command.add_argument("--work", type=Path)
        command.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
