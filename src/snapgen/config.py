"""Reads recipes: one strict YAML file per stage, parsed into typed settings, with overrides by dotted key.

A stage extends `Recipe` beside its code with its own settings; this file knows only what all stages
share. Anything unknown, mistyped or impossible is a one-line `RecipeError` that names the key and
the file.

A recipe may extend another one, and then states only what differs:

    base: flow.yaml                 # relative to this file; it may have a base itself
    seed: 1                         # a value, a list or null replaces the base's
    train: {steps: 600}             # a section is merged with the base's, key by key, at any depth,
    data: !replace {source: folder} # unless it is tagged: then it replaces the base's as a whole
    contrasts: !remove              # as if the base did not set it: the default applies (in braces: `!remove }`)
    prompts: prompts.txt            # a list, or a text file relative to this file

The text file has one prompt per line. Blank lines are skipped and spaces around a prompt removed; a
line `""` is the empty prompt. Overrides apply to the merged recipe and replace whatever they name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from snapgen.files import read_prompts, read_whole
from snapgen.messages import one_line


class RecipeError(ValueError):
    """A recipe that cannot be used; the message is one line for the person at the keyboard."""


class Settings(BaseModel):
    """The base class of all settings: strict about keys, types and finite numbers; instances are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TrainSettings(Settings):
    """The settings of the training loop."""

    steps: int = Field(gt=0)  # optimiser steps
    batch_size: int = Field(gt=0)  # samples per step, over all processes and accumulation rounds
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: Muon for hidden matrices, AdamW for the rest
    learning_rate: float = Field(gt=0)  # after warm-up
    warmup_steps: int = Field(default=0, ge=0)  # linear, from 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after warm-up; the last two end at 0
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW
    weight_decay: float = Field(default=0.01, ge=0)  # on matrices and kernels only
    gradient_clip: float = Field(default=1.0, gt=0)  # global norm
    # Rounds per step; fewer where so many processes share the batch that each has fewer samples of it.
    gradient_accumulation: int = Field(default=1, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)  # of the saved weights; 0: no averaging
    ema_power: float | None = Field(default=0.75, gt=0)  # after n steps at most 1 - n^-power; null: constant decay
    precision: Literal["fp32", "bf16"] = "fp32"  # autocast of the forward pass
    activation_checkpointing: bool = False  # recompute activations in the backward pass: less memory, slower
    compile: bool = False  # torch.compile the network
    skip_factor: float = Field(default=20.0, gt=1)  # a step whose loss exceeds this many times the average is skipped
    max_skipped: int = Field(default=10, gt=0)  # skipped steps in a row that stop the run
    log_every: int = Field(default=10, gt=0)  # steps between lines on the console and in TensorBoard
    sample_every: int = Field(default=500, gt=0)  # steps between sample grids and loss curves
    checkpoint_every: int = Field(default=500, gt=0)  # steps
    keep_checkpoints: int = Field(default=2, gt=0)  # how many of the newest stay

    def share(self, processes: int) -> tuple[int, int]:
        """The rounds of a step, and the samples that each of `processes` takes in a round.

        RecipeError if the batch cannot be divided so.
        """
        rounds = min(self.gradient_accumulation, max(self.batch_size // processes, 1))
        samples, rest = divmod(self.batch_size, rounds * processes)
        if rest or not samples:
            raise RecipeError(
                f"train.batch_size {self.batch_size} cannot be divided into train.gradient_accumulation {rounds} "
                f"x {processes} processes: make it a multiple of {rounds * processes}"
            )
        return rounds, samples


class Recipe(Settings):
    """The settings that the recipes of all stages share."""

    retired: ClassVar[tuple[str, ...]] = ()  # settings without effect here that older runs may have recorded

    stage: str
    seed: int = Field(default=0, ge=0)
    train: TrainSettings


RecipeType = TypeVar("RecipeType", bound=Recipe)


RECIPE_LIMIT = 2**20  # bytes
DEEPEST = 32  # levels of a recipe
TEXT_TAG = "tag:yaml.org,2002:str"


class Refusal(yaml.YAMLError):
    """YAML that is valid, but not read here."""

    def __init__(self, place: Any, reason: str):
        """`place`: the node or event that is refused."""
        super().__init__(f"line {place.start_mark.line + 1}: {reason}")


class Loader(yaml.SafeLoader):
    """Reads plain values that JSON has too, nested a few levels deep; anything else is a `yaml.YAMLError`.

    Aliases are refused, because a few lines of them stand for gigabytes, and so are duplicate keys. Numbers are those
    of YAML 1.2: PyYAML reads YAML 1.1, where 1e-3, without a point, is text.
    """

    depth = 0  # of the node that is read

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Reads a node with everything below it."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise Refusal(event, f"the alias *{event.anchor} stands for another value: write the value itself")
        if self.depth == DEEPEST:
            raise Refusal(self.peek_event(), f"it is nested more than {DEEPEST} levels deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of `node`, whose keys must be text, each there once."""
        known: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag != TEXT_TAG:
                raise Refusal(key, f"a key is {kind_of(key)}: text is expected, in quotes if it looks like a value")
            if key.value in known:
                raise Refusal(key, f"the key {key.value} is there twice")
            known.add(key.value)
        return super().construct_mapping(node, deep)


def kind_of(node: yaml.Node) -> str:
    """What `node` is, for messages: "a date", "a set"."""
    kind = node.tag.rpartition(":")[2]
    return {"int": "an int", "omap": "an ordered map", "timestamp": "a date"}.get(kind, f"a {kind}")


def refuse(loader: Loader, node: yaml.Node) -> None:
    """Raises that `node` is of a kind that no setting has."""
    value = f" ({node.value[:40]})" if isinstance(node, yaml.ScalarNode) else ""
    raise Refusal(node, f"{kind_of(node)}{value} is no value of a setting; text belongs in quotes")


for _kind in ("binary", "omap", "pairs", "set", "timestamp"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", refuse)
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


class Dumper(yaml.SafeDumper):
    """Writes every value where it belongs, even one that is there twice: `Loader` reads no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether to write `data` once more: always."""
        return True


class Whole(dict[Any, Any]):
    """A section tagged `!replace`."""


class Removed:
    """Marks a setting tagged `!remove`."""


class FileLoader(Loader):
    """Reads recipe files, including the tags of recipes that extend others."""


def whole(loader: FileLoader, node: yaml.MappingNode) -> Whole:
    """Constructs a section tagged `!replace`."""
    return Whole(loader.construct_mapping(node, deep=True))


FileLoader.add_constructor("!replace", whole)
FileLoader.add_constructor("!remove", lambda loader, node: Removed())


class RecipeFile(NamedTuple):
    """One recipe file with its own settings, without those of its base."""

    path: Path
    settings: dict[str, Any]


class Draft(NamedTuple):
    """A recipe that its stage has not checked yet."""

    settings: dict[str, Any]  # plain values, merged and overridden
    files: Sequence[RecipeFile]  # where they come from: the recipe, its base, the base's base, ...


def read_recipe(path: Path, overrides: Iterable[str] = ()) -> Draft:
    """The recipe in the YAML file `path`, merged with its bases, then `overrides`: `dotted.key=value`, a YAML value."""
    files = read_files(path)
    settings: dict[str, Any] = {}
    for file in reversed(files):
        settings = merge(settings, file.settings, file.path)
    for override in overrides:
        apply_override(settings, override)
    return Draft(settings, files)


def read_files(path: Path, *extending: Path) -> list[RecipeFile]:
    """The recipe file `path`, its base, the base's base and so on; `extending`: the files that led to it."""
    if path.resolve() in {file.resolve() for file in extending}:
        circle = " -> ".join(str(file) for file in (*extending, path))
        raise RecipeError(f"recipe {extending[-1]}: base: the recipes extend one another in a circle: {circle}")
    settings = read_yaml(path, f"recipe {extending[-1]}: its base {path}" if extending else f"recipe {path}")
    prompts = settings.get("prompts")
    if isinstance(prompts, str):
        settings["prompts"] = recipe_prompts(path.parent / prompts, path)
    if "base" not in settings:
        return [RecipeFile(path, settings)]
    base = settings.pop("base")
    if not isinstance(base, str):
        raise RecipeError(f"recipe {path}: base: expected the name of a recipe file (given: {base!r})")
    return [RecipeFile(path, settings), *read_files(path.parent / base, *extending, path)]


def read_yaml(path: Path, name: str) -> dict[str, Any]:
    """The mapping in the YAML file `path`; errors call it `name`."""
    try:
        # A SafeLoader: plain values and two tags.
        mapping = yaml.load(read_whole(path, RECIPE_LIMIT).decode(), FileLoader)
    except FileNotFoundError:
        raise RecipeError(f"{name} does not exist") from None
    except Refusal as error:
        raise RecipeError(f"{name}, {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not YAML: {one_line(error)}") from None
    except (OSError, ValueError, LookupError) as error:  # of the file, its encoding, or a value that fits no tag
        raise RecipeError(f"{name} cannot be read: {one_line(error)}") from None
    if not isinstance(mapping, dict):
        raise RecipeError(f"{name} holds {type(mapping).__name__}, expected a mapping of settings")
    return mapping


def recipe_prompts(path: Path, recipe: Path) -> list[str]:
    """The prompts in the text file `path`, which the recipe file `recipe` names."""
    try:
        prompts = read_prompts(path)
    except FileNotFoundError:
        raise RecipeError(f"recipe {recipe}: prompts: file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {recipe}: prompts: file {path} cannot be read: {error}") from None
    if not prompts:
        raise RecipeError(f"recipe {recipe}: prompts: file {path} holds no prompts")
    return prompts


def merge(base: Any, own: Any, recipe: Path, *keys: str) -> Any:
    """Merges `own`, the value that `recipe` has under `keys`, into the `base`'s value there; returns plain values."""
    if isinstance(own, Removed):
        raise RecipeError(f"recipe {recipe}: {'.'.join(keys)}: !remove, but no base says it")
    if isinstance(own, list):
        return [merge(None, item, recipe, *keys) for item in own]
    if not isinstance(own, dict):
        return own
    kept = base if isinstance(base, dict) and not isinstance(own, Whole) else {}
    merged = dict(kept)
    for key, value in own.items():
        if isinstance(value, Removed) and key in kept:
            del merged[key]
        else:
            merged[key] = merge(kept.get(key), value, recipe, *keys, str(key))
    return merged


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Sets the value of `override`, `dotted.key=value`, in `settings`."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override '{override}' is not of the form key=value, for example train.steps=2000")
    try:
        value = yaml.load(text, Loader)
    except Refusal as error:
        raise RecipeError(f"override '{override}': {error}") from None
    except (yaml.YAMLError, ValueError, LookupError):
        raise RecipeError(f"override '{override}': the value is not YAML") from None
    *parents, leaf = key.split(".")
    node = settings
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RecipeError(
                f"override '{override}': {parent} is a value, not a section; to give it settings, replace all of it: "
                f"{parent}={{KEY: VALUE, ...}}"
            )
    node[leaf] = value


def parse_recipe(
    recipe_type: type[RecipeType], settings: dict[str, Any], origin: str, files: Sequence[RecipeFile] = ()
) -> RecipeType:
    """Checks `settings` as a `recipe_type`; RecipeError naming `origin` and the first wrong setting by dotted key.

    `files`: those of `read_recipe`. If the wrong setting comes from a base, the error names that file too.
    """
    try:
        # JSON mode: a YAML list is a valid tuple, 1 a valid float, while "1" stays a wrong type.
        return recipe_type.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise RecipeError(f"{origin}: {key}: {first['msg'].lower()}") from None
        # A validator's message names what is wrong; without a key, that is how settings go together.
        own = first["msg"].removeprefix("Value error, ") if first["type"] == "value_error" else None
        if own and not key:
            raise RecipeError(f"{origin}: {own}") from None
        where = in_base(files, first["loc"], first["input"])
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"{origin}: unknown key {key}{where}") from None
        raise RecipeError(
            f"{origin}: {key}: {own or first['msg'].lower()} (given: {one_line(repr(first['input']), 100)}){where}"
        ) from None


def in_base(files: Sequence[RecipeFile], location: Sequence[int | str], value: Any) -> str:
    """The text " (in its base ...)" if `value` at `location` comes from a base; otherwise nothing."""
    for file in files:
        node: Any = file.settings
        for part in location:
            if isinstance(node, dict) and part in node:  # otherwise the part names one of several types that were tried
                node = node[part]
        if node == value:
            return "" if file is files[0] else f" (in its base {file.path})"
    return ""


def to_yaml(content: dict[str, Any]) -> str:
    """Formats `content`, plain values, as YAML that `read_recipe` reads."""
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def complete_recipe(recipe_type: type[Recipe], saved: dict[str, Any]) -> dict[str, Any]:
    """Converts `saved`, a recipe as it was run, to today's settings: adds defaults and drops retired settings."""
    known = {name: value for name, value in saved.items() if name not in recipe_type.retired}
    try:
        return recipe_type.model_validate_json(json.dumps(known)).model_dump(mode="json")
    except ValidationError:  # other settings: compared as they are
        return saved
