"""The `autoencoder` stage: trains encoder and tiny decoder together, or the decoder alone behind a frozen encoder.

Together, for the miniature: reconstruction with a light KL term that keeps the latents near a normal distribution.
Their mean and standard deviation are measured at the end and written to the configuration. Alone, as in Sec. 3.2
(`train_encoder: false`): no KL term, the latents and their scale stay the same; MSE, LPIPS and an adversarial loss on
patches.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from snapgen.config import Recipe, RecipeError, Settings
from snapgen.data.order import InOrder, Order
from snapgen.data.reading import PictureBatches, Sample
from snapgen.data.source import RandomSource, first_readable
from snapgen.data.sources import DataSettings
from snapgen.losses.adversarial import hinge, hinge_generator
from snapgen.losses.reconstruction import gradient_loss, kl_loss, psnr
from snapgen.machine.counting import count, peak_bytes
from snapgen.messages import one_line
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.discriminator import PatchDiscriminator
from snapgen.models.lpips import VGG16, WEIGHTS_FILE, Lpips, load_lpips, vgg16_features
from snapgen.pictures import contact_sheet, random_crop, to_tensor, to_uint8
from snapgen.train.cost import FP32, Cost, compute_dtype
from snapgen.train.networks import AutoencoderSettings
from snapgen.train.places import folder_or_hub_name
from snapgen.train.stage import DISCRIMINATOR, Context, Stage
from snapgen.weights import check_healthy, load_config, load_file, load_network

VALIDATION_COUNT = 64  # pictures, held out if the data has such
NARROW = -6.0  # log-variance of a fresh encoder's posterior
ENCODER = "encoder."  # prefix of its weights in an autoencoder's
STATISTICS_COUNT = 1024  # pictures on which the latents' mean and standard deviation are measured


class LossWeights(Settings):
    """Weights of the loss terms; all terms are means over elements."""

    mse: float = Field(default=1.0, ge=0)
    l1: float = Field(default=0.5, ge=0)
    gradient: float = Field(default=0.5, ge=0)  # for when LPIPS's weights are unavailable: it too rewards edges
    kl: float = Field(default=1e-4, ge=0)
    lpips: float = Field(default=0.0, ge=0)  # on VGG-16, whose weights `lpips_network` names
    adversarial: float = Field(default=0.0, ge=0)  # hinge loss of a patch discriminator


class AutoencoderRecipe(Recipe):
    """Settings of the `autoencoder` stage."""

    stage: Literal["autoencoder"]
    model: AutoencoderSettings  # a preset, or {preset: decoder, decoder_blocks: [2, 1, 1, 1]}: one with changes
    initial: Path | None = None  # folder of an autoencoder of that preset to start from
    # The encoder to take: folder or hub name of diffusers' AutoencoderKL (SD3's), or folder of one trained here
    encoder: str | None = None
    whiten: bool = False  # at the end, give the latents unit covariance (the preset must have use_post_quant_conv)
    train_encoder: bool = True  # False: the encoder of `initial` stays frozen and the KL term is omitted
    data: DataSettings
    workers: int = Field(default=8, gt=0)  # threads per process that read pictures ahead of training
    crop: int = Field(gt=0, multiple_of=32)  # side of the training patches in pixels
    # The most noise added to latents in training, in standard deviations of the latents (l-DeTok, Yang et al. 2025,
    # arXiv 2507.15856). The decoder learns to cope with imprecise latents, and the encoder to keep what matters out of
    # the noise's reach. The amount is random for each picture; small amounts are more frequent.
    latent_noise: float = Field(default=0.0, ge=0)
    weights: LossWeights = LossWeights()
    # VGG-16's weights for LPIPS: a hub name, a safetensors file, or a folder with `model.safetensors`
    lpips_network: str = VGG16

    @model_validator(mode="after")
    def _frozen_encoder_is_trained(self) -> AutoencoderRecipe:
        if not self.train_encoder and self.initial is None and self.encoder is None:
            raise ValueError("train_encoder: false needs initial or encoder, where the trained one is")
        if self.initial is not None and self.encoder is not None:
            raise ValueError("initial and encoder both bring an encoder: choose one")
        if self.whiten and not self.train_encoder:
            raise ValueError("whiten changes the latents, train_encoder: false keeps them: choose one")
        return self

    @model_validator(mode="after")
    def _patches_fit_into_squares(self) -> AutoencoderRecipe:
        if self.crop > self.data.resolution:
            raise ValueError(f"crop {self.crop} is larger than the pictures, data.resolution {self.data.resolution}")
        if getattr(self.data, "buckets", None) is not None:
            raise ValueError("data.buckets is for whole pictures, this stage trains on patches: remove it")
        return self


class TrainableAutoencoder(nn.Module):
    """The autoencoder with a forward pass that gives everything the losses need, and its discriminator."""

    def __init__(self, autoencoder: SnapGenAutoencoder, discriminator: PatchDiscriminator | None = None):
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = discriminator

    def forward(
        self, pictures: Tensor, noise: Tensor, disturbance: Tensor, turn: str = ""
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Reconstruction (shaped as `pictures`), posterior mean and log-variance (as `noise`: B C h w), and logits.

        `noise` is the posterior's; `disturbance` (B C h w) is added on top, in standard deviations of all latents.
        The logits are those of the reconstruction. In the discriminator's turn, which keeps no other gradients, those
        of the pictures follow. Without a discriminator there are none.
        """
        judging = turn == DISCRIMINATOR
        with torch.set_grad_enabled(torch.is_grad_enabled() and not judging):
            posterior = self.autoencoder.encode(pictures, return_dict=False)[0]
            spread = posterior.mean.detach().std()  # relative, so that larger latents cannot evade the noise
            latent = posterior.mean + posterior.std * noise + spread * disturbance
            reconstruction = self.autoencoder.decode(latent, return_dict=False)[0]
        judged = [reconstruction, pictures] if judging else [reconstruction]
        logits = [] if self.discriminator is None else [self.discriminator(picture) for picture in judged]
        return reconstruction, posterior.mean, posterior.logvar, logits


