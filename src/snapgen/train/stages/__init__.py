"""The registry of training stages and the reader of their recipes: a new stage is one file here and one line below."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from snapgen.config import Recipe, RecipeError, parse_recipe, read_recipe
from snapgen.registry import load_attribute
from snapgen.train.stage import Stage

STAGES = {
    "autoencoder": "snapgen.train.stages.autoencoder:AutoencoderStage",
    "text": "snapgen.train.stages.text:TextStage",
    "classifier": "snapgen.train.stages.classifier:ClassifierStage",
    "flow": "snapgen.train.stages.flow:FlowStage",
    "distill": "snapgen.train.stages.distill:DistillStage",
    "step": "snapgen.train.stages.step:StepStage",
}


def load_stage(name: str) -> type[Stage[Recipe, nn.Module]]:
    """The class of the stage `name`, imported on demand; RecipeError listing the known names for an unknown one."""
    if name not in STAGES:
        raise RecipeError(f"stage '{name}' is unknown; known stages: {', '.join(STAGES)}")
    stage: type[Stage[Recipe, nn.Module]] = load_attribute(STAGES[name])
    return stage


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in the file `path`, with its bases and `overrides` applied (`snapgen.config`), in its stage's type."""
    settings, files = read_recipe(path, overrides)
    name = settings.get("stage")
    if not isinstance(name, str):
        raise RecipeError(f"recipe {path}: stage: expected one of {', '.join(STAGES)} (given: {name!r})")
    return parse_recipe(load_stage(name).recipe_type, settings, f"recipe {path}", files)
