"""The `step` stage: a student that needs few steps, by distillation and an adversary at once (Sec. 3.4, Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from snapgen.config import RecipeError, Settings
from snapgen.flow.path import interpolate, per_sample, predict_x0, velocity_target
from snapgen.flow.timesteps import TIMESTEP_SCALE, sample_sigmas, sampling_sigmas
from snapgen.losses.adversarial import GAMES, smoothness
from snapgen.losses.distillation import output_distillation, squared_error, timestep_aware
from snapgen.models.denoiser import Denoiser
from snapgen.models.distiller import Discriminator
from snapgen.models.unet import SnapGenUNet
from snapgen.train.stage import DISCRIMINATOR, Context, derive_seed
from snapgen.train.stages.distill import DistillRecipe, DistillStage

DIVERSITY_SEEDS = 4  # pictures of every prompt whose distances are measured
COLLAPSED = 0.5  # of the diversity before training


class AdversarySettings(Settings):
    """The discriminator of Eq. 9 and the game that is played with it."""

    weight: float = Field(default=1.0, ge=0)  # of the generator's adversarial loss beside S; 0: there is no adversary
    game: Literal["hinge", "non-saturating"] = "hinge"  # LADD's, and the form of Eq. 9 that can be trained
    taps: tuple[int, ...] = Field(min_length=1)  # numbers of the teacher's blocks whose features are judged
    hidden: int = Field(default=256, gt=0)  # width between a head's two linear layers
    updates: int = Field(default=1, gt=0)  # of the discriminator for each of the generator
    rate: float = Field(default=1.0, gt=0)  # of the heads' learning, times train.learning_rate: they start from nothing
    # Where x_0 and x_0' are compared: Eq. 9's t-1, the next level of the student's schedule, or LADD's logit-normal.
    noise: Literal["next", "logit-normal"] = "next"
    lowest: float = Field(default=0.02, ge=0, lt=1)  # sigma; no teacher knows what it sees without any noise
    smoothness: float = Field(default=0.0, ge=0)  # weight of R1, approximated; keeps a discriminator from memorising
    smoothness_spread: float = Field(default=0.05, gt=0)  # of the noise that approximates it, in latents


class StepDistillationSettings(Settings):
    """What the student is taught, and for which schedules."""

    schedules: tuple[int, ...] = Field(default=(4, 8), min_length=1)  # numbers of steps; the first is the default
    guidance_scale: float = Field(default=1.0, ge=0)  # of the teacher; the student needs none afterwards
    # Euler steps of the teacher between two levels of the student. 1 is Eq. 4, for a teacher that itself needs few
    # steps. More make a teacher of any other (progressive distillation, Salimans and Ho 2022).
    teacher_steps: int = Field(default=1, gt=0)
    # The task loss beside the teacher's, weighed by S (Eq. 9). Better not under a guided teacher: lambda is large in
    # the middle of a schedule, and there the task teaches the velocity without guidance.
    task: bool = True


class StepRecipe(DistillRecipe):
    """Settings of the `step` stage: those of `flow`, the teacher, and its use."""

    stage: Literal["step"]  # type: ignore[assignment]
    distillation: StepDistillationSettings = StepDistillationSettings()  # type: ignore[assignment]
    adversary: AdversarySettings
    guidance_scale: float = Field(default=1.0, ge=0)
    num_inference_steps: int = Field(default=4, gt=0)

    @model_validator(mode="after")
    def _no_stored_targets(self) -> StepRecipe:
        if self.draws is not None:
            raise ValueError("draws and target_cache belong to the stage distill")
        return self

    @model_validator(mode="after")
    def _starts_somewhere(self) -> StepRecipe:
        if self.initial is None:
            raise ValueError("step distillation needs initial, the pipeline folder of the student")
        return self


class FewStepStudent(nn.Module):
    """The UNet as the generator `G` of Eq. 9, and the discriminator that is trained against it."""

    def __init__(self, unet: SnapGenUNet, discriminator: Discriminator):
        super().__init__()
        self.unet = unet
        self.discriminator = discriminator

    def forward(
        self,
        sample: Tensor,
        sigmas: Tensor,
        states: Tensor,
        mask: Tensor,
        look: Callable[[Tensor], Sequence[Tensor]] | None,
        timestep: Tensor,
        real: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """The generator's turn, or with `real` the discriminator's, in which only that keeps gradients.

        Args:
            sample, sigmas, states, mask: x_t B C H W, its noise level B in [0, 1], and the text.
            look: from a x_0 to the teacher's features of it, noised again; None: nothing is judged.
            timestep: 1000 times that noise's level, B.
            real: latents of pictures, each B C H W.

        Returns: the velocity, and the logits of the generated x_0', then of each of `real`, B N each.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not real):
            velocity = self.unet(sample, TIMESTEP_SCALE * sigmas, states, mask, return_dict=False)[0]
            if look is None:
                return velocity, []
            seen = [look(latents) for latents in (predict_x0(sample, velocity, sigmas), *real)]
        return velocity, [self.discriminator(features, timestep) for features in seen]


