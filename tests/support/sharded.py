"""A tiny real stage around the `debug` UNet, for two processes that hold a half of every parameter each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from snapgen.config import Recipe, parse_recipe
from snapgen.models.presets import create_unet
from snapgen.models.unet import SnapGenUNet
from snapgen.train.stage import Context, Stage, derive_seed


class VelocityRecipe(Recipe):
    spoilt: int = -1  # number of the one sample whose loss is infinite


class VelocityStage(Stage[VelocityRecipe, SnapGenUNet]):
    recipe_type = VelocityRecipe
    signals: ClassVar[dict[int, int]] = {}  # batch number -> the signal that the last process then sends itself
    sharded: ClassVar[bool] = False  # whether it must be

    def __init__(self, recipe: VelocityRecipe, context: Context) -> None:
        super().__init__(recipe, context)
        self.model = create_unet("debug").to(context.device, memory_format=torch.channels_last)
        self.model.time_embedding.requires_grad_(False)  # as a projector that nothing trains, or all but adapters

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        if step in self.signals and self.context.rank == self.context.world - 1:
            os.kill(os.getpid(), self.signals[step])
        samples = []
        for number in self.local_indices(step):
            generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, number))
            shapes = ((16, 4, 4), (5, 32), ())
            samples.append([torch.rand(shape, generator=generator) for shape in shapes])
            if number == self.recipe.spoilt:
                samples[-1][0] *= 1e30
        latents, states, times = (torch.stack(parts) for parts in zip(*samples, strict=True))
        return latents, states, times

    def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, Tensor]:
        assert isinstance(model, FSDPModule) == self.sharded
        assert all(isinstance(parameter, DTensor) == self.sharded for parameter in self.model.parameters())
        latents, states, times = batch
        velocity = model(latents, 1000 * times, states, return_dict=False)[0]
        return {"loss": (velocity - latents).square().mean()}

    def sample_grid(self, model: SnapGenUNet) -> Image.Image:
        latents, states, times = VelocityStage.batch(self, 0)
        velocity = model(latents, 1000 * times, states, return_dict=False)[0]
        return Image.fromarray((127 * velocity[0, 0].tanh() + 128).byte().numpy())

    def metrics(self, model: SnapGenUNet) -> dict[str, float]:
        assert not model.training
        return {"weight": model.conv_in[0].weight.abs().mean().item()}

    def save(self, model: SnapGenUNet, folder: Path) -> None:
        model.save_pretrained(folder)


def make_recipe(train_settings: dict[str, Any] | None = None, **settings: Any) -> VelocityRecipe:
    defaults = {"steps": 4, "batch_size": 8, "learning_rate": 0.003, "checkpoint_every": 2, "sample_every": 4}
    # The norm of the gradients is about 1: clipping at 0.1 matters at every step.
    defaults |= {"gradient_clip": 0.1, "gradient_accumulation": 2}
    mapping = {"stage": "velocity", "seed": 3, **settings, "train": defaults | (train_settings or {})}
    return parse_recipe(VelocityRecipe, mapping, "test")
