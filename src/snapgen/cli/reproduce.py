"""`snapgen reproduce`: train and score a small model with one command. Bad options are rejected before torch loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from snapgen.cli.options import TRAINING, check_installed, check_range
from snapgen.cli.outputs import check_folder
from snapgen.cli.progress import continuable, show_message


def reproduce(
    name: Annotated[str, typer.Argument(help="Folder of recipes in recipes/: mini.")],
    minutes: Annotated[float | None, typer.Option(help="Time for everything; 120 if not given.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything it makes.")] = Path("runs/reproduce"),
    initial: Annotated[
        str | None, typer.Option(metavar="MODEL", help="mini-base: start from its UNet instead of from scratch.")
    ] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Use the autoencoder in this folder instead of training one.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Use the text stage in this folder instead of training it.")
    ] = None,
    without: Annotated[
        str | None, typer.Option(metavar="A,B", help="Stages to skip: any of teacher, distill, step.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="Prompts per category of the benchmark, even beyond MINUTES; by default 2 to 20, as time allows."
        ),
    ] = None,
    recipes: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of recipes instead of NAME's.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Override a recipe's setting; all.KEY for all stages."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, as planned there.")] = False,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Train nothing: pack --out for another machine, in 16 MiB files.")
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="DIR", help="Continue in --out with what --export packed.")
    ] = None,
) -> None:
    """Train all stages of a small model within MINUTES and score it; prints the report's file name.

    Stages: autoencoder, text, flow, teacher, distill, step. --resume continues an interrupted run.
    """
    check_installed(TRAINING, "training needs", "train")
    check_installed(("scipy", "torchmetrics"), "the scores need", "train,eval")
    if sum((resume, export is not None, import_ is not None)) > 1:
        raise ValueError("--resume, --export and --import exclude each other")
    given = {
        "--minutes": minutes,
        "--initial": initial,
        "--autoencoder": autoencoder,
        "--text": text,
        "--without": without,
        "--count": count,
        "--recipes": recipes,
        "--set": set_,
    }
    if resume or export or import_:
        for option, value in given.items():
            if value not in (None, []):
                raise ValueError(f"{option} is fixed by the plan of the run that continues: omit it")
    check_range("--minutes", minutes, 0.01, 100_000)
    check_range("--count", count, 2, 10_000)
    for option, folder in (("--out", out), ("--export", export)):
        if folder is not None:
            check_folder(option, folder)
    taken = taken_models(initial, {"autoencoder": autoencoder, "text": text})
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {device} is not known: use cpu or cuda")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("reproduce runs in one process: start it without a launcher")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    import torch

    from snapgen.reproduce import archive
    from snapgen.reproduce.plan import Plan, choose_stages, start
    from snapgen.reproduce.run import Reproduction

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here")
    if export is not None:
        check_name(out, name)
        files = archive.export(out, export, show_message)
        typer.echo(f"{export}: {len(files)} files, {sum(file.stat().st_size for file in files) / 2**20:.1f} MiB")
        return
    if import_ is not None:
        archive.unpack(import_, out)
    elif not resume:
        plan = Plan(
            name=name,
            minutes=120.0 if minutes is None else minutes,
            stages=choose_stages([part.strip() for part in without.split(",")] if without else [], initial, taken),
            initial=initial,
            given=taken,
            count=count,
            overrides=tuple(set_ or ()),
        )
        start(out, recipes or Path("recipes") / name, plan)
    check_name(out, name)
    with continuable(out, "--resume"):
        Reproduction(out, show_message).run()
    typer.echo(out / "report.md")


def taken_models(initial: str | None, folders: dict[str, Path | None]) -> dict[str, str]:
    """The folders of the stages that are given instead of trained; ValueError if one is missing or not needed."""
    if initial not in (None, "mini-base"):
        raise ValueError(f"--initial {initial} is not known: only mini-base can be trained on")
    taken = {stage: folder.resolve() for stage, folder in folders.items() if folder is not None}
    if initial is not None and taken:
        first = next(iter(taken))
        raise ValueError(f"--initial {initial} brings its own {first}: omit --{first}")
    for stage, folder in taken.items():
        if not folder.is_dir():
            raise ValueError(f"--{stage} {folder}: no such folder")
    return {stage: str(folder) for stage, folder in taken.items()}


def check_name(folder: Path, name: str) -> None:
    """Raise ValueError unless the run in `folder` reproduces the recipes `name`."""
    from snapgen.reproduce.plan import read_plan

    if (planned := read_plan(folder).name) != name:
        raise ValueError(f"{folder} is a reproduction of {planned}, not of {name}: give its name")
