"""Checkpoints of the training loop: everything that an exact resume needs, in safetensors and JSON, nothing pickled.

A checkpoint is a folder `checkpoints/step_00000500` with `model`, `ema` and `optimizer` .safetensors and a
`state.json` that holds the step, the recipe, the guard's numbers and the SHA-256 of the three files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from diffusers.training_utils import EMAModel
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from snapgen.config import RecipeError, TrainSettings
from snapgen.files import atomic_folder, manifest, read_json
from snapgen.messages import Notify
from snapgen.train.distribution import copy_whole, filled, gather, is_first_process, local, sharded_like
from snapgen.train.guard import Guard
from snapgen.train.stage import ModelType
from snapgen.weights import load_file, save_file_atomic

# Settings that a resume may change: the training stays the same.
FREE_KEYS = frozenset(
    {
        "train.steps",
        "train.log_every",
        "train.sample_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "workers",
    }
)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int  # optimiser steps done
    recipe: dict[str, Any]
    guard: dict[str, float]


class StateFile(BaseModel):
    """The part of a checkpoint's state.json that is read back."""

    model_config = ConfigDict(strict=True)

    step: int = Field(ge=0)
    files: dict[str, str]  # the SHA-256 of every other file
    recipe: dict[str, Any]
    guard: dict[str, int | float]


@dataclass(frozen=True)
class TrainState(Generic[ModelType]):
    """Everything that changes during training. The step determines learning rate, EMA decay and random numbers."""

    model: ModelType  # unwrapped; its parameters may be shards
    optimizer: torch.optim.AdamW
    ema: EMAModel
    guard: Guard
    hollow: ModelType | None = None  # for a sharded model: the copy that its weights are gathered into

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each file of a checkpoint, live (not copied), by name."""
        moments = {
            f"{name}/{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        ema = {
            name: sharded_like(shadow, parameter)
            for (name, parameter), shadow in zip(self.model.named_parameters(), self.ema.shadow_params, strict=True)
        }
        return {"model": _unique_tensors(self.model), "ema": ema, "optimizer": moments}

    def load(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint; ValueError naming the file if its tensors do not fit the model."""
        parameters = dict(self.model.named_parameters())
        moments = load_file(checkpoint.folder / "optimizer.safetensors")
        for key in moments:
            name, _, kind = key.rpartition("/")
            if name not in parameters:
                raise ValueError(f"{checkpoint.folder / 'optimizer.safetensors'} holds unknown tensor {key}")
            # AdamW counts its steps on the CPU; moments share their parameter's device, shape and memory format.
            like = torch.zeros((), dtype=torch.float32) if kind == "step" else torch.zeros_like(parameters[name])
            self.optimizer.state[parameters[name]][kind] = like
        for file, targets in self.tensors().items():
            path = checkpoint.folder / f"{file}.safetensors"
            _copy_into(targets, moments if file == "optimizer" else load_file(path), path)
        self.guard.load(checkpoint.guard)
        self.ema.optimization_step = self.guard.accepted

    def average(self) -> None:
        """Updates the moving average after an optimiser step, shard by shard."""
        self.ema.step([local(parameter) for parameter in self.model.parameters()])

    @contextmanager
    def averaged(self) -> Iterator[ModelType]:
        """The model in eval mode with the EMA weights; on exit it is back in training mode with its own weights.

        All processes must enter together. A sharded model is gathered into a copy, for the first process only.
        """
        if self.hollow is not None:
            tensors = self.tensors()
            with torch.no_grad(), filled(self.hollow, tensors["model"] | tensors["ema"]) as model:
                yield model
            return
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self.ema.restore(self.model.parameters())
            self.model.train()


