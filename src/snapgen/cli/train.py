"""`snapgen train`: train one stage by its recipe, in a run folder of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from snapgen.cli.options import TRAINING, check_installed
from snapgen.cli.outputs import check_folder


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.steps=2000.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder; default runs/<folder of the recipe>/<name of the recipe>."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest complete checkpoint.")] = False,
) -> None:
    """Train the stage that RECIPE describes; prints the finished model's folder."""
    check_installed(TRAINING, "training needs", "train")
    run = out or Path("runs") / recipe.resolve().parent.name / recipe.stem
    check_folder("--out", run)

    import torch

    from snapgen.train.loop import train as run_training
    from snapgen.train.stages import load_recipe, load_stage

    settings = load_recipe(recipe, set_ or [])
    model = run_training(load_stage(settings.stage), settings, run, resume)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(model)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
