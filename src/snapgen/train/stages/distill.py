"""The `distill` stage: the flow stage under a larger, frozen teacher (Sec. 3.3, Eq. 4 to 8)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from snapgen.config import Recipe, RecipeError, Settings
from snapgen.data.latents import CachedBatches
from snapgen.files import short_fingerprint
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
from snapgen.train.places import folder_or_hub_name, text_sources
from snapgen.train.stage import Context, derive_seed
from snapgen.train.stages.flow import (
    TIMESTEP_BINS,
    VALIDATION_COUNT,
    FlowRecipe,
    FlowStage,
)
from snapgen.train.teachers.targets import (
    FEATURES,
    SAMPLES,
    VELOCITY,
    StoredTargets,
    StoredTeacher,
    TargetCache,
    sample_keys,
    weights_fingerprint,
)
from snapgen.train.teachers.teacher import NetworkTeacher, SharedTextTeacher, Teacher, load_teacher

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
    # Noise draws of each picture, which come round in turn; null: every visit has new noise.
    draws: int | None = Field(default=None, gt=0)
    target_cache: Path | None = None  # folder for the teacher's answers to all draws; null: it is asked in every step

    @model_validator(mode="after")
    def _targets_belong_to_draws_of_latents(self) -> DistillRecipe:
        if self.target_cache is not None and (self.draws is None or self.cache is None):
            raise ValueError("target_cache needs draws, how many of each picture, and cache, their latents")
        return self

    @model_validator(mode="after")
    def _no_adapters(self) -> DistillRecipe:
        if self.lora is not None:
            raise ValueError("lora belongs to the stage flow")
        return self


class DistillStage(FlowStage):
    """Trains a UNet on data and on a teacher at once."""

    recipe_type: ClassVar[type[Recipe]] = DistillRecipe

    def __init__(self, recipe: DistillRecipe, context: Context):
        if recipe.target_cache is None:  # complete targets do without it
            folder_or_hub_name("teacher", recipe.teacher)  # a mistake shows before pictures are encoded
        super().__init__(recipe, context)
        student = self.model
        if not isinstance(student, SnapGenUNet):
            raise RecipeError(f"model {recipe.model} is a {type(student).__name__}, expected a SnapGenUNet")
        self.targets: StoredTargets | None = None
        if recipe.target_cache is None:
            self.teacher: Teacher = self._load_teacher()
        else:
            self.targets = self._stored_targets(recipe.target_cache)
        self.model = self.place(self._trained(student))

    def _load_teacher(self) -> NetworkTeacher:
        source = folder_or_hub_name("teacher", self.recipe.teacher)
        try:
            return load_teacher(source, self.autoencoder, self.text, self.frozen_dtype, self.context.device)
        except ValueError as error:
            raise RecipeError(f"teacher: {error}") from error

    def _stored_targets(self, folder: Path) -> StoredTargets:
        """The teacher's targets, after asking it for those that are missing; with nothing to ask it is not loaded."""
        rank, world = self.context.rank, self.context.world
        cache = TargetCache(folder, cast(CachedBatches, self.batches).stored, self.recipe.draws)
        asked = self._asked()
        cache.check(asked)
        if incomplete := cache.incomplete(rank, world):
            self.teacher = teacher = self._load_teacher()
            if rank == 0:
                accepted = {key: [value] for key, value in asked.items()} | {
                    "teacher": sorted({asked["teacher"], self.recipe.teacher}),  # its name for when its folder is gone
                    "text": [asked["text"]] if isinstance(teacher, SharedTextTeacher) else [],
                    "features": [False, True] if asked["features"] else [False],
                }
                cache.create(accepted, teacher.feature_widths[LAST])
        self.wait_for_everyone()
        if incomplete:
            taps = (LAST,) if cache.keeps_features else ()
            at_once = len(self.local_indices(0))  # as training does: the same to the last bit
            cache.build(
                partial(self._teach, taps),
                lambda: self._in_parts(partial(self._answers, taps), self._heldout),
                at_once,
                rank,
                world,
                self.context.progress,
            )
        self.wait_for_everyone()
        self.teacher = StoredTeacher(cache.width)
        return cache.load(asked["features"])

    def _asked(self) -> dict[str, Any]:
        """What decides the targets, but for the captions of pictures, which rows know."""
        recipe = self.recipe
        try:
            teacher = weights_fingerprint(folder_or_hub_name("teacher", recipe.teacher), "*/*.safetensors")
        except RecipeError:  # its folder is gone: complete targets do without it
            teacher = recipe.teacher
        held_out = self.open_source(recipe.data.validation(VALIDATION_COUNT))
        captions = [held_out.caption(index, 0) for index in range(min(VALIDATION_COUNT, len(held_out)))]
        texts = [
            weights_fingerprint(source, "text_encoder*/*.safetensors", "*.safetensors")
            for source in text_sources(recipe.text)
        ]
        return {
            "teacher": teacher,
            "guidance_scale": recipe.distillation.guidance_scale,
            "features": recipe.distillation.features,
            "latents": cast(CachedBatches, self.batches).stored.name,
            "held-out pictures": short_fingerprint(held_out.signature(), captions),
            "text": short_fingerprint(texts, recipe.language.model_dump()),
            "timesteps": recipe.timesteps.model_dump(),
            "caption_dropout": recipe.caption_dropout,
            "encoder_dropout": recipe.encoder_dropout,
            "precision": recipe.train.precision,
        }

    def _teach(self, taps: tuple[int, ...], pictures: list[int], latents: Tensor, draw: int) -> dict[str, Tensor]:
        """The targets of `pictures` under one draw, as they are stored."""
        batch, captions = self._drawn(pictures, latents, [draw] * len(pictures))
        return self._answers(taps, batch) | {SAMPLES: sample_keys(pictures, captions)}

    def _answers(self, taps: tuple[int, ...], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        velocity, features = self._ask(taps, batch)
        dtype = torch.bfloat16 if self.recipe.train.precision == "bf16" else torch.float32
        answers = {VELOCITY: velocity} | ({FEATURES: features[0]} if features else {})
        return {name: answer.to("cpu", dtype) for name, answer in answers.items()}

    @torch.no_grad()
    def _ask(self, taps: tuple[int, ...], batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The teacher's velocity and features at the noisy latents of `batch`."""
        x = interpolate(batch["x0"], batch["noise"], batch["sigmas"])
        with self._autocast():
            return self.teacher(x, batch["sigmas"], batch, taps, self.recipe.distillation.guidance_scale)

    def batch(self, step: int) -> dict[str, Tensor]:
        """As `FlowStage.batch`, or of pictures' draws; with the teacher's targets, where they are stored."""
        draws = self.recipe.draws
        if draws is None:
            return super().batch(step)
        batch = self.batches(step, self._share(step)[1])
        numbers = [epoch % draws for epoch in batch.epochs]
        drawn, captions = self._drawn(batch.pictures, batch.latents, numbers)
        if self.targets is None:
            return drawn
        return drawn | self._on_device(self.targets(batch.pictures, numbers, captions))

    def _on_device(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.context.device) for name, tensor in tensors.items()}

    def _drawn(self, pictures: list[int], latents: Tensor, draws: list[int]) -> tuple[dict[str, Tensor], list[str]]:
        """A batch of `pictures`, each under its draw, and its captions.

        Not a function of the recipe's seed, so that students of several seeds share targets.
        """
        generators = [torch.Generator().manual_seed(derive_seed(*pair)) for pair in zip(pictures, draws, strict=True)]
        chances = [self._chance(1, latents.shape[1:], generator) for generator in generators]
        noise, sigmas, dropped, encoders = (torch.cat(parts) for parts in zip(*chances, strict=True))
        captions = self._captions(pictures, draws, dropped)
        return self._conditioned(latents, noise, sigmas, captions, encoders), captions

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
        teacher_velocity, features = self._ask((LAST,) if settings.features else (), batch)
        grid = tuple(features[0].shape[-2:]) if features else (1, 1)  # which nothing looks at then
        with self._attention():
            inputs = (x, TIMESTEP_SCALE * sigmas, batch["states"], batch["mask"], grid)
            velocity, projected = model(*inputs)
        parts = {"task": squared_error(velocity, velocity_target(x0, noise))}
        if settings.output:
            parts["output"] = output_distillation(velocity, teacher_velocity)
        if settings.features:
            parts["features"] = feature_distillation([(projected, features[0])])
        return parts

    @torch.no_grad()
    def timestep_losses(self, model: nn.Module) -> dict[str, list[float]]:
        """Fig. 6: each loss by noise level, and their combination."""
        heldout = self._heldout | (self._on_device(self.targets.heldout) if self.targets else {})
        with self._autocast():
            parts = self._in_parts(partial(self._parts, model), heldout)
        losses = {"loss": parts["task"]} | parts | {"combined": self._combined(parts, heldout["sigmas"])}
        curves: dict[str, Any] = {"sigma": [(index + 0.5) / TIMESTEP_BINS for index in range(TIMESTEP_BINS)]}
        return curves | {name: loss.reshape(TIMESTEP_BINS, -1).mean(dim=1).tolist() for name, loss in losses.items()}
