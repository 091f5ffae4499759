"""The `flow` stage: the UNet learns the velocity of Eq. 2 on latents, given frozen text states (Sec. 3.3)."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from snapgen.config import RecipeError, Settings
from snapgen.messages import one_line
from snapgen.models.denoiser import Denoiser
from snapgen.models.unet import SnapGenUNet
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.train.binding import BindingTest
from snapgen.train.cost import Cost, LatentCost
from snapgen.train.latent_recipe import LatentRecipe
from snapgen.train.latent_stage import Batch, LatentStage
from snapgen.train.stage import Context


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021) on linear layers; everything else stays frozen."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=16.0, gt=0)  # the adapter's output is scaled by alpha / rank
    targets: tuple[str, ...] = ("to_q", "to_kv", "to_out", "proj_in", "proj_out")  # names of layers


class FlowRecipe(LatentRecipe):
    """Settings of the `flow` stage."""

    stage: Literal["flow"]
    lora: LoraSettings | None = None  # train adapters of `initial` instead of the whole UNet
    # How many captions with one wrong detail, per kind of detail, the loss is measured on whenever samples are made
    # (`snapgen.train.binding`). Only sources that know what their captions mean have them.
    contrasts: int = Field(default=32, ge=0)

    @model_validator(mode="after")
    def _adapters_adapt_something(self) -> FlowRecipe:
        if self.lora is not None and self.initial is None:
            raise ValueError("lora needs initial, the pipeline folder to adapt")
        return self


class FlowStage(LatentStage[FlowRecipe, nn.Module]):
    """Trains a UNet preset, a teacher's transformer, or adapters of a UNet by flow matching."""

    recipe_type = FlowRecipe

    def __init__(self, recipe: FlowRecipe, context: Context) -> None:
        super().__init__(recipe, context)
        if recipe.lora is not None:
            if not isinstance(self.network, SnapGenUNet):
                name = type(self.network).__name__
                raise RecipeError(f"lora: {name} is a teacher; adapters are for a {SnapGenUNet.__name__}")
            add_adapters(self.network, recipe.lora)
        self.model = self.place(self.network)

    @classmethod
    def cost(cls, recipe: FlowRecipe, batch: int, teacher: str | None = None) -> Cost:
        """The cost of the network and the encoders; adapters save the gradients of the frozen weights."""
        base, lora = LatentCost(recipe, batch), recipe.lora
        if lora is None:
            return base.total(base.network, {"network": 2 * base.passes * base.macs}, {}, base.forward_bytes())
        adapt = partial(add_adapters, settings=lora)
        adapt(base.network)
        flops = {"network": 2 * (base.passes - 1) * base.macs}
        return base.total(base.network, flops, {}, base.forward_bytes(adapt))

    def denoiser(self, model: nn.Module) -> Denoiser:
        """The model itself, which is the network."""
        return cast(Denoiser, model)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean of Eq. 2."""
        return {"loss": self.task_losses(model, batch).mean()}

    @torch.no_grad()
    def timestep_losses(self, model: nn.Module) -> dict[str, list[float]]:
        """The loss on held-out compositions by noise level, always with the same noise."""
        with self.autocast():
            found = self.in_parts(lambda part: {"loss": self.task_losses(model, part)}, self.heldout)
        return self.by_noise_level(found)

    @cached_property
    def _binding(self) -> BindingTest | None:
        return self.make_binding_test(self.recipe.contrasts)

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """The binding measures (`snapgen.train.binding`)."""
        return self.measure_binding(model, self._binding)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes a complete pipeline folder, or adapters as `SnapGenPipeline.load_lora_weights` reads them."""
        if self.recipe.lora is None:
            super().save(model, folder)
            return
        from peft.utils import get_peft_model_state_dict

        settings = cast(Any, model).peft_config["default"].to_dict()  # saved too: alpha is in no tensor
        SnapGenPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(model),
            unet_lora_adapter_metadata=settings | {"target_modules": sorted(settings["target_modules"])},
        )


def add_adapters(unet: SnapGenUNet, settings: LoraSettings) -> None:
    """Freezes `unet` and gives it trainable adapters, which change nothing yet."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise RecipeError("lora needs peft: pip install 'snapgen[train]'") from None
    unet.requires_grad_(False)
    targets = list(settings.targets)
    try:
        unet.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets))
    except ValueError as error:
        raise RecipeError(f"lora.targets {targets}: {one_line(error)}") from None
