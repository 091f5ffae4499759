"""The `distill` stage: trains the UNet by flow matching and by a larger, frozen teacher (Sec. 3.3, Eq. 4 to 8)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from snapgen.config import RecipeError
from snapgen.data.latents import CachedBatches
from snapgen.files import short_fingerprint
from snapgen.flow.guidance import has_guidance
from snapgen.flow.path import interpolate
from snapgen.flow.schedule import TIMESTEP_SCALE
from snapgen.losses.distillation import constant_weights, feature_distillation, output_distillation
from snapgen.losses.task import flow_matching
from snapgen.machine.counting import count
from snapgen.models.denoiser import Denoiser, feature_widths
from snapgen.models.distiller import DistilledStudent
from snapgen.models.unet import SnapGenUNet
from snapgen.train.binding import BindingTest
from snapgen.train.cost import Cost, LatentCost, TeacherCost, compute_dtype, frozen_bytes
from snapgen.train.latent_recipe import LatentRecipe
from snapgen.train.latent_stage import Batch, LatentStage, text_arguments
from snapgen.train.places import folder_or_hub_name, text_sources
from snapgen.train.scaling import ScalingSettings, TimestepScaling
from snapgen.train.stage import Context, derive_seed
from snapgen.train.teachers.targets import (
    FEATURES,
    LAST,
    SAMPLES,
    VELOCITY,
    Asker,
    StoredTargets,
    TargetCache,
    open_targets,
    sample_keys,
    weights_fingerprint,
)
from snapgen.train.teachers.teacher import NetworkTeacher, Teacher


class DistillationSettings(ScalingSettings):
    """The distillation losses and their weights."""

    output: bool = True  # Eq. 4
    features: bool = True  # Eq. 5
    scaling: Literal["timestep", "constant"] = "timestep"  # Eq. 7 and 8, or Eq. 6
    output_weight: float = Field(default=1.0, ge=0)  # in Eq. 6; ignored with scaling "timestep"
    feature_weight: float = Field(default=1.0, ge=0)
    guidance_scale: float = Field(default=1.0, ge=0)  # of the teacher; 1: no guidance

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillationSettings:
        if not (self.output or self.features):
            raise ValueError("neither output nor features: that is the stage flow")
        return self


class DistillRecipe(LatentRecipe):
    """Settings of the `distill` stage."""

    retired = ("lora",)
    stage: Literal["distill"]
    # Folder of one of our pipelines ("mini-base": the bundled one), which reads the student's text states; or folder or
    # hub name of a Stable Diffusion 3 (stabilityai/stable-diffusion-3.5-large), which has its own text encoders.
    teacher: str
    distillation: DistillationSettings = DistillationSettings()
    # How many fixed random choices of noise each picture cycles through; null: new noise at every visit.
    draws: int | None = Field(default=None, gt=0)
    target_cache: Path | None = None  # folder for the targets of all `draws`; null: the teacher runs in every step
    contrasts: int = Field(default=32, ge=0)  # as in the `flow` stage

    @model_validator(mode="after")
    def _targets_belong_to_draws_of_latents(self) -> DistillRecipe:
        if self.target_cache is not None and (self.draws is None or self.cache is None):
            raise ValueError("target_cache needs draws, how many of each picture, and cache, their latents")
        return self


class DistillStage(LatentStage[DistillRecipe, DistilledStudent]):
    """Trains a UNet on data and on a teacher's outputs at once."""

    recipe_type = DistillRecipe
    teacher: Teacher

    def __init__(self, recipe: DistillRecipe, context: Context) -> None:
        if recipe.target_cache is None:  # with complete targets no teacher is needed
            folder_or_hub_name("teacher", recipe.teacher)  # a mistake shows before pictures are encoded
        super().__init__(recipe, context)
        student = self.require_unet()
        self.targets: StoredTargets | None = None
        if recipe.target_cache is None:
            self._load_teacher()
        else:
            self.targets, self.teacher = self._open_targets(recipe.target_cache)
        self.scaling = self._make_scaling()
        model = DistilledStudent(student, self.teacher.feature_widths[LAST], self.scaling)
        model.projector.requires_grad_(recipe.distillation.features)
        self.model = self.place(model)

    @classmethod
    def cost(cls, recipe: DistillRecipe, batch: int, teacher: str | None = None) -> Cost:
        """The cost of the student, the projector and the teacher."""
        base, settings = LatentCost(recipe, batch), recipe.distillation
        guide = TeacherCost(base, recipe.teacher, teacher)
        width = feature_widths(guide.network)[LAST]
        with torch.device("meta"):
            student = DistilledStudent(cast(SnapGenUNet, base.network), width)
            features = torch.empty(1, base.network.config.block_out_channels[0], guide.grid, guide.grid)
            projector = count(student.projector, lambda: student.projector(features)).macs
        guided = 1 + has_guidance(settings.guidance_scale)
        flops = {
            "network": 2 * base.passes * base.macs,
            "projector": 6.0 * projector,
            "teacher": 2.0 * guide.counts.macs * guided,
        }
        velocity = guide.network.config.in_channels * base.side**2
        stored = velocity + (width * guide.grid**2 if settings.features else 0)
        return base.total(
            student,
            flops,
            guide.frozen(recipe),
            base.forward_bytes(),
            target_bytes=0 if recipe.target_cache is None else stored * frozen_bytes(recipe),
            draws=recipe.draws or 0,
            more_text=guide.own_text,
        )

    def denoiser(self, model: DistilledStudent) -> Denoiser:
        """The student's UNet."""
        return model.unet

    # The teacher, run in every step or once before training

    def _load_teacher(self) -> NetworkTeacher:
        """Loads the teacher and keeps it as `self.teacher`."""
        self.teacher = teacher = self.load_teacher(self.recipe.teacher)
        return teacher

    def _open_targets(self, folder: Path) -> tuple[StoredTargets, Teacher]:
        assert self.recipe.draws is not None  # the recipe checks it
        asker = Asker(self._load_teacher, self._answers_about, self._answers_heldout, len(self.local_indices(0)))
        cache = TargetCache(folder, cast(CachedBatches, self.batches).stored, self.recipe.draws)
        return open_targets(cache, self._asked(), self.recipe.teacher, asker, self.context, self.wait_for_everyone)

    def _asked(self) -> dict[str, Any]:
        """What determines the targets, except the captions, which each stored row identifies."""
        recipe = self.recipe
        try:
            teacher = weights_fingerprint(folder_or_hub_name("teacher", recipe.teacher), "*/*.safetensors")
        except RecipeError:  # its folder is gone: complete targets do not need it
            teacher = recipe.teacher
        held_out = self.open_source(recipe.data.validation(self.validation_count))
        captions = [held_out.caption(index, 0) for index in range(min(self.validation_count, len(held_out)))]
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

    def _answers_about(self, taps: tuple[int, ...], pictures: list[int], latents: Tensor, draw: int) -> Batch:
        """The targets for `pictures` under random choice number `draw`, as they are stored."""
        batch, captions = self._drawn(pictures, latents, [draw] * len(pictures))
        return self._answers(taps, batch) | {SAMPLES: sample_keys(pictures, captions)}

    def _answers_heldout(self, taps: tuple[int, ...]) -> Batch:
        return self.in_parts(partial(self._answers, taps), self.heldout)

    def _answers(self, taps: tuple[int, ...], batch: Batch) -> Batch:
        velocity, features = self._ask(taps, batch)
        answers = {VELOCITY: velocity} | ({FEATURES: features[0]} if features else {})
        return {name: answer.to("cpu", compute_dtype(self.recipe)) for name, answer in answers.items()}

    @torch.no_grad()
    def _ask(self, taps: tuple[int, ...], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The teacher's velocity and features at the noisy latents of `batch`."""
        x = interpolate(batch["x0"], batch["noise"], batch["sigmas"])
        with self.autocast():
            return self.teacher(x, batch["sigmas"], batch, taps, self.recipe.distillation.guidance_scale)

    # Batches

    def batch(self, step: int) -> Batch:
        """As `LatentStage.batch`, or with fixed random choices (`draws`); with the teacher's targets, if stored."""
        draws = self.recipe.draws
        if draws is None:
            return super().batch(step)
        batch = self.batches(step, self.share(step)[1])
        numbers = [epoch % draws for epoch in batch.epochs]
        drawn, captions = self._drawn(batch.pictures, batch.latents, numbers)
        if self.targets is None:
            return drawn
        return drawn | self._on_device(self.targets(batch.pictures, numbers, captions))

    def _on_device(self, tensors: Mapping[str, Tensor]) -> Batch:
        return {name: tensor.to(self.context.device) for name, tensor in tensors.items()}

    def _drawn(self, pictures: list[int], latents: Tensor, draws: list[int]) -> tuple[Batch, list[str]]:
        """A batch of `pictures`, each under its random choice from `draws`, and its captions.

        It does not depend on the recipe's seed, so that students with different seeds share targets.
        """
        generators = [torch.Generator().manual_seed(derive_seed(*pair)) for pair in zip(pictures, draws, strict=True)]
        chances = [self.sample_chance(1, latents.shape[1:], generator) for generator in generators]
        noise, sigmas, dropped, encoders = (torch.cat(parts) for parts in zip(*chances, strict=True))
        captions = self.captions(pictures, draws, dropped)
        return self.conditioned(latents, noise, sigmas, captions, encoders), captions

    # Losses

    def _make_scaling(self) -> TimestepScaling | None:
        settings = self.recipe.distillation
        if settings.scaling != "timestep":
            return None
        chosen = {"output": settings.output, "features": settings.features}
        names = tuple(name for name, wanted in chosen.items() if wanted)
        return TimestepScaling(settings, self.recipe.timesteps.shift, names)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Eq. 8 or Eq. 6, and the means of its parts, as they are and at the task's scale."""
        parts = self._parts(model, batch)
        if self.scaling is not None:
            self.scaling.update(parts, batch["sigmas"])
        weighted = self._weighted(parts, batch["sigmas"])
        return {"loss": weighted.pop("combined").mean()} | {
            name: loss.mean() for name, loss in (parts | weighted).items()
        }

    def _weighted(self, parts: dict[str, Tensor], sigmas: Tensor) -> dict[str, Tensor]:
        """What is minimised, `combined`, and with Eq. 7 the distillation losses at the task's scale, `*_scaled`."""
        if self.scaling is not None:
            combined, scaled = self.scaling(parts, sigmas)
            return {"combined": combined} | scaled
        settings = self.recipe.distillation
        weights = {"output": settings.output_weight, "features": settings.feature_weight}
        distillations = [(weight, parts[name]) for name, weight in weights.items() if name in parts]
        return {"combined": constant_weights(parts["task"], distillations)}

    def _parts(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`task` (Eq. 2) and, if asked for, `output` (Eq. 4) and `features` (Eq. 5) of each sample."""
        x0, noise, sigmas = batch["x0"], batch["noise"], batch["sigmas"]
        x = interpolate(x0, noise, sigmas)
        settings = self.recipe.distillation
        teacher_velocity, features = self._ask((LAST,) if settings.features else (), batch)
        grid = tuple(features[0].shape[-2:]) if features else (1, 1)  # unused then
        with self.attention():
            velocity, projected = model(x, TIMESTEP_SCALE * sigmas, **text_arguments(batch), grid=grid)
        parts = {"task": flow_matching(velocity, x0, noise)}
        if settings.output:
            parts["output"] = output_distillation(velocity, teacher_velocity)
        if settings.features:
            parts["features"] = feature_distillation([(projected, features[0])])
        return parts

    @torch.no_grad()
    def timestep_losses(self, model: DistilledStudent) -> dict[str, list[float]]:
        """Each loss by noise level as in Fig. 6, as it is and scaled, and what is minimised, `combined`."""
        heldout = self.heldout | (self._on_device(self.targets.heldout) if self.targets else {})
        with self.autocast():
            parts = self.in_parts(partial(self._parts, model), heldout)
        return self.by_noise_level({"loss": parts["task"]} | parts | self._weighted(parts, heldout["sigmas"]))

    @cached_property
    def _binding(self) -> BindingTest | None:
        return self.make_binding_test(self.recipe.contrasts)

    def metrics(self, model: DistilledStudent) -> dict[str, float]:
        """The binding measures (`snapgen.train.binding`)."""
        return self.measure_binding(self.denoiser(model), self._binding)
