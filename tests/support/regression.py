"""A tiny real stage: a small network learns a fixed function. Run as a script it is a worker for torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from snapgen.config import Recipe, parse_recipe
from snapgen.train.loop import train
from snapgen.train.stage import Context, Stage, derive_seed
from snapgen.weights import save_file_atomic


class RegressionRecipe(Recipe):
    hidden: int = 16
    dropout: float = 0.0
    explode_at: int | None = None  # batch number from which targets are `explode_by` times what they should be
    explode_for: int = 1_000_000  # batches
    explode_by: float = 3.5e20  # squared, it is infinite in fp32


class RegressionStage(Stage[RegressionRecipe, torch.nn.Module]):
    recipe_type = RegressionRecipe
    signals: ClassVar[dict[int, int]] = {}  # batch number -> the signal that the process then sends itself

    def __init__(self, recipe: RegressionRecipe, context: Context) -> None:
        super().__init__(recipe, context)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, recipe.hidden),
            torch.nn.BatchNorm1d(recipe.hidden) if recipe.dropout else torch.nn.Identity(),
            torch.nn.Dropout(recipe.dropout),
            torch.nn.Tanh(),
            torch.nn.Linear(recipe.hidden, 1),
        ).to(context.device)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        if step in self.signals:
            os.kill(os.getpid(), self.signals[step])
        rows = [
            torch.randn(4, generator=torch.Generator().manual_seed(derive_seed(self.recipe.seed, index)))
            for index in self.local_indices(step)
        ]
        inputs = torch.stack(rows).to(self.context.device)
        first = self.recipe.explode_at
        exploding = first is not None and first <= step < first + self.recipe.explode_for
        scale = self.recipe.explode_by if exploding else 1.0
        return inputs, scale * inputs.sin().sum(1, keepdim=True)

    def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, Tensor]:
        inputs, targets = batch
        error = model(inputs) - targets
        return {"loss": error.square().mean(), "absolute": error.abs().mean()}

    def sample_grid(self, model: torch.nn.Module) -> Image.Image:
        assert not model.training
        torch.randn(3)  # drawing consumes random numbers and must not disturb the training
        return Image.new("RGB", (8, 8), "white")

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        save_file_atomic(model.state_dict(), folder / "model.safetensors")

    def metrics(self, model: torch.nn.Module) -> dict[str, float]:
        return {"weight": model[0].weight.abs().mean().item()}


def make_recipe(train_settings: dict[str, Any] | None = None, **settings: Any) -> RegressionRecipe:
    defaults = {"steps": 12, "batch_size": 8, "learning_rate": 0.02, "checkpoint_every": 5, "sample_every": 12}
    mapping = {"stage": "regression", "seed": 3, **settings, "train": defaults | (train_settings or {})}
    return parse_recipe(RegressionRecipe, mapping, "test")


if __name__ == "__main__":
    run_folder, recipe_json, *rest = sys.argv[1:]
    for pair in rest:  # "7:9": signal 9 at batch 7
        number, _, kind = pair.partition(":")
        RegressionStage.signals[int(number)] = int(kind)
    train(RegressionStage, RegressionRecipe.model_validate_json(recipe_json), Path(run_folder), resume=False)
