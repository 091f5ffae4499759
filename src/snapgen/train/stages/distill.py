"""The `distill` stage: the flow stage under a larger, frozen teacher (Sec. 3.3, Eq. 4 to 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from snapgen.config import RecipeError, Settings
from snapgen.flow.path import interpolate, velocity_target
from snapgen.flow.timesteps import TIMESTEP_SCALE
from snapgen.losses.distillation import (
    constant_weights,
    feature_distillation,
    multi_level,
    output_distillation,
    squared_error,
)
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.denoiser import Denoiser, feature_widths, load_denoiser, text_width
from snapgen.models.distiller import DistilledStudent
from snapgen.models.unet import SnapGenUNet
from snapgen.train.stage import Context
from snapgen.train.stages.flow import TIMESTEP_BINS, FlowRecipe, FlowStage, locate

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
    teacher: Path  # pipeline folder; its `unet` is a TeacherTransformer, or a UNet
    distillation: DistillationSettings = DistillationSettings()

    @model_validator(mode="after")
    def _no_adapters(self) -> DistillRecipe:
        if self.lora is not None:
            raise ValueError("lora belongs to the stage flow")
        return self


class DistillStage(FlowStage):
    """Trains a UNet on data and on a teacher at once."""

    recipe_type = DistillRecipe

    def __init__(self, recipe: DistillRecipe, context: Context):
        super().__init__(recipe, context)
        folder = locate("teacher", recipe.teacher)
        teacher = load_denoiser(folder / "unet")
        student = self.model
        if not isinstance(student, SnapGenUNet):
            raise RecipeError(f"model {recipe.model} is a {type(student).__name__}, expected a SnapGenUNet")
        if text_width(teacher) != self.text.width:
            raise RecipeError(
                f"teacher: it reads text states of width {text_width(teacher)}, the encoder in {recipe.text} "
                f"gives {self.text.width}"
            )
        self._check_latents(folder / "vae")
        self.teacher = teacher.to(context.device).eval().requires_grad_(False)
        self.model = self._trained(student).to(context.device, memory_format=torch.channels_last)

    def _trained(self, student: SnapGenUNet) -> nn.Module:
        """The student with what is trained beside it."""
        trained = DistilledStudent(student, feature_widths(self.teacher)[LAST])
        trained.projector.requires_grad_(self.recipe.distillation.features)
        return trained

    def _check_latents(self, folder: Path) -> None:
        """Refuses a teacher of another autoencoder: what it says of latents would be nonsense here."""
        other = SnapGenAutoencoder.from_pretrained(folder, dtype=torch.float32)
        ours, theirs = self.autoencoder.state_dict(), other.state_dict()
        scales = ("scaling_factor", "shift_factor")
        same = all(self.autoencoder.config[name] == other.config[name] for name in scales)
        encoder = [name for name in ours if name.startswith("encoder.")]  # decoders may differ
        # Half precision may lie between them.
        close = same and all(
            name in theirs
            and ours[name].shape == theirs[name].shape
            and torch.allclose(ours[name].cpu(), theirs[name], rtol=1e-2, atol=1e-3)
            for name in encoder
        )
        if not close:
            raise RecipeError(
                f"teacher: its latents are those of {folder}, the student's those of {self.autoencoder_folder}: "
                "both must be trained on the same autoencoder's"
            )

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
        with torch.no_grad():
            scale = settings.guidance_scale
            teacher_velocity, (feature,) = self._teach(x, sigmas, batch, taps=(LAST,), guidance_scale=scale)
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

    def _teach(
        self,
        x: Tensor,
        sigmas: Tensor,
        batch: dict[str, Tensor],
        taps: tuple[int, ...] = (),
        guidance_scale: float = 1.0,
    ) -> tuple[Tensor, list[Tensor]]:
        """The teacher's velocity at x, guided if asked for, and its features under the text."""
        # It attends to padding too: as much of it as it was trained with.
        padding = self.text.max_length - batch["mask"].shape[1]
        states, mask = F.pad(batch["states"], (0, 0, 0, padding)), F.pad(batch["mask"], (0, padding))
        timestep = TIMESTEP_SCALE * sigmas
        with self._autocast():
            velocity, features = self.teacher(x, timestep, states, mask, taps=taps)
            if guidance_scale != 1.0:
                first = torch.zeros_like(mask)
                first[:, 0] = True  # the empty prompt: zeros, of which one is visible
                empty = self.teacher(x, timestep, torch.zeros_like(states), first, return_dict=False)[0]
                velocity = empty + guidance_scale * (velocity - empty)
        return velocity, features

    @torch.no_grad()
    def timestep_losses(self, model: nn.Module) -> dict[str, list[float]]:
        """Fig. 6: each loss by noise level, and their combination."""
        with self._autocast():
            parts = self._parts(model, self._heldout)
            losses = {"loss": parts["task"]} | parts | {"combined": self._combined(parts, self._heldout["sigmas"])}
        curves: dict[str, Any] = {"sigma": [(index + 0.5) / TIMESTEP_BINS for index in range(TIMESTEP_BINS)]}
        return curves | {name: loss.reshape(TIMESTEP_BINS, -1).mean(dim=1).tolist() for name, loss in losses.items()}