class AutoencoderStage(Stage[AutoencoderRecipe, TrainableAutoencoder]):
    """Trains an autoencoder preset on random crops."""

    recipe_type = AutoencoderRecipe

    def __init__(self, recipe: AutoencoderRecipe, context: Context):
        super().__init__(recipe, context)
        self.source = self.open_source(recipe.data)
        autoencoder = recipe.model.create()
        start_narrow(autoencoder)
        if recipe.initial is not None:
            if not recipe.initial.is_dir():
                raise RecipeError(f"initial: folder {recipe.initial} does not exist")
            autoencoder = load_network(SnapGenAutoencoder, str(recipe.initial), dtype=torch.float32)
            recipe.model.check_trained(autoencoder, recipe.initial)
        if recipe.encoder is not None:
            take_encoder(autoencoder, recipe.encoder)
        autoencoder.encoder.requires_grad_(recipe.train_encoder)
        if recipe.whiten and autoencoder.post_quant_conv is None:
            raise RecipeError(f"whiten: model {recipe.model} has no post_quant_conv; use a preset that has one")
        discriminator = None
        if recipe.weights.adversarial:
            discriminator = PatchDiscriminator()
            self.turns = (DISCRIMINATOR, "")
        self.lpips = make_lpips(recipe.lpips_network).to(context.device) if recipe.weights.lpips else None
        self.model = self.place(TrainableAutoencoder(autoencoder, discriminator))
        self.latent_channels = autoencoder.config.latent_channels
        self.factor = autoencoder.spatial_factor
        self.samples = PictureBatches(self.source, self._order(), self._prepare, recipe.workers, context.warn)

    def _order(self) -> Order | InOrder:
        """Which pictures each micro-batch shows, in one group: patches are of one shape whatever their pictures'."""
        total, count = self.share(0)[0], len(self.source)
        if isinstance(self.source, RandomSource):
            return InOrder(count, total)
        return Order([np.arange(count)], total, self.recipe.seed)

    @classmethod
    def cost(cls, recipe: AutoencoderRecipe, batch: int, teacher: str | None = None) -> Cost:
        """The cost of encoder and decoder, and of what judges pictures: the discriminator and LPIPS's VGG."""
        weights, training = recipe.weights, 3 if recipe.train_encoder else 1
        with torch.device("meta"):
            network = nn.Module()
            network.autoencoder = autoencoder = recipe.model.create()
            autoencoder.encoder.requires_grad_(recipe.train_encoder)
            picture = torch.empty(1, 3, recipe.crop, recipe.crop)
            side = recipe.crop // autoencoder.spatial_factor
            latent = torch.empty(1, autoencoder.config.latent_channels, side, side)
            encoder = count(autoencoder.encoder, lambda: autoencoder.encoder(picture)).macs
            decoder = count(autoencoder.decoder, lambda: autoencoder.decoder(latent)).macs
            flops = {"encoder": 2.0 * training * encoder, "decoder": 6.0 * decoder}
            frozen: dict[str, int] = {}
            judges: list[nn.Module] = []
            if weights.adversarial:
                network.discriminator = critic = PatchDiscriminator()
                judged = count(critic, lambda: critic(picture)).macs
                # In its own turn it learns from two pictures, after a reconstruction; in the other, gradients pass it.
                flops["adversary"] = 2.0 * (encoder + decoder + 2 * 3 * judged + 2 * judged)
                judges.append(critic)
            if weights.lpips:
                vgg = vgg16_features().requires_grad_(False)
                seen = count(vgg, lambda: vgg(picture))
                flops["LPIPS"] = 2.0 * 3 * seen.macs  # two pictures forward, one backward
                frozen["LPIPS"] = FP32 * seen.parameters
                judges.append(vgg)
            pictures = picture.expand(batch, -1, -1, -1).to(compute_dtype(recipe))
            for part in (network, *judges):
                part.to(compute_dtype(recipe))

            def reconstruct() -> list[Tensor]:
                output = autoencoder.decoder(autoencoder.encoder(pictures).chunk(2, dim=1)[0])
                return [output, *(judge(output) for judge in judges)]

            activations = peak_bytes(reconstruct)
        macs = decoder + (encoder if recipe.train_encoder else 0)
        return Cost(network, macs, flops, frozen, activations)

    def learners(self, turn: str) -> Iterable[nn.Parameter]:
        """The parameters of the discriminator, or of the autoencoder."""
        if turn == DISCRIMINATOR:
            assert self.model.discriminator is not None
            return self.model.discriminator.parameters()
        return self.model.autoencoder.parameters()

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Patches B 3 crop crop in [-1, 1], the posterior's noise and the disturbance, both B C crop/f crop/f."""
        patches, *chance = zip(*self.samples(step, self.share(step)[1]), strict=True)
        device = self.context.device
        pictures = to_tensor(list(patches), device).contiguous(memory_format=torch.channels_last)
        noise, disturbance = (torch.from_numpy(np.stack(part)).to(device) for part in chance)
        return pictures, noise, disturbance

    def _prepare(self, sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The patch of a sample, its noise and its disturbance."""
        seed, side = (self.recipe.seed, sample.number), self.recipe.crop // self.factor
        shape = (self.latent_channels, side, side)
        noise = np.random.default_rng((*seed, 1)).standard_normal(shape, np.float32)
        rng = np.random.default_rng((*seed, 2))
        amount = np.float32(self.recipe.latent_noise * rng.random() ** 2)
        disturbance = amount * rng.standard_normal(shape, np.float32)
        return random_crop(sample.image, self.recipe.crop, seed), noise, disturbance

    def _picture(self, index: int) -> np.ndarray:
        """The picture `index`, or the next one that can be read."""
        return self.samples.readable(index)[1]

    def turn_loss(self, turn: str, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """The discriminator's hinge loss, or `loss`."""
        if turn != DISCRIMINATOR:
            return self.loss(model, batch)
        fake, real = model(*batch, turn)[-1]
        return {"loss": hinge(real, fake), "gap": real.mean() - fake.mean()}

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Weighted sum of the MSE, L1, multi-scale gradient, KL, LPIPS and adversarial terms."""
        pictures = batch[0]
        reconstruction, mean, log_variance, logits = model(*batch)
        reconstruction = reconstruction.float()
        parts = {
            "mse": F.mse_loss(reconstruction, pictures),
            "l1": F.l1_loss(reconstruction, pictures),
            "gradient": gradient_loss(reconstruction, pictures),
        }
        if self.recipe.train_encoder:
            parts["kl"] = kl_loss(mean.float(), log_variance.float())
        if self.lpips is not None:
            parts["lpips"] = self.lpips(reconstruction.clamp(-1, 1), pictures).mean()
        if logits:
            parts["adversarial"] = hinge_generator(logits[0])
        weights = self.recipe.weights.model_dump()
        return {"loss": sum((weights[name] * part for name, part in parts.items()), torch.zeros(())), **parts}

    @cached_property
    def _heldout(self) -> Tensor:
        """Whole pictures B 3 H W to judge by."""
        source = self.recipe.data.validation(VALIDATION_COUNT).open()
        return to_tensor(first_readable(source, min(VALIDATION_COUNT, len(source)))[1], self.context.device)

    @torch.no_grad()
    def metrics(self, model: TrainableAutoencoder) -> dict[str, float]:
        """Mean PSNR (dB) of whole pictures, held out if the data has such."""
        pictures = self._heldout
        reconstruction = torch.cat([model.autoencoder(part).sample for part in pictures.split(16)])
        return {"psnr": psnr(reconstruction, pictures).mean().item()}

    @torch.no_grad()
    def sample_grid(self, model: TrainableAutoencoder) -> Image.Image:
        """Pictures, each next to its reconstruction."""
        pictures = self._heldout[:12]
        pairs = torch.stack([pictures, model.autoencoder(pictures).sample], dim=1).flatten(0, 1)
        return contact_sheet(to_uint8(pairs), ["picture", "reconstruction"] * len(pictures), columns=6)

    @torch.no_grad()
    def save(self, model: TrainableAutoencoder, folder: Path) -> None:
        """Writes a diffusers folder; its latents are white, or its configuration has their measured scale and shift."""
        if self.recipe.train_encoder:
            self._measure_latents(model)
        model.autoencoder.save_pretrained(folder)

    def _measure_latents(self, model: TrainableAutoencoder) -> None:
        count = min(STATISTICS_COUNT, len(self.source))
        numbers = range(0, count, 16)
        latents = []
        for start in self.context.progress(numbers, "latent statistics", len(numbers)):
            pictures = to_tensor([self._picture(index) for index in range(start, min(start + 16, count))])
            posterior = model.autoencoder.encode(pictures.to(self.context.device), return_dict=False)[0]
            latents.append(posterior.mode())
        values = torch.cat(latents)
        if self.recipe.whiten:
            model.autoencoder.whiten(values)
            return
        model.autoencoder.register_to_config(
            scaling_factor=1.0 / values.std().item(), shift_factor=values.mean().item()
        )


@torch.no_grad()
def start_narrow(autoencoder: SnapGenAutoencoder) -> None:
    """Gives a fresh encoder a narrow posterior: variance 1 would drown its first latents, whose spread is 0.4."""
    bias = autoencoder.encoder.conv_out.bias
    bias[len(bias) // 2 :] = NARROW


def take_encoder(autoencoder: SnapGenAutoencoder, name: str) -> None:
    """Gives `autoencoder` the encoder and the latent scale of another: diffusers' AutoencoderKL, or one of ours.

    Diffusers' is on the hub or in a folder, which may be a whole pipeline's, such as Stable Diffusion 3.5's. One of
    ours is in a folder, or "mini"; its decoder is not read and may have another shape. RecipeError if the encoder does
    not fit.
    """
    name = folder_or_hub_name("encoder", name)
    subfolder = "vae" if not Path(name).is_dir() or (Path(name) / "vae").is_dir() else None
    try:
        config = load_config(AutoencoderKL, name, subfolder)
        if config.get("_class_name") == SnapGenAutoencoder.__name__:
            tensors = load_file(Path(name, subfolder or "", SAFETENSORS_WEIGHTS_NAME))
            encoder = {key.removeprefix(ENCODER): value for key, value in tensors.items() if key.startswith(ENCODER)}
            check_healthy(encoder, name)
        else:
            source = load_network(AutoencoderKL, name, subfolder=subfolder, dtype=torch.float32)
            encoder, config = source.encoder.state_dict(), source.config
        autoencoder.encoder.load_state_dict(encoder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = one_line(error, 200)
        raise RecipeError(f"encoder: {name} does not give the encoder of this preset: {reason}") from None
    scale = {name: config[name] for name in ("scaling_factor", "shift_factor")}
    autoencoder.register_to_config(**{name: value or 0.0 for name, value in scale.items()})


def make_lpips(place: str) -> Lpips:
    """LPIPS on VGG-16 with the weights in `place`; RecipeError saying how to get them if they are missing."""
    try:
        return load_lpips("vgg", place)
    except ValueError as error:
        raise RecipeError(
            f"lpips_network: weights.lpips needs VGG-16's weights: `hf download {VGG16} {WEIGHTS_FILE} --local-dir "
            f"FOLDER`, then --set lpips_network=FOLDER, or --set weights.lpips=0 ({error})"
        ) from None
