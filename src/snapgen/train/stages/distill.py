"""The `distill` stage: the flow stage under a larger, frozen teacher (Sec. 3.3, Eq. 4 to 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from snapgen.config import Recipe, RecipeError, Settings
from snapgen.flow.path import interpolate, velocity_target
from snapgen.flow.timesteps import TIMESTEP_SCALE
from snapgen.losses.distillation import (
    constant_weights,
    feature_distillation,
    multi_level,
    output_distillation,
    squared_error,
)
from snapgen.models.denoiser import Denoiser
from snapgen.models.distiller import DistilledStudent
from snapgen.models.unet import SnapGenUNet
from snapgen.train.stage import Context
from snapgen.train.stages.flow import TIMESTEP_BINS, FlowRecipe, FlowStage, is_hub_name, locate
from snapgen.train.teaching import load_teacher

LAST = -1  # the teacher's block whose features are matched (Eq. 5)


class DistillationSettings(Settings):
    """Which losses, and how they are weighed."""

    output: bool = True  # Eq. 4
    features: bool = True  # Eq. 5
    scaling: Literal["timestep", "constant"] = "timestep"  # Eq. 7 and 8, or Eq. 6
    output_weight: float = Field(default=1.0, ge=0)  # of Eq. 6; with "timestep" the scaling decides
    feature_weight: float = Field(default=1.0, ge=0)
    guidance_scale: float = Field(default=1.0, ge=0)  # of the teacher; 1: it is not guided

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillationSettings:
        if not (self.output or self.features):
            raise ValueError("neither output nor features: that is the stage flow")
        return self


class DistillRecipe(FlowRecipe):
    """Settings of the `distill` stage: those of `flow`, and the teacher."""

    stage: Literal["distill"]  # type: ignore[assignment]
    # Pipeline folder of ours ("mini-base" is a bundled one), which reads the student's text states; or folder or hub
    # name of a Stable Diffusion 3 (stabilityai/stable-diffusion-3.5-large), which reads captions with its own encoders.
    teacher: str
    distillation: DistillationSettings = DistillationSettings()

    @model_validator(mode="after")
    def _no_adapters(self) -> DistillRecipe:
        if self.lora is not None:
            raise ValueError("lora belongs to the stage flow")
        return self


class DistillStage(FlowStage):
    """Trains a UNet on data and on a teacher at once."""

    recipe_type: ClassVar[type[Recipe]] = DistillRecipe

    def __init__(self, recipe: DistillRecipe, context: Context):
        super().__init__(recipe, context)
        student = self.model
        if not isinstance(student, SnapGenUNet):
            raise RecipeError(f"model {recipe.model} is a {type(student).__name__}, expected a SnapGenUNet")
        source = recipe.teacher if is_hub_name(recipe.teacher) else str(locate("teacher", Path(recipe.teacher)))
        try:
            self.teacher = load_teacher(source, self.autoencoder, self.text, self.frozen_dtype, context.device)
        except ValueError as error:
            raise RecipeError(f"teacher: {error}") from error
        self.model = self.place(self._trained(student))

    def _trained(self, student: SnapGenUNet) -> nn.Module:
        """The student with what is trained beside it."""
        trained = DistilledStudent(student, self.teacher.feature_widths[LAST])
        trained.projector.requires_grad_(self.recipe.distillation.features)
        return trained

    def conditions(self, captions: list[str], dropped: Tensor | None = None) -> dict[str, Tensor]:
        """The student's, and what the teacher needs besides."""
        return super().conditions(captions, dropped) | self.teacher.conditions(captions)

    def denoiser(self, model: nn.Module) -> Denoiser:
        """The student's UNet."""
        return cast(DistilledStudent, model).unet

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 8, or Eq. 6; beside it the means of its parts before scaling."""
        parts = self._parts(model, batch)
        return {"loss": self._combined(parts, batch["sigmas"]).mean()} | {
            name: loss.mean() for name, loss in parts.items()
        }

    def _combined(self, parts: dict[str, Tensor], sigmas: Tensor) -> Tensor:
        settings = self.recipe.distillation
        distillations = {name: loss for name, loss in parts.items() if name != "task"}
        if settings.scaling == "timestep":
            return multi_level(parts["task"], distillations.values(), sigmas)
        weights = {"output": settings.output_weight, "features": settings.feature_weight}
        return constant_weights(parts["task"], [(weights[name], loss) for name, loss in distillations.items()])

    def _parts(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`task` (Eq. 2), `output` (Eq. 4) and `features` (Eq. 5) of each sample, those that are asked for."""
        x0, noise, sigmas = batch["x0"], batch["noise"], batch["sigmas"]
        x = interpolate(x0, noise, sigmas)
        settings = self.recipe.distillation
        with torch.no_grad(), self._autocast():
            teacher_velocity, (feature,) = self.teacher(x, sigmas, batch, (LAST,), settings.guidance_scale)
        grid = tuple(feature.shape[-2:])
        with self._attention():
            inputs = (x, TIMESTEP_SCALE * sigmas, batch["states"], batch["mask"], grid)
            velocity, projected = model(*inputs)
        parts = {"task": squared_error(velocity, velocity_target(x0, noise))}
        if settings.output:
            parts["output"] = output_distillation(velocity, teacher_velocity)
        if settings.features:
            parts["features"] = feature_distillation([(projected, feature)])
        return parts

    @torch.no_grad()
    def timestep_losses(self, model: nn.Module) -> dict[str, list[float]]:
        """Fig. 6: each loss by noise level, and their combination."""
        with self._autocast():
            parts = self._parts(model, self._heldout)
            losses = {"loss": parts["task"]} | parts | {"combined": self._combined(parts, self._heldout["sigmas"])}
        curves: dict[str, Any] = {"sigma": [(index + 0.5) / TIMESTEP_BINS for index in range(TIMESTEP_BINS)]}
        return curves | {name: loss.reshape(TIMESTEP_BINS, -1).mean(dim=1).tolist() for name, loss in losses.items()}
