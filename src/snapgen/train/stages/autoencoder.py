"""The `autoencoder` stage: encoder and tiny decoder together, or the decoder alone behind a frozen encoder.

Together, as the miniature needs them: reconstruction with a light KL term that keeps latents near a normal
distribution; their mean and spread are measured at the end and written to the configuration. Alone, as
Sec. 3.2 trains its decoder: `train_encoder: false`, no KL term, latents and their scale stay what they were.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from snapgen.config import Recipe, RecipeError, Settings
from snapgen.data import open_source
from snapgen.data.pictures import random_crop, to_tensor, to_uint8
from snapgen.data.preview import contact_sheet
from snapgen.data.scenes import SceneSettings
from snapgen.losses.reconstruction import gradient_loss, kl_loss, psnr
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.presets import create_autoencoder
from snapgen.train.stage import Context, Stage

VALIDATION_COUNT = 64  # pictures, from the far end of the source
STATISTICS_COUNT = 1024  # pictures over which the latents' mean and spread are measured


class LossWeights(Settings):
    """Weights of the terms of the loss; all are means over elements."""

    mse: float = Field(default=1.0, ge=0)
    l1: float = Field(default=0.5, ge=0)
    gradient: float = Field(default=0.5, ge=0)
    kl: float = Field(default=1e-4, ge=0)


class AutoencoderRecipe(Recipe):
    """Settings of the `autoencoder` stage."""

    stage: Literal["autoencoder"]
    model: str  # autoencoder preset
    initial: Path | None = None  # folder of an autoencoder of that preset to start from
    whiten: bool = False  # at the end, give the latents covariance 1 (the preset must have use_post_quant_conv)
    train_encoder: bool = True  # False: the encoder of `initial` stays frozen and the KL term is left out
    data: SceneSettings
    crop: int = Field(gt=0, multiple_of=32)  # side of the training patches in pixels
    weights: LossWeights = LossWeights()

    @model_validator(mode="after")
    def _frozen_encoder_is_trained(self) -> AutoencoderRecipe:
        if not self.train_encoder and self.initial is None:
            raise ValueError("train_encoder: false needs initial, the folder of a trained autoencoder")
        if self.whiten and not self.train_encoder:
            raise ValueError("whiten changes the latents, train_encoder: false keeps them: choose one")
        return self


class TrainableAutoencoder(nn.Module):
    """The autoencoder with a forward pass that also gives the posterior, which the KL term needs."""

    def __init__(self, autoencoder: SnapGenAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction (as `pictures`), posterior mean and log-variance (as `noise`: B C h w)."""
        posterior = self.autoencoder.encode(pictures, return_dict=False)[0]
        latent = posterior.mean + posterior.std * noise
        return self.autoencoder.decode(latent, return_dict=False)[0], posterior.mean, posterior.logvar


class AutoencoderStage(Stage[AutoencoderRecipe, TrainableAutoencoder]):
    """Trains an autoencoder preset on random crops."""

    recipe_type = AutoencoderRecipe

    def __init__(self, recipe: AutoencoderRecipe, context: Context):
        super().__init__(recipe, context)
        self.source = open_source(recipe.data)
        autoencoder = create_autoencoder(recipe.model)
        if recipe.initial is not None:
            if not recipe.initial.is_dir():
                raise RecipeError(f"initial: folder {recipe.initial} does not exist")
            autoencoder = SnapGenAutoencoder.from_pretrained(recipe.initial, dtype=torch.float32)
        autoencoder.encoder.requires_grad_(recipe.train_encoder)
        autoencoder = autoencoder.to(context.device, memory_format=torch.channels_last)
        if recipe.whiten and autoencoder.post_quant_conv is None:
            raise RecipeError(f"whiten: model {recipe.model} has no post_quant_conv; use a preset that has one")
        self.model = TrainableAutoencoder(autoencoder)
        self.latent_channels = autoencoder.config.latent_channels
        self.factor = autoencoder.spatial_factor

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Patches B 3 crop crop in [-1, 1] and the posterior's noise B C crop/f crop/f."""
        patches, noise = [], []
        for number in self.local_indices(step):
            seed = (self.recipe.seed, number)
            picture = self.source.image(number % len(self.source))
            patches.append(random_crop(picture, self.recipe.crop, seed))
            side = self.recipe.crop // self.factor
            shape = (self.latent_channels, side, side)
            noise.append(np.random.default_rng((*seed, 1)).standard_normal(shape, np.float32))
        device = self.context.device
        pictures = to_tensor(patches).to(device).contiguous(memory_format=torch.channels_last)
        return pictures, torch.from_numpy(np.stack(noise)).to(device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Weighted sum of MSE, L1, multi-scale gradient and KL terms."""
        pictures, noise = batch
        reconstruction, mean, log_variance = model(pictures, noise)
        reconstruction = reconstruction.float()
        parts = {
            "mse": F.mse_loss(reconstruction, pictures),
            "l1": F.l1_loss(reconstruction, pictures),
            "gradient": gradient_loss(reconstruction, pictures),
        }
        if self.recipe.train_encoder:
            parts["kl"] = kl_loss(mean.float(), log_variance.float())
        weights = self.recipe.weights.model_dump()
        return {"loss": sum((weights[name] * part for name, part in parts.items()), torch.zeros(())), **parts}

    def _validation(self, count: int) -> Tensor:
        start = max(len(self.source) - count, 0)
        pictures = to_tensor([self.source.image(index) for index in range(start, len(self.source))])
        return pictures.to(self.context.device)

    @torch.no_grad()
    def metrics(self, model: TrainableAutoencoder) -> dict[str, float]:
        """Mean PSNR (dB) of whole pictures."""
        pictures = self._validation(VALIDATION_COUNT)
        reconstruction = torch.cat([model.autoencoder(part).sample for part in pictures.split(16)])
        return {"psnr": psnr(reconstruction, pictures).mean().item()}

    @torch.no_grad()
    def draw(self, model: TrainableAutoencoder) -> Image.Image:
        """Pictures, each beside its reconstruction."""
        pictures = self._validation(12)
        pairs = torch.stack([pictures, model.autoencoder(pictures).sample], dim=1).flatten(0, 1)
        return contact_sheet(to_uint8(pairs), ["picture", "reconstruction"] * len(pictures), columns=6)

    @torch.no_grad()
    def save(self, model: TrainableAutoencoder, folder: Path) -> None:
        """A diffusers folder; its latents are white, or its configuration carries their measured scale and shift."""
        if self.recipe.train_encoder:
            self._measure_latents(model)
        model.autoencoder.save_pretrained(folder)

    def _measure_latents(self, model: TrainableAutoencoder) -> None:
        count = min(STATISTICS_COUNT, len(self.source))
        numbers = range(0, count, 16)
        latents = []
        for start in self.context.progress(numbers, "latent statistics", len(numbers)):
            pictures = to_tensor([self.source.image(index) for index in range(start, min(start + 16, count))])
            posterior = model.autoencoder.encode(pictures.to(self.context.device), return_dict=False)[0]
            latents.append(posterior.mode())
        values = torch.cat(latents)
        if self.recipe.whiten:
            model.autoencoder.whiten(values)
            return
        model.autoencoder.register_to_config(
            scaling_factor=1.0 / values.std().item(), shift_factor=values.mean().item()
        )
