"""The recipes, read and run as `snapgen train` does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from snapgen.train.loop import train
from snapgen.train.stages import load_recipe, load_stage

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe_of(path: Path, *overrides: str) -> Any:
    return load_recipe(path, overrides)


def run_recipe(name: str, run: Path, *overrides: str, resume: bool = False) -> Path:
    recipe = recipe_of(RECIPES / "debug" / f"{name}.yaml", *overrides)
    return train(load_stage(recipe.stage), recipe, run, resume)


def paths_below(folder: Path) -> list[str]:
    """The overrides that make the flow recipe read and write in `folder`."""
    paths = {"autoencoder": "autoencoder/model", "text": "text/model", "cache": "latents"}
    return [f"{key}={folder / path}" for key, path in paths.items()]


def shares_of(stage: Any, step: int) -> list[Any]:
    """The batches of `step` that each of two processes takes."""
    context, shares = stage.context, []
    for rank in (0, 1):
        stage.context = replace(context, rank=rank, world=2)
        shares.append(stage.batch(step))
    stage.context = context
    return shares


def metrics_of(run: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / file).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]
