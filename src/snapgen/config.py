"""Recipes: one strict YAML file a stage, read into typed settings, overridden by dotted keys.

A stage defines its own recipe class beside its code by extending `Recipe`; this file knows only
what every stage shares. Anything unknown, mistyped or impossible is a `RecipeError` of one line
that names the key and the file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from snapgen.messages import one_line


class RecipeError(ValueError):
    """A recipe that cannot be used; the message is one line for the person at the keyboard."""


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values are not coerced, instances are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TrainSettings(Settings):
    """What the one training loop needs to know."""

    steps: int = Field(gt=0)  # optimiser steps
    batch_size: int = Field(gt=0)  # samples a step, over all processes and accumulation rounds
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for hidden matrices, and AdamW for the rest
    learning_rate: float = Field(gt=0)  # after warm-up
    warmup_steps: int = Field(default=0, ge=0)  # linear, from 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after warm-up; the last two end at 0
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW
    weight_decay: float = Field(default=0.01, ge=0)  # on matrices and kernels only
    gradient_clip: float = Field(default=1.0, gt=0)  # global norm
    gradient_accumulation: int = Field(default=1, gt=0)  # rounds a step
    ema_decay: float = Field(default=0.999, ge=0, lt=1)  # of the weights that are saved; 0: no average
    ema_power: float | None = Field(default=0.75, gt=0)  # after n steps at most 1 - n^-power; null: constant decay
    precision: Literal["fp32", "bf16"] = "fp32"  # autocast of the forward pass
    activation_checkpointing: bool = False  # recompute activations in the backward pass: less memory, slower
    compile: bool = False  # torch.compile the network
    skip_factor: float = Field(default=20.0, gt=1)  # a step whose loss is that many times the average is left out
    max_skipped: int = Field(default=10, gt=0)  # steps left out in a row that stop the run
    log_every: int = Field(default=10, gt=0)  # steps between lines of metrics.jsonl's console echo and TensorBoard
    sample_every: int = Field(default=500, gt=0)  # steps between sample grids and loss curves
    checkpoint_every: int = Field(default=500, gt=0)  # steps
    keep_checkpoints: int = Field(default=2, gt=0)  # the newest N stay


class Recipe(Settings):
    """What the recipes of all stages share."""

    stage: str
    seed: int = Field(default=0, ge=0)
    train: TrainSettings


RecipeType = TypeVar("RecipeType", bound=Recipe)


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: for PyYAML, which reads YAML 1.1, 1e-3 without a point is text."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def read_recipe(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The mapping in the YAML file `path` after `overrides`, each `dotted.key=value` with a YAML value."""
    try:
        mapping = yaml.load(path.read_text(), Loader)  # a SafeLoader: plain values only
    except FileNotFoundError:
        raise RecipeError(f"recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path} is not YAML: {one_line(error)}") from None
    if not isinstance(mapping, dict):
        raise RecipeError(f"recipe {path} holds {type(mapping).__name__}, expected a mapping of settings")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"override '{override}' is not of the form key=value, for example train.steps=2000")
        try:
            value = yaml.load(text, Loader)
        except yaml.YAMLError:
            raise RecipeError(f"override '{override}': the value is not YAML") from None
        *parents, leaf = key.split(".")
        node = mapping
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise RecipeError(f"override '{override}': {parent} is a value, not a section")
        node[leaf] = value
    return mapping


def parse_recipe(recipe_type: type[RecipeType], mapping: dict[str, Any], origin: str) -> RecipeType:
    """`mapping` as a `recipe_type`; the first thing wrong is named by its dotted key and `origin`."""
    try:
        # JSON mode: a YAML list is a valid tuple, 1 a valid float, while "1" stays a wrong type.
        return recipe_type.model_validate_json(json.dumps(mapping))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"{origin}: unknown key {key}") from None
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        raise RecipeError(f"{origin}: {key}: {first['msg'].lower()}{given}") from None


def complete_recipe(recipe_type: type[Recipe], saved: dict[str, Any]) -> dict[str, Any]:
    """`saved`, a recipe as it was run, with today's settings: defaults for new ones, without those that are gone."""
    known = {name: value for name, value in saved.items() if name in recipe_type.model_fields}
    try:
        return recipe_type.model_validate_json(json.dumps(known)).model_dump(mode="json")
    except ValidationError:  # other settings: as they are, they can be compared
        return saved