class StepStage(DistillStage):
    """Trains a UNet at the noise levels of few-step schedules alone, and the discriminator's heads in turn with it."""

    recipe_type = StepRecipe

    def __init__(self, recipe: StepRecipe, context: Context):
        super().__init__(recipe, context)
        if recipe.adversary.weight:
            self.turns = (DISCRIMINATOR,) * recipe.adversary.updates + ("",)
        # Every step of every schedule: the level it leaves and the one it reaches, S 2.
        levels = [sampling_sigmas(steps, recipe.timesteps.shift) for steps in recipe.distillation.schedules]
        self.steps = [torch.stack([visited[:-1], visited[1:]], dim=1) for visited in levels]
        self.diversity_before = self._diversity(
            self.denoiser(self.model), recipe.num_inference_steps, recipe.distillation.guidance_scale
        )

    def _trained(self, student: SnapGenUNet) -> FewStepStudent:
        taps, widths = self.recipe.adversary.taps, self.teacher.feature_widths
        wrong = [tap for tap in taps if not -len(widths) <= tap < len(widths)]
        if wrong:
            raise RecipeError(f"adversary.taps: {wrong[0]} given, the teacher has blocks 0 to {len(widths) - 1}")
        return FewStepStudent(student, Discriminator([widths[tap] for tap in taps], self.recipe.adversary.hidden))

    def learners(self, turn: str) -> Iterable[nn.Parameter]:
        """The heads, or the UNet."""
        return self.model.discriminator.parameters() if turn == DISCRIMINATOR else self.model.unet.parameters()

    def rate(self, turn: str) -> float:
        """The heads' own."""
        return self.recipe.adversary.rate if turn == DISCRIMINATOR else 1.0

    def denoiser(self, model: nn.Module) -> Denoiser:
        """The student's UNet."""
        return cast(FewStepStudent, model).unet

    def batch(self, step: int) -> dict[str, Tensor]:
        """As `FlowStage.batch`, but at the levels that schedules visit: `sigmas`, and the `next` ones.

        Beside them the level at which the discriminator looks, `judged`, and the noise with which it does, one for
        generated and one for real latents.
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

    def turn_loss(self, turn: str, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 9, either side of it."""
        return self._discriminator_loss(model, batch) if turn == DISCRIMINATOR else self.loss(model, batch)

    def _discriminator_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        settings, x0 = self.recipe.adversary, batch["x0"]
        real = [x0, x0 + batch["perturbation"]] if settings.smoothness else [x0]
        noises = iter([batch["fake_noise"], *[batch["real_noise"]] * len(real)])
        _, (generated, given, *perturbed) = self._judge(model, batch, lambda latents: next(noises), real)
        loss = GAMES[settings.game][0](given, generated)
        for logits in perturbed:
            loss = loss + settings.smoothness * smoothness(given, logits)
        means = {"real": given.mean(), "fake": generated.mean()}
        return {"loss": loss, **means, "gap": means["real"] - means["fake"]}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The generator's side of Eq. 9: the adversarial loss, and S of task and output losses, or the latter alone."""
        velocity, logits = self._judge(model, batch, lambda latents: batch["fake_noise"])
        parts = self._lessons(velocity, batch)
        combined = self._combined(parts, batch["sigmas"]).mean()
        losses = {name: loss.mean() for name, loss in parts.items()}
        if not logits:
            return {"loss": combined, **losses}
        adversarial = GAMES[self.recipe.adversary.game][1](logits[0])
        return {"loss": combined + self.recipe.adversary.weight * adversarial, **losses, "adversarial": adversarial}

    def _combined(self, parts: dict[str, Tensor], sigmas: Tensor) -> Tensor:
        """S of Eq. 9 for each sample, or its output loss alone."""
        if not self.recipe.distillation.task:
            return parts["output"]
        return timestep_aware(parts["task"], parts["output"], sigmas)

    def _judge(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        noise_of: Callable[[Tensor], Tensor],
        real: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """The student's velocity, and the logits of its x_0' and of `real`; no logits without an adversary."""
        settings, level = self.recipe.adversary, batch["judged"]

        def look(latents: Tensor) -> Sequence[Tensor]:
            x = interpolate(latents, noise_of(latents), level)
            with self._autocast():
                return self.teacher(x, level, batch, settings.taps)[1]

        x = interpolate(batch["x0"], batch["noise"], batch["sigmas"])
        with self._attention():
            logits: tuple[Tensor, list[Tensor]] = model(
                x,
                batch["sigmas"],
                batch["states"],
                batch["mask"],
                look if settings.weight else None,
                TIMESTEP_SCALE * level,
                real,
            )
        return logits

    def _lessons(self, velocity: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`task` (Eq. 2) and `output` (Eq. 4) of each sample, given the student's velocity."""
        return {
            "task": squared_error(velocity, velocity_target(batch["x0"], batch["noise"])),
            "output": output_distillation(velocity, self._taught_velocity(batch)),
        }

    @torch.no_grad()
    def _taught_velocity(self, batch: dict[str, Tensor]) -> Tensor:
        """The straight velocity to where the teacher arrives at the next level, after `teacher_steps` Euler steps."""
        settings = self.recipe.distillation
        count = settings.teacher_steps
        x = start = interpolate(batch["x0"], batch["noise"], batch["sigmas"])
        stride = (batch["next"] - batch["sigmas"]) / count
        for index in range(count):
            level = batch["sigmas"] + index * stride
            with self._autocast():
                velocity, _ = self.teacher(x, level, batch, guidance_scale=settings.guidance_scale)
            x = x + per_sample(stride, x) * velocity
        return (x - start) / per_sample(count * stride, x)

    @torch.no_grad()
    def timestep_losses(self, model: nn.Module) -> dict[str, list[float]]:
        """Task and output losses on held-out compositions at the levels of the longest schedule."""
        longest = max(self.steps, key=len).flip(0)  # rising
        heldout = self._heldout
        each = len(heldout["x0"]) // len(longest)
        heldout = {name: value[: each * len(longest)] for name, value in heldout.items()}
        sigmas, following = longest.repeat_interleave(each, dim=0).to(self.context.device).unbind(1)
        batch = heldout | {"sigmas": sigmas, "next": following}
        with self._autocast(), self._attention():
            parts = self._in_parts(partial(self._heldout_lessons, model), batch)
        parts |= {"loss": self._combined(parts, sigmas)}
        curves: dict[str, Any] = {"sigma": longest[:, 0].tolist()}
        return curves | {name: loss.reshape(len(longest), -1).mean(dim=1).tolist() for name, loss in parts.items()}

    def _heldout_lessons(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = interpolate(batch["x0"], batch["noise"], batch["sigmas"])
        inputs = (x, TIMESTEP_SCALE * batch["sigmas"], batch["states"], batch["mask"])
        return self._lessons(self.denoiser(model)(*inputs).sample, batch)

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """`diversity` of a fixed grid, a share of what it was before training; a collapse is told in a line."""
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
        """Mean distance (root mean square) between latents drawn for one prompt from different noise."""
        pipeline = self.pipeline(unet.eval())
        pipeline.set_progress_bar_config(disable=True)
        prompts = (list(self.recipe.prompts) or [self.source.caption(0, 0)])[:4]
        generators = [torch.Generator().manual_seed(seed) for _ in prompts for seed in range(DIVERSITY_SEEDS)]
        with self._autocast():
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
