"""The `flow` stage: the UNet learns the velocity of Eq. 2 on latents, under frozen text states (Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from snapgen.config import Recipe, RecipeError, Settings
from snapgen.data.latents import Batches, CachedBatches, EncodedBatches, LatentCache, encode_in_parts
from snapgen.data.source import ContrastingSource, first_readable
from snapgen.data.sources import DataSettings
from snapgen.files import short_fingerprint
from snapgen.flow.path import interpolate, velocity_target
from snapgen.flow.timesteps import TIMESTEP_SCALE, sample_sigmas
from snapgen.messages import one_line
from snapgen.models.autoencoder import SnapGenAutoencoder, encoding_weights, same_latents
from snapgen.models.denoiser import Denoiser, load_denoiser, text_width
from snapgen.models.presets import create_denoiser
from snapgen.models.unet import SnapGenUNet
from snapgen.pictures import contact_sheet
from snapgen.pipeline.bundled import BUNDLED
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.text.encoder import LANGUAGE_MAX_LENGTH
from snapgen.text.join import JointTextEncoder
from snapgen.text.load import load_text_encoders
from snapgen.train.binding import ALIKE, BindingTest, make_binding_test, measure_binding
from snapgen.train.places import locate, text_sources
from snapgen.train.stage import Context, Stage, derive_seed
from snapgen.weights import load_network

VALIDATION_COUNT = 128
TIMESTEP_BINS = 16  # of the curve of losses by noise level; divides VALIDATION_COUNT


class TimestepSettings(Settings):
    """Distribution of the training noise levels; sampling uses the same `shift`."""

    mean: float = 0.0  # of the logit-normal
    std: float = Field(default=1.0, gt=0)
    # This share of the samples has another mean instead: it is at high noise, where few of the usual levels lie, that
    # it is decided what stands where.
    high_share: float = Field(default=0.0, ge=0, le=1)
    high_mean: float = 2.0
    shift: float = Field(default=3.0, gt=0)


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021) on linear layers; everything else stays frozen."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=16.0, gt=0)  # the adapter's output is scaled by alpha / rank
    targets: tuple[str, ...] = ("to_q", "to_kv", "to_out", "proj_in", "proj_out")  # names of layers


class LanguageSettings(Settings):
    """How a language model among the text encoders reads captions; the pipeline keeps it."""

    max_length: int = Field(default=LANGUAGE_MAX_LENGTH, gt=0)  # tokens
    prefix: str = ""  # instruction before every caption, as Sana gives Gemma


class FlowRecipe(Recipe):
    """Settings of the `flow` stage."""

    stage: Literal["flow"]
    model: str  # UNet preset
    autoencoder: Path  # diffusers folder of a SnapGenAutoencoder; here and in `text`, "mini" is the bundled models'
    # Folder with text_encoder/ and tokenizer/ (and text_encoder_2/ ..., as pipelines have), or up to three folders or
    # hub names of text models of transformers, CLIPs first and then at most one language model.
    text: str | tuple[str, ...]
    language: LanguageSettings = LanguageSettings()
    data: DataSettings
    cache: Path | None  # folder for the latents of all pictures; null: they are encoded in every step
    workers: int = Field(default=8, gt=0)  # threads of each process that read pictures ahead of the encoder
    initial: Path | None = None  # pipeline folder whose UNet weights to start from; "mini-base" is the bundled one
    lora: LoraSettings | None = None  # train adapters of `initial` instead of the whole UNet
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of captions replaced by the empty prompt
    # Probability with which each text encoder by itself reads the empty prompt, so that any of them can be left out
    # later (Sec. 4). Stable Diffusion 3's 0.464 leaves 0.464^3 = 10 % without any.
    encoder_dropout: float = Field(default=0.0, ge=0, lt=1)
    timesteps: TimestepSettings = TimestepSettings()
    guidance_scale: float = Field(default=4.0, ge=0)  # default of the pipeline, used for the sample grids
    num_inference_steps: int = Field(default=28, gt=0)
    prompts: tuple[str, ...] = ()  # of the sample grids; by default captions of the validation scenes
    # Captions made wrong in one point, for each kind of point, under which the loss is measured beside samples
    # (`snapgen.train.binding`); only sources that know what their captions say have them.
    contrasts: int = Field(default=32, ge=0)

    @model_validator(mode="after")
    def _adapters_adapt_something(self) -> FlowRecipe:
        if self.lora is not None and self.initial is None:
            raise ValueError("lora needs initial, the pipeline folder to adapt")
        return self


class FlowStage(Stage[Any, Any]):
    """Trains a UNet preset, or a teacher's, by flow matching."""

    recipe_type: ClassVar[type[Recipe]] = FlowRecipe

    def __init__(self, recipe: FlowRecipe, context: Context):
        super().__init__(recipe, context)
        folder = locate("autoencoder", recipe.autoencoder, "vae")
        autoencoder = load_network(SnapGenAutoencoder, str(folder), dtype=torch.float32)
        self.autoencoder = autoencoder.to(context.device).eval()
        self.text_components, self.text = self._load_text()
        side = recipe.data.resolution // autoencoder.spatial_factor  # of the latents
        if recipe.initial is None:
            unet = create_denoiser(recipe.model, sample_size=side)
        else:
            unet = self._initial_network(recipe.initial)
            if isinstance(unet, SnapGenUNet):  # draws by default what it learned last; a transformer's grid is its own
                unet.register_to_config(sample_size=side)
        if text_width(unet) != self.text.width:
            raise RecipeError(
                f"model {recipe.model} reads text states of width {text_width(unet)}, "
                f"the text encoders in {recipe.text} give {self.text.width}"
            )
        if recipe.lora is not None:
            if not isinstance(unet, SnapGenUNet):
                raise RecipeError(
                    f"lora: {type(unet).__name__} is a teacher; adapters are for a {SnapGenUNet.__name__}"
                )
            add_adapters(unet, recipe.lora)
        # A teacher attends to padding too, and a network is compiled for one number of tokens.
        self.trims_text = isinstance(unet, SnapGenUNet) and not recipe.train.compile
        self.model = self.place(unet)

        self.source = self.open_source(recipe.data)
        self.batches = self._open_batches()

    def _initial_network(self, initial: Path) -> Denoiser:
        """The UNet to go on with; RecipeError if it draws on other latents than the recipe's."""
        folder = locate("initial", initial)
        own = load_network(SnapGenAutoencoder, str(folder / "vae"), dtype=torch.float32)
        if not same_latents(self.autoencoder, own):
            raise RecipeError(
                f"initial: {initial} draws on another autoencoder's latents than {self.recipe.autoencoder}'s; "
                f"set autoencoder to {'mini' if str(initial) in BUNDLED else folder / 'vae'}, and text to its own too"
            )
        return load_denoiser(folder / "unet")

    @property
    def frozen_dtype(self) -> torch.dtype:
        """In which networks that do not learn are held: bf16 on a GPU that computes in it anyway."""
        half = self.recipe.train.precision == "bf16" and self.context.device.type == "cuda"
        return torch.bfloat16 if half else torch.float32

    def _load_text(self) -> tuple[dict[str, Any], JointTextEncoder]:
        """The frozen text encoders, as the pipeline's components and as one."""
        sources, language = text_sources(self.recipe.text), self.recipe.language
        try:
            components = load_text_encoders(sources, self.frozen_dtype)
            text = JointTextEncoder.from_components(components, language.max_length, language.prefix, warn=False)
        except ValueError as error:
            raise RecipeError(f"text: {error}") from error
        for component in components.values():
            if isinstance(component, nn.Module):
                component.to(self.context.device)
        return components, text

    def _open_batches(self) -> Batches:
        """Normalised latents in the order of training."""
        recipe, context = self.recipe, self.context
        micro_batch = recipe.train.batch_size // recipe.train.gradient_accumulation
        if recipe.cache is None:
            return EncodedBatches(self.source, self._encode, micro_batch, recipe.seed, recipe.workers, context.warn)
        cache = LatentCache(self.source, recipe.cache / short_fingerprint(self.source.signature(), *self._latents_of()))
        cache.build(self._encode, context.rank, context.world, context.progress, context.warn, recipe.workers)
        self.wait_for_everyone()
        return CachedBatches(cache.load(), micro_batch, recipe.seed)

    def _latents_of(self) -> list[Any]:
        """What decides latents, but for the pictures: not the decoder, which may be trained anew behind its encoder."""
        config, weights = self.autoencoder.config, encoding_weights(self.autoencoder)
        tensors = [weights[name].cpu().contiguous().numpy().tobytes() for name in sorted(weights)]
        return [sorted(weights), config.scaling_factor, config.shift_factor, *tensors]

    def _encode(self, pictures: Tensor) -> Tensor:
        with self._autocast():
            latents = self.autoencoder.encode(pictures.to(self.context.device)).latent_dist.mode()
        return self.autoencoder.normalize(latents.float())

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.recipe.train.precision == "bf16")

    def _attention(self) -> AbstractContextManager[Any]:
        """On the CPU, plain attention: backwards the fused kernel is several times slower there.

        Not when activations are recomputed: that happens outside, where the choice would be another.
        """
        plain = self.context.device.type == "cpu" and not self.recipe.train.activation_checkpointing
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    def batch(self, step: int) -> dict[str, Tensor]:
        """Latents, noise, sigmas, text states and mask of this process's samples."""
        # Drawn for the global batch and sliced, so that the number of processes changes nothing.
        total, own = self._share(step)
        batch = self.batches(step, own)
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, step))
        chance = [part[own] for part in self._chance(total, batch.latents.shape[1:], generator)]
        noise, sigmas, dropped, encoders = chance
        captions = self._captions(batch.pictures, batch.epochs, dropped)
        return self._conditioned(batch.latents, noise, sigmas, captions, encoders)

    def _share(self, step: int) -> tuple[int, slice]:
        """The samples in the global micro-batch number `step`, and which of them this process takes."""
        count = len(self.local_indices(step))
        return count * self.context.world, slice(count * self.context.rank, count * (self.context.rank + 1))

    def _chance(self, count: int, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What is drawn for `count` samples of `shape`: noise, sigmas, whose captions and which encoders' are dropped.

        Shapes: B C h w, B, B, and B E for E text encoders; a caption that is kept from all of them is dropped.
        """
        noise = torch.randn(count, *shape, generator=generator)
        sigmas = self._sample_sigmas(count, generator)
        dropped = torch.rand(count, generator=generator) < self.recipe.caption_dropout
        encoders = torch.rand(count, len(self.text.encoders), generator=generator) < self.recipe.encoder_dropout
        return noise, sigmas, dropped | encoders.all(dim=1), encoders

    def _sample_sigmas(self, count: int, generator: torch.Generator) -> Tensor:
        timesteps = self.recipe.timesteps
        sigmas = sample_sigmas(count, generator, timesteps.shift, timesteps.mean, timesteps.std)
        if not timesteps.high_share:
            return sigmas
        high = sample_sigmas(count, generator, timesteps.shift, timesteps.high_mean, timesteps.std)
        return torch.where(torch.rand(count, generator=generator) < timesteps.high_share, high, sigmas)

    def _captions(self, pictures: list[int], variants: list[int], dropped: Tensor) -> list[str]:
        return [
            "" if drop else self.source.caption(picture, variant)
            for picture, variant, drop in zip(pictures, variants, dropped.tolist(), strict=True)
        ]

    def _conditioned(
        self,
        latents: Tensor,
        noise: Tensor,
        sigmas: Tensor,
        captions: list[str],
        dropped: Tensor | None = None,
    ) -> dict[str, Tensor]:
        device = self.context.device
        return {
            "x0": latents.to(device).contiguous(memory_format=torch.channels_last),
            "noise": noise.to(device).contiguous(memory_format=torch.channels_last),
            "sigmas": sigmas.to(device),
        } | self.conditions(captions, dropped)

    def conditions(self, captions: list[str], dropped: Tensor | None = None) -> dict[str, Tensor]:
        """What a batch knows of its captions: `states` B N D and `mask` B N.

        dropped: B E, True where a caption is kept from one of the E text encoders.
        """
        with self._autocast():
            text = self.text(captions, dropped)
        if self.trims_text:
            text = text.trimmed()
        return {"states": text.states.float(), "mask": text.mask}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 2."""
        return {"loss": self._losses(model, batch).mean()}

    def _losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Eq. 2 for each sample, shape B."""
        x0, noise, sigmas = batch["x0"], batch["noise"], batch["sigmas"]
        x = interpolate(x0, noise, sigmas)
        with self._attention():
            velocity = model(x, TIMESTEP_SCALE * sigmas, batch["states"], batch["mask"], return_dict=False)[0]
        return (velocity.float() - velocity_target(x0, noise)).square().flatten(1).mean(dim=1)

    @cached_property
    def _heldout(self) -> dict[str, Tensor]:
        """A batch of held-out compositions, all squares, at evenly spread noise levels."""
        source = self.recipe.data.validation(VALIDATION_COUNT).open()
        indices, pictures = first_readable(source, VALIDATION_COUNT)
        latents = encode_in_parts(self._encode, pictures)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))  # whatever the recipe's seed
        sigmas = (torch.arange(VALIDATION_COUNT) + 0.5) / VALIDATION_COUNT
        captions = [source.caption(index, 0) for index in indices]
        return self._conditioned(latents, noise, sigmas, captions)

    @torch.no_grad()
    def timestep_losses(self, model: nn.Module) -> dict[str, list[float]]:
        """The loss on held-out compositions, always with the same noise, in `TIMESTEP_BINS` equal parts of [0, 1]."""
        with self._autocast():
            found = self._in_parts(lambda part: {"loss": self._losses(self.denoiser(model), part)}, self._heldout)
        means = found["loss"].reshape(TIMESTEP_BINS, -1).mean(dim=1)
        return {"sigma": [(index + 0.5) / TIMESTEP_BINS for index in range(TIMESTEP_BINS)], "loss": means.tolist()}

    @cached_property
    def _binding(self) -> BindingTest | None:
        """Held-out compositions under right and wrong captions; None if the source has none."""
        source = self.recipe.data.validation(VALIDATION_COUNT).open()
        if not self.recipe.contrasts or not isinstance(source, ContrastingSource):
            return None
        contrasts = source.contrasts(self.recipe.contrasts, ALIKE)
        return make_binding_test(contrasts, lambda pictures: encode_in_parts(self._encode, pictures), self._conditioned)

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float]:
        """What captions made wrong in one point do to the loss."""
        test, network = self._binding, self.denoiser(model)
        if test is None:
            return {}

        def losses(batch: dict[str, Tensor]) -> Tensor:
            return self._in_parts(lambda part: {"loss": self._losses(network, part)}, batch)["loss"]

        with self._autocast():
            return measure_binding(losses, test)

    def _in_parts(
        self, function: Callable[[dict[str, Tensor]], dict[str, Tensor]], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`function` of pieces of `batch` no larger than this process's share of a step, joined.

        What fits in training fits here.
        """
        size = len(self.local_indices(0))
        pieces = [
            function({name: value[start : start + size] for name, value in batch.items()})
            for start in range(0, len(batch["x0"]), size)
        ]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def denoiser(self, model: nn.Module) -> Denoiser:
        """The network that predicts the velocity, of what is trained."""
        return cast(Denoiser, model)

    def pipeline(self, unet: Denoiser) -> SnapGenPipeline:
        """The whole model around `unet`."""
        return SnapGenPipeline(
            unet,
            self.autoencoder,
            **self.text_components,
            language_max_length=self.recipe.language.max_length,
            language_prefix=self.recipe.language.prefix,
            shift=self.recipe.timesteps.shift,
            default_guidance_scale=self.recipe.guidance_scale,
            default_num_inference_steps=self.recipe.num_inference_steps,
        )

    def draw(self, model: nn.Module) -> Image.Image:
        """Guided samples of the recipe's prompts, from fixed noise."""
        prompts = list(self.recipe.prompts) or [
            self.source.caption(index, 0) for index in range(min(24, len(self.source)))
        ]
        pipeline = self.pipeline(self.denoiser(model))
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
        with self._autocast():
            pictures = pipeline(prompts, generator=generators, output_type="np", return_dict=False)[0]
        return contact_sheet([np.round(picture * 255).astype(np.uint8) for picture in pictures], prompts, columns=8)

    def save(self, model: nn.Module, folder: Path) -> None:
        """A complete pipeline folder; of adapters, what `SnapGenPipeline.load_lora_weights` reads."""
        if self.recipe.lora is None:
            self.pipeline(self.denoiser(model)).save_pretrained(folder)
            return
        from peft.utils import get_peft_model_state_dict

        settings = cast(Any, model).peft_config["default"].to_dict()  # it goes along: alpha is in no tensor
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
