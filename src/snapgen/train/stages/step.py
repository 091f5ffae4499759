"""The `step` stage: trains a few-step student by distillation and an adversary at once (Sec. 3.4, Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from snapgen.config import RecipeError, Settings
from snapgen.flow.guidance import has_guidance
from snapgen.flow.path import interpolate, per_sample, predict_x0
from snapgen.flow.schedule import TIMESTEP_SCALE, sampling_levels
from snapgen.flow.timesteps import sample_sigmas
from snapgen.losses.adversarial import GAMES, smoothness
from snapgen.losses.distillation import output_distillation
from snapgen.losses.task import flow_matching
from snapgen.machine.counting import count, peak_bytes
from snapgen.models.denoiser import Denoiser, feature_widths
from snapgen.models.distiller import Discriminator
from snapgen.models.unet import SnapGenUNet
from snapgen.train.cost import Cost, LatentCost, TeacherCost, compute_dtype
from snapgen.train.latent_recipe import LatentRecipe
from snapgen.train.latent_stage import Batch, LatentStage, text_arguments
from snapgen.train.places import folder_or_hub_name
from snapgen.train.scaling import ScalingSettings, TimestepScaling
from snapgen.train.stage import DISCRIMINATOR, Context, derive_seed
from snapgen.train.teachers.teacher import NetworkTeacher

DIVERSITY_SEEDS = 4  # samples per prompt whose distances are measured
COLLAPSED = 0.5  # share of the diversity before training


class AdversarySettings(Settings):
    """The discriminator of Eq. 9 and its adversarial game."""

    weight: float = Field(default=1.0, ge=0)  # of the generator's adversarial loss, next to S; 0: no adversary
    game: Literal["hinge", "non-saturating"] = "hinge"  # hinge: LADD's; non-saturating: Eq. 9 in a trainable form
    taps: tuple[int, ...] = Field(min_length=1)  # indices of the teacher's blocks whose features are judged
    hidden: int = Field(default=256, gt=0)  # width between a head's two linear layers
    updates: int = Field(default=1, gt=0)  # of the discriminator per update of the generator
    rate: float = Field(default=1.0, gt=0)  # factor on train.learning_rate: the heads start from nothing
    # Where x_0 and x_0' are compared: Eq. 9's t-1, the next level of the student's schedule, or LADD's logit-normal.
    noise: Literal["next", "logit-normal"] = "next"
    lowest: float = Field(default=0.02, ge=0, lt=1)  # sigma; no teacher understands inputs without any noise
    smoothness: float = Field(default=0.0, ge=0)  # weight of R1, approximated; keeps the discriminator from memorising
    smoothness_spread: float = Field(default=0.05, gt=0)  # std of the noise that approximates it, on latents


class StepDistillationSettings(ScalingSettings):
    """What the student learns from the teacher, and for which schedules."""

    schedules: tuple[int, ...] = Field(default=(4, 8), min_length=1)  # numbers of steps; the first is the default
    guidance_scale: float = Field(default=1.0, ge=0)  # of the teacher; the student needs none afterwards
    # Euler steps of the teacher between two noise levels of the student. 1 is Eq. 4, for a teacher that itself needs
    # few steps. With more, any model can teach (progressive distillation, Salimans and Ho 2022).
    teacher_steps: int = Field(default=1, gt=0)
    # Add the task loss, weighted by S (Eq. 9). Best switched off with a guided teacher: lambda is large in the middle
    # of a schedule, where the task teaches the velocity without guidance.
    task: bool = True


class StepRecipe(LatentRecipe):
    """Settings of the `step` stage."""

    retired = ("lora", "contrasts", "draws", "target_cache")
    stage: Literal["step"]
    initial: Path  # pipeline folder of the student to start from; "mini-base": the bundled one
    # Folder of one of our pipelines, which reads the student's text states; or a Stable Diffusion 3, as in `distill`.
    teacher: str
    distillation: StepDistillationSettings = StepDistillationSettings()
    adversary: AdversarySettings
    guidance_scale: float = Field(default=1.0, ge=0)
    num_inference_steps: int = Field(default=4, gt=0)


class FewStepStudent(nn.Module):
    """The UNet as the generator `G` of Eq. 9, the discriminator trained against it, and the scaling of its losses."""

    def __init__(self, unet: SnapGenUNet, discriminator: Discriminator, scaling: TimestepScaling | None = None):
        super().__init__()
        self.unet = unet
        self.discriminator = discriminator
        self.scaling = scaling

    def forward(
        self,
        sample: Tensor,
        sigmas: Tensor,
        text: Mapping[str, Tensor],
        look: Callable[[Tensor], Sequence[Tensor]] | None,
        timestep: Tensor,
        real: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """The generator's turn, or, with `real`, the discriminator's, in which only the discriminator has gradients.

        Args:
            sample, sigmas, text: x_t B C H W, its noise level B in [0, 1], and the text as the UNet takes it.
            look: noises an x_0 again and returns the teacher's features of it; None: nothing is judged.
            timestep: 1000 times the level of that noise, B.
            real: latents of pictures, each B C H W.

        Returns: the velocity, and the logits of the generated x_0' and then of each of `real`, B N each.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not real):
            velocity = self.unet(sample, TIMESTEP_SCALE * sigmas, **text, return_dict=False)[0]
            if look is None:
                return velocity, []
            seen = [look(latents) for latents in (predict_x0(sample, velocity, sigmas), *real)]
        return velocity, [self.discriminator(features, timestep) for features in seen]


