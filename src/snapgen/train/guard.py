"""Protects a run: a step that would spoil the weights is skipped and counted, and too many in a row stop the run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

from snapgen.config import TrainSettings
from snapgen.files import atomic_folder
from snapgen.weights import save_file_atomic

SETTLED = 50  # accepted steps, after which a loss is compared with the average of those before
KEEP = 0.98  # decay of the average, per accepted step


class Guard:
    """Judges every step by its metrics, with the same result on all processes. A checkpoint includes its state."""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.average = 0.0  # of the loss's magnitude over accepted steps: with an adversary the loss crosses 0
        self.accepted = self.skipped = self.in_a_row = 0

    def state(self) -> dict[str, float]:
        """The numbers that `load` takes."""
        return {name: value for name, value in vars(self).items() if name != "settings"}

    def load(self, state: Mapping[str, float]) -> None:
        """Continues from another guard's `state`; ValueError if a number is missing."""
        names = self.state().keys()
        if missing := sorted(names - state.keys()):
            raise ValueError(f"the checkpoint's state.json lacks the guard's {', '.join(missing)}: it is damaged")
        vars(self).update({name: state[name] for name in names})

    def objection(self, metrics: Mapping[str, float]) -> str | None:
        """Why a step with these metrics must not reach the weights; None if it may."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        loss, factor = metrics.get("loss", 0.0), self.settings.skip_factor  # no loss yet in an adversary's turn
        if self.accepted >= SETTLED and self.average > 0 and loss > factor * self.average:
            return f"loss is {loss:.4g}, more than {factor:g} times its average magnitude {self.average:.4g}"
        return None

    def accept(self, loss: float) -> None:
        """Counts a step that reached the weights, and updates the average loss."""
        keep = min(KEEP, self.accepted / (self.accepted + 1))  # a plain mean at first
        self.average = keep * self.average + (1 - keep) * abs(loss)
        self.accepted += 1
        self.in_a_row = 0

    def skip(self) -> bool:
        """Counts a skipped step; True when that makes too many in a row."""
        self.skipped += 1
        self.in_a_row += 1
        return self.in_a_row >= self.settings.max_skipped


def save_evidence(run: Path, step: int, objection: str, metrics: Mapping[str, float], batch: Any) -> Path:
    """Writes `run/failure`: the last batch of this process as safetensors, and what was wrong with the step."""
    tensors = {
        keystr(path).strip("[].'\"") or "batch": leaf.detach().cpu().clone()
        for path, leaf in tree_flatten_with_path(batch)[0]
        if isinstance(leaf, torch.Tensor)
    }
    folder = run / "failure"
    with atomic_folder(folder) as temporary:
        save_file_atomic(tensors, temporary / "batch.safetensors")
        report = {
            "step": step,
            "objection": objection,
            "metrics": {name: str(value) for name, value in metrics.items()},
        }
        (temporary / "failure.json").write_text(json.dumps(report, indent=1))
    return folder