def make_ema(model: torch.nn.Module, settings: TrainSettings) -> EMAModel:
    """The moving average of the weights. After n steps, decay = min(ema_decay, 1 - n^-power), to follow early training.

    Without a power the decay is constant.
    """
    decay, power = settings.ema_decay, settings.ema_power
    parts = [local(parameter) for parameter in model.parameters()]
    if power is None:
        return EMAModel(parts, decay=decay, min_decay=decay, foreach=True)
    return EMAModel(parts, decay=decay, use_ema_warmup=True, power=power, foreach=True)


def save_checkpoint(run: Path, state: TrainState[ModelType], step: int, recipe: Mapping[str, Any], keep: int) -> Path:
    """Writes the checkpoint of `step` atomically, then removes all but the newest `keep` up to that step.

    The first process writes; all must call it, to contribute their shards.
    """
    folder = run / "checkpoints" / checkpoint_name(step)
    files = ((file, gather(tensors)) for file, tensors in state.tensors().items())  # one at a time
    if not is_first_process():
        for _ in files:
            pass
        return folder
    with atomic_folder(folder) as temporary:
        for file, tensors in files:
            save_file_atomic(tensors, temporary / f"{file}.safetensors")
        content = {"step": step, "files": manifest(temporary), "recipe": dict(recipe), "guard": state.guard.state()}
        (temporary / "state.json").write_text(json.dumps(content, indent=1))
    # Newer ones can only be damaged ones that a resume skipped: they must not displace good ones.
    older = [path for path in checkpoint_folders(run) if path.name <= folder.name]
    for path in older[:-keep]:
        shutil.rmtree(path)
    return folder


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint's folder after `step` steps."""
    return f"step_{step:08d}"


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, complete or not."""
    return sorted((run / "checkpoints").glob("step_*"))


def name_last_checkpoint(run: Path, step: int) -> str:
    """Where the last checkpoint before `step` is, for a message; there may be none."""
    older = [path for path in checkpoint_folders(run) if path.name < checkpoint_name(step)]
    return f"the last good checkpoint is {older[-1]}" if older else "there is no checkpoint"


def newest_checkpoint(run: Path, warn: Notify) -> Checkpoint | None:
    """The newest complete checkpoint, if any; each newer, damaged one is reported to `warn`."""
    for folder in reversed(checkpoint_folders(run)):
        try:
            content = StateFile.model_validate(read_json(folder / "state.json"))
            checkpoint = Checkpoint(folder, content.step, content.recipe, content.guard)
            found = {name: digest for name, digest in manifest(folder).items() if name != "state.json"}
            damaged = sorted(set(content.files.items()) ^ set(found.items()))
        except (OSError, ValueError):
            damaged = [("state.json", "")]
        if not damaged:
            return checkpoint
        warn(f"checkpoint {folder} is damaged ({damaged[0][0]}) and is skipped")
    return None


def check_same_recipe(saved: Mapping[str, Any], given: Mapping[str, Any], run: Path) -> None:
    """RecipeError if a run would be resumed with another recipe; the settings in `FREE_KEYS` may differ."""
    before, after = _flatten(saved), _flatten(given)
    missing = object()
    changed = [
        f"{key} ({before.get(key, 'unset')} -> {after.get(key, 'unset')})"
        for key in sorted(before.keys() | after.keys())
        if key not in FREE_KEYS and before.get(key, missing) != after.get(key, missing)
    ]
    if changed:
        raise RecipeError(
            f"{run} was started with another recipe; changed: {', '.join(changed)}; "
            "resume with the old values or give another run folder with --out"
        )


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested mapping to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _unique_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, tied ones once, as safetensors requires."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    saved = model.state_dict().keys()
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _copy_into(targets: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    """Copies `tensors` over `targets` in place; both must have the same names and shapes."""
    odd = sorted(targets.keys() ^ tensors.keys())
    odd += [name for name in targets.keys() & tensors.keys() if targets[name].shape != tensors[name].shape]
    if odd:
        raise ValueError(f"{path} does not fit this model: {len(odd)} tensors differ, the first is {odd[0]}")
    with torch.no_grad():
        for name, target in targets.items():
            copy_whole(target, tensors[name])
