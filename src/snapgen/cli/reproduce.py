"""`snapgen reproduce`: a small model, by one command. What can be refused is refused before torch."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapgen.cli.generate import check_range
from snapgen.cli.train import check_extra

if TYPE_CHECKING:
    from snapgen.reproduce.run import Reproduction


def reproduce(
    name: Annotated[str, typer.Argument(help="folder of recipes below recipes/: mini")],
    minutes: Annotated[float | None, typer.Option(help="Time for all of it; 120 if not given.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything it makes.")] = Path("runs/reproduce"),
    initial: Annotated[
        str | None, typer.Option(metavar="MODEL", help="mini-base: train its UNet on, instead of one from nothing.")
    ] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take this autoencoder's folder instead of training one.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take this text stage's folder instead of training it.")
    ] = None,
    without: Annotated[
        str | None, typer.Option(metavar="A,B", help="Stages to leave out, of teacher, distill, step.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="Prompts a category of the benchmark, beyond MINUTES; by default what time is left for, 2 to 20."
        ),
    ] = None,
    recipes: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of recipes instead of NAME's.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="override a setting of a recipe; of all stages: all.KEY"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the GPU if there is one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --out, as planned there.")] = False,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Train nothing: pack --out for another machine, 16 MiB a file.")
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="DIR", help="Go on in --out with what --export packed.")
    ] = None,
) -> None:
    """Train all stages of a small model within MINUTES and score it; prints the report's file.

    Stages: autoencoder, text, flow, teacher, distill, step. An interrupted run goes on with --resume.
    """
    check_extra()
    missing = [package for package in ("scipy", "torchmetrics") if find_spec(package) is None]
    if missing:
        raise ValueError(f"the scores need {', '.join(missing)}: pip install 'snapgen[train,eval]'")
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
                raise ValueError(f"{option} is settled by the plan that goes on: leave it out")
    check_range("--minutes", minutes, 0.01, 100_000)
    check_range("--count", count, 2, 10_000)
    if initial not in (None, "mini-base"):
        raise ValueError(f"--initial {initial} is not known: only mini-base can be trained on")
    kept = {"autoencoder": autoencoder, "text": text}
    taken = {stage: str(folder.resolve()) for stage, folder in kept.items() if folder is not None}
    if initial is not None and taken:
        first = next(iter(taken))
        raise ValueError(f"--initial {initial} brings its own {first} along: leave out --{first}")
    for stage, folder in taken.items():
        if not Path(folder).is_dir():
            raise ValueError(f"--{stage} {folder}: no such folder")
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {device} is not known: use cpu or cuda")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("reproduce runs in one process: start it without a launcher")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    import torch

    from snapgen.reproduce.run import Plan, choose_stages, start, unpack

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here")
    if export is not None:
        files = opened(out, name).export(export)
        typer.echo(f"{export}: {len(files)} files, {sum(file.stat().st_size for file in files) / 2**20:.1f} MiB")
        return
    if import_ is not None:
        unpack(import_, out)
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
    opened(out, name).run()
    typer.echo(out / "report.md")


def opened(folder: Path, name: str) -> Reproduction:
    """The reproduction in `folder`; ValueError if it is one of other recipes."""
    from snapgen.reproduce.run import Reproduction

    reproduction = Reproduction(folder, show)
    if reproduction.plan.name != name:
        raise ValueError(f"{folder} is a reproduction of {reproduction.plan.name}, not of {name}: give its name")
    return reproduction


def show(message: str) -> None:
    """`message` on standard error: such a run is long, and mostly read in a log."""
    print(message, file=sys.stderr, flush=True)