class StepStage(LatentStage[StepRecipe, FewStepStudent]):
    """Trains a UNet at the noise levels of few-step schedules only, in turn with the discriminator's heads."""

    recipe_type = StepRecipe
    teacher: NetworkTeacher

    def __init__(self, recipe: StepRecipe, context: Context) -> None:
        folder_or_hub_name("teacher", recipe.teacher)  # a mistake shows before pictures are encoded
        super().__init__(recipe, context)
        student, settings = self.require_unet(), recipe.adversary
        self.teacher = self.load_teacher(recipe.teacher)
        widths = self.teacher.feature_widths
        if wrong := [tap for tap in settings.taps if not -len(widths) <= tap < len(widths)]:
            raise RecipeError(f"adversary.taps: {wrong[0]} given, the teacher has blocks 0 to {len(widths) - 1}")
        heads = Discriminator([widths[tap] for tap in settings.taps], settings.hidden)
        self.scaling = None
        if recipe.distillation.task:
            self.scaling = TimestepScaling(recipe.distillation, recipe.timesteps.shift, ("output",))
        self.model = self.place(FewStepStudent(student, heads, self.scaling))
        if settings.weight:
            self.turns = (DISCRIMINATOR,) * settings.updates + ("",)
        # For every schedule, the levels at which each of its S steps starts and ends, S 2.
        levels = [sampling_levels(steps, recipe.timesteps.shift) for steps in recipe.distillation.schedules]
        self.steps = [torch.tensor(list(pairwise(visited))) for visited in levels]
        self.diversity_before = self._diversity(student, recipe.num_inference_steps, recipe.distillation.guidance_scale)

    @classmethod
    def cost(cls, recipe: StepRecipe, batch: int, teacher: str | None = None) -> Cost:
        """The cost of the student, the teacher's Euler steps, and the adversary in its own turns and the other."""
        base, adversary = LatentCost(recipe, batch), recipe.adversary
        guide = TeacherCost(base, recipe.teacher, teacher)
        widths = feature_widths(guide.network)
        guided = 1 + has_guidance(recipe.distillation.guidance_scale)
        flops = {
            "network": 2 * base.passes * base.macs,
            "teacher": 2.0 * guide.counts.macs * guided * recipe.distillation.teacher_steps,
        }
        with torch.device("meta"), torch.no_grad():
            heads = Discriminator([widths[tap] for tap in adversary.taps], adversary.hidden)
            student = FewStepStudent(cast(SnapGenUNet, base.network), heads)
            if adversary.weight:
                seen = guide.network(**base.inputs(guide.network, 1, guide.published), taps=adversary.taps)[1]
                judged = count(heads, lambda: heads(seen, torch.empty(1))).macs
                looks = 3 if adversary.smoothness else 2  # generated, real, and perturbed real ones
                own_turns = adversary.updates * (base.macs + looks * (guide.counts.macs + 3 * judged))
                generator = 2 * (guide.counts.macs + judged)  # forward, and back to the pictures
                flops["adversary"] = 2.0 * (own_turns + generator)
        return base.total(
            student,
            flops,
            guide.frozen(recipe),
            generator_bytes(base, guide, adversary.taps) if adversary.weight else base.forward_bytes(),
            turns=adversary.updates + 1 if adversary.weight else 1,  # every turn has its own batch
            more_text=guide.own_text,
        )

    def learners(self, turn: str) -> Iterable[nn.Parameter]:
        """The parameters of the heads, or of the UNet."""
        return self.model.discriminator.parameters() if turn == DISCRIMINATOR else self.model.unet.parameters()

    def rate(self, turn: str) -> float:
        """The heads have their own factor."""
        return self.recipe.adversary.rate if turn == DISCRIMINATOR else 1.0

    def denoiser(self, model: FewStepStudent) -> Denoiser:
        """The student's UNet."""
        return model.unet

    def batch(self, step: int) -> Batch:
        """As `LatentStage.batch`, but `sigmas` are levels of the schedules and `next` the levels that follow them.

        It also has the discriminator's noise level, `judged`, its noise for generated and for real latents, and the
        perturbation for `smoothness`.
        """
        batch = super().batch(step)
        count = len(batch["x0"])
        total, first = count * self.context.world, count * self.context.rank
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, step, 1))
        schedules = torch.randint(len(self.steps), (total,), generator=generator).tolist()
        places = torch.rand(total, generator=generator).tolist()
        pairs = [self.steps[schedule] for schedule in schedules]
        chosen = torch.stack([pair[int(place * len(pair))] for pair, place in zip(pairs, places, strict=True)])
        judged, timesteps = chosen[:, 1], self.recipe.timesteps
        if self.recipe.adversary.noise == "logit-normal":
            judged = sample_sigmas(total, generator, timesteps.shift, timesteps.mean, timesteps.std)
        shape = (total, *batch["x0"].shape[1:])
        noises = [torch.randn(shape, generator=generator) for _ in range(3)]
        own, device = slice(first, first + count), self.context.device
        extra = {
            "sigmas": chosen[own, 0],
            "next": chosen[own, 1],
            "judged": judged[own].clamp(min=self.recipe.adversary.lowest),
            "fake_noise": noises[0][own],
            "real_noise": noises[1][own],
            "perturbation": self.recipe.adversary.smoothness_spread * noises[2][own],
        }
        return batch | {name: value.to(device) for name, value in extra.items()}

    def turn_loss(self, turn: str, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Either side of Eq. 9."""
        return self._discriminator_loss(model, batch) if turn == DISCRIMINATOR else self.loss(model, batch)

    def _discriminator_loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        settings, x0 = self.recipe.adversary, batch["x0"]
        real = [x0, x0 + batch["perturbation"]] if settings.smoothness else [x0]
        noises = iter([batch["fake_noise"], *[batch["real_noise"]] * len(real)])
        _, (generated, given, *perturbed) = self._judge(model, batch, lambda latents: next(noises), real)
        loss = GAMES[settings.game][0](given, generated)
        for logits in perturbed:
            loss = loss + settings.smoothness * smoothness(given, logits)
        means = {"real": given.mean(), "fake": generated.mean()}
        return {"loss": loss, **means, "gap": means["real"] - means["fake"]}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The generator's side of Eq. 9: adversarial loss, plus S of task and output losses or output loss alone."""
        velocity, logits = self._judge(model, batch, lambda latents: batch["fake_noise"])
        parts = self._lessons(velocity, batch)
        if self.scaling is not None:
            self.scaling.update(parts, batch["sigmas"])
        weighted, scaled = self._combined(parts, batch["sigmas"])
        combined = weighted.mean()
        losses = {name: loss.mean() for name, loss in (parts | scaled).items()}
        if not logits:
            return {"loss": combined, **losses}
        adversarial = GAMES[self.recipe.adversary.game][1](logits[0])
        return {"loss": combined + self.recipe.adversary.weight * adversarial, **losses, "adversarial": adversarial}

    def _combined(self, parts: dict[str, Tensor], sigmas: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """S of Eq. 9 for each sample and the output loss at the task's scale, or the output loss alone."""
        return (parts["output"], {}) if self.scaling is None else self.scaling(parts, sigmas)

    def _judge(
        self,
        model: nn.Module,
        batch: Batch,
        noise_of: Callable[[Tensor], Tensor],
        real: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """The student's velocity, and the logits of its x_0' and of `real`; no logits without an adversary."""
        settings, level = self.recipe.adversary, batch["judged"]

        def look(latents: Tensor) -> Sequence[Tensor]:
            x = interpolate(latents, noise_of(latents), level)
            with self.autocast():
                return self.teacher(x, level, batch, settings.taps)[1]

        x = interpolate(batch["x0"], batch["noise"], batch["sigmas"])
        with self.attention():
            logits: tuple[Tensor, list[Tensor]] = model(
                x,
                batch["sigmas"],
                text_arguments(batch),
                look if settings.weight else None,
                TIMESTEP_SCALE * level,
                real,
            )
        return logits

    def _lessons(self, velocity: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`task` (Eq. 2) and `output` (Eq. 4) of each sample, given the student's velocity."""
        return {
            "task": flow_matching(velocity, batch["x0"], batch["noise"]),
            "output": output_distillation(velocity, self._taught_velocity(batch)),
        }

    @torch.no_grad()
    def _taught_velocity(self, batch: Batch) -> Tensor:
        """The straight velocity to where `teacher_steps` Euler steps of the teacher arrive at the next level."""
        settings = self.recipe.distillation
        count = settings.teacher_steps
        x = start = interpolate(batch["x0"], batch["noise"], batch["sigmas"])
        stride = (batch["next"] - batch["sigmas"]) / count
        for index in range(count):
            level = batch["sigmas"] + index * stride
            with self.autocast():
                velocity, _ = self.teacher(x, level, batch, guidance_scale=settings.guidance_scale)
            x = x + per_sample(stride, x) * velocity
        return (x - start) / per_sample(count * stride, x)

    @torch.no_grad()
    def timestep_losses(self, model: FewStepStudent) -> dict[str, list[float]]:
        """Task and output losses on held-out compositions at the levels of the longest schedule."""
        longest = max(self.steps, key=len).flip(0)  # rising
        heldout = self.heldout
        each = len(heldout["x0"]) // len(longest)
        heldout = {name: value[: each * len(longest)] for name, value in heldout.items()}
        sigmas, following = longest.repeat_interleave(each, dim=0).to(self.context.device).unbind(1)
        batch = heldout | {"sigmas": sigmas, "next": following}
        with self.autocast(), self.attention():
            parts = self.in_parts(partial(self._heldout_lessons, model), batch)
        combined, scaled = self._combined(parts, sigmas)
        parts |= {"loss": combined} | scaled
        curves: dict[str, Any] = {"sigma": longest[:, 0].tolist()}
        return curves | {name: loss.reshape(len(longest), -1).mean(dim=1).tolist() for name, loss in parts.items()}

    def _heldout_lessons(self, model: FewStepStudent, batch: Batch) -> dict[str, Tensor]:
        x = interpolate(batch["x0"], batch["noise"], batch["sigmas"])
        velocity = self.denoiser(model)(x, TIMESTEP_SCALE * batch["sigmas"], **text_arguments(batch)).sample
        return self._lessons(velocity, batch)

    def metrics(self, model: FewStepStudent) -> dict[str, float]:
        """`diversity` of a fixed grid relative to before training; a collapse is reported in one line."""
        share = self._diversity(self.denoiser(model), self.recipe.num_inference_steps, self.recipe.guidance_scale)
        share /= max(self.diversity_before, 1e-9)
        if share < COLLAPSED:
            self.context.warn(
                f"the samples of one prompt are {share:.0%} as diverse as before step distillation: the generator "
                "collapses; lower adversary.weight, or raise adversary.smoothness"
            )
        return {"diversity": share}

    @torch.no_grad()
    def _diversity(self, unet: Denoiser, steps: int, guidance_scale: float) -> float:
        """Mean distance (root mean square) between latents sampled for one prompt from different noise."""
        pipeline = self.pipeline(unet.eval())
        pipeline.set_progress_bar_config(disable=True)
        prompts = (list(self.recipe.prompts) or [self.source.caption(0, 0)])[:4]
        generators = [torch.Generator().manual_seed(seed) for _ in prompts for seed in range(DIVERSITY_SEEDS)]
        with self.autocast():
            latents = pipeline(
                prompts,
                num_images_per_prompt=DIVERSITY_SEEDS,
                generator=generators,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                output_type="latent",
                return_dict=False,
            )[0]
        groups = latents.reshape(len(prompts), DIVERSITY_SEEDS, -1)
        distances = torch.cdist(groups, groups) / groups.shape[-1] ** 0.5
        return distances.sum().item() / (len(prompts) * DIVERSITY_SEEDS * (DIVERSITY_SEEDS - 1))


def generator_bytes(base: LatentCost, guide: TeacherCost, taps: tuple[int, ...]) -> int:
    """Peak bytes of the generator's turn, which passes through the teacher.

    The teacher's weights have no gradients, but the backward pass to the student's picture needs its activations.
    """
    with torch.device("meta"):
        network, teacher = base.fresh_network(), guide.network.to(compute_dtype(base.recipe))
        inputs = base.cast(base.inputs(network, base.batch))
        given = base.cast(base.inputs(teacher, base.batch, guide.published))

        def generate() -> list[Tensor]:
            velocity = network(**inputs, return_dict=False)[0]
            sample = predict_x0(inputs["sample"], velocity, inputs["timestep"]).to(velocity.dtype)
            features: list[Tensor] = teacher(**given | {"sample": sample}, taps=taps)[1]
            return features

        return peak_bytes(generate)
