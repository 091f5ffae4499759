"""The base of the stages on latents: frozen encoders, batches, held-out losses, samples and the saved pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from snapgen.config import RecipeError
from snapgen.data.latents import Batches, CachedBatches, EncodedBatches, LatentCache, encode_in_parts
from snapgen.data.source import ContrastingSource, WordedSource, first_readable
from snapgen.files import read_json, short_fingerprint
from snapgen.flow.path import interpolate
from snapgen.flow.schedule import TIMESTEP_SCALE
from snapgen.flow.timesteps import sample_sigmas
from snapgen.losses.task import flow_matching
from snapgen.models.autoencoder import SnapGenAutoencoder, encoding_weights, same_latents
from snapgen.models.denoiser import Denoiser, load_denoiser, pooled_width, text_width
from snapgen.models.unet import SnapGenUNet
from snapgen.pictures import contact_sheet
from snapgen.pipeline.bundled import BUNDLED
from snapgen.pipeline.load import INDEX
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.text.join import JointTextEncoder
from snapgen.text.load import load_text_encoders
from snapgen.train.binding import ALIKE, BindingTest, make_binding_test, measure_binding
from snapgen.train.latent_recipe import LatentRecipeType
from snapgen.train.places import folder_or_hub_name, locate, text_sources
from snapgen.train.stage import Context, ModelType, Stage, derive_seed
from snapgen.train.teachers.teacher import NetworkTeacher, Teacher, load_teacher
from snapgen.weights import load_network

Batch = dict[str, Tensor]
"""`x0` and `noise` (B C h w), `sigmas` (B), text `states` (B N D) and `mask` (B N), `pooled` (B P) for a network that
reads it, and what a stage adds."""


def text_arguments(batch: Batch) -> dict[str, Tensor]:
    """The text of `batch` as arguments of a network."""
    arguments = {"encoder_hidden_states": batch["states"], "encoder_attention_mask": batch["mask"]}
    return arguments | ({"pooled_projections": batch["pooled"]} if "pooled" in batch else {})


class LatentStage(Stage[LatentRecipeType, ModelType]):
    """A stage that trains `network`, a UNet or a teacher's transformer, on latents and frozen text states.

    A subclass calls `super().__init__(recipe, context)` and sets `self.model` to what is trained: the network, or a
    module that contains it.
    """

    validation_count: ClassVar[int] = 128  # held-out pictures
    timestep_bins: ClassVar[int] = 16  # of the loss curve by noise level; divides `validation_count`

    network: Denoiser  # as it was before training
    teacher: Teacher | None = None  # what the network learns from, besides the data

    def __init__(self, recipe: LatentRecipeType, context: Context) -> None:
        super().__init__(recipe, context)
        folder = locate("autoencoder", recipe.autoencoder, "vae")
        autoencoder = load_network(SnapGenAutoencoder, str(folder), dtype=torch.float32)
        self.autoencoder = autoencoder.to(context.device).eval()
        self.text_components, self.text = self._load_text()
        self.network = self._load_network()
        layout = self.text.layout
        if text_width(self.network) != layout.width:
            raise RecipeError(
                f"model {recipe.model} reads text states of width {text_width(self.network)}, "
                f"the text encoders in {recipe.text} give {layout.width}"
            )
        self.reads_pooled = pooled_width(self.network) is not None
        if self.reads_pooled and pooled_width(self.network) != layout.pooled_width:
            raise RecipeError(
                f"model {recipe.model} reads pooled text vectors of width {pooled_width(self.network)}, "
                f"the text encoders in {recipe.text} give {layout.pooled_width}"
            )
        channels = {self.network.config.in_channels, self.network.config.out_channels}
        if channels != {self.autoencoder.config.latent_channels}:
            raise RecipeError(
                f"model {recipe.model} takes and gives latents of {' and '.join(map(str, sorted(channels)))} channels, "
                f"those of {recipe.autoencoder} have {self.autoencoder.config.latent_channels}"
            )
        # A teacher attends to padding too, and a compiled network needs a fixed number of tokens.
        self.trims_text = isinstance(self.network, SnapGenUNet) and not recipe.train.compile
        self.source = self.open_source(recipe.data)
        self.batches = self._open_batches()

    # Frozen and trained networks

    def _load_text(self) -> tuple[dict[str, Any], JointTextEncoder]:
        """The frozen text encoders, as the pipeline's components and joined into one."""
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

    def _load_network(self) -> Denoiser:
        """A new network of the preset, or the one to start from; RecipeError if that was trained on other latents."""
        recipe = self.recipe
        initial, side = recipe.initial, recipe.data.resolution // self.autoencoder.spatial_factor
        if initial is None:
            return recipe.model.create(sample_size=side)
        folder = locate("initial", initial)
        own = load_network(SnapGenAutoencoder, str(folder / "vae"), dtype=torch.float32)
        if not same_latents(self.autoencoder, own):
            raise RecipeError(
                f"initial: {initial} was trained on another autoencoder's latents than {recipe.autoencoder}'s; "
                f"set autoencoder to {'mini' if str(initial) in BUNDLED else folder / 'vae'}, and text to its own too"
            )
        try:
            self.text.layout.check_columns(read_json(folder / INDEX).get("text_layout"))
        except ValueError as error:
            raise RecipeError(f"initial: {initial} does not suit text: {recipe.text}: {error}") from error
        network = load_denoiser(folder / "unet")
        recipe.model.check_trained(network, initial)
        if isinstance(network, SnapGenUNet):  # its default size is that of its last training; not so a transformer's
            network.register_to_config(sample_size=side)
        return network

    def require_unet(self) -> SnapGenUNet:
        """The network, for stages that train only a UNet; RecipeError if it is not one."""
        if not isinstance(self.network, SnapGenUNet):
            name = type(self.network).__name__
            raise RecipeError(f"model {self.recipe.model} is a {name}, expected a {SnapGenUNet.__name__}")
        return self.network

    def load_teacher(self, name: str) -> NetworkTeacher:
        """The teacher `name`, a folder or hub name; RecipeError if it does not suit this student."""
        source = folder_or_hub_name("teacher", name)
        try:
            teacher = load_teacher(source, self.autoencoder, self.text, self.frozen_dtype, self.context.device)
        except ValueError as error:
            raise RecipeError(f"teacher: {error}") from error
        if pooled_width(teacher.network) is not None and not self.reads_pooled:
            raise RecipeError(f"teacher: {name} reads a pooled text vector, and the student gets none")
        return teacher

    @property
    def frozen_dtype(self) -> torch.dtype:
        """The dtype of frozen networks: bf16 on a GPU if the recipe trains in it, else fp32."""
        half = self.recipe.train.precision == "bf16" and self.context.device.type == "cuda"
        return torch.bfloat16 if half else torch.float32

    def denoiser(self, model: ModelType) -> Denoiser:
        """The network within `model` that predicts the velocity."""
        raise NotImplementedError

    # Latents

    def _open_batches(self) -> Batches:
        """Normalised latents in training order."""
        recipe, context = self.recipe, self.context
        micro_batch = recipe.train.batch_size // self.rounds
        if recipe.cache is None:
            return EncodedBatches(self.source, self.encode, micro_batch, recipe.seed, recipe.workers, context.warn)
        cache = LatentCache(self.source, recipe.cache / short_fingerprint(self.source.signature(), *self._latents_of()))
        cache.build(self.encode, context.rank, context.world, context.progress, context.warn, recipe.workers)
        self.wait_for_everyone()
        return CachedBatches(cache.load(), micro_batch, recipe.seed)

    def _latents_of(self) -> list[Any]:
        """What determines latents besides the pictures: not the decoder, which may be retrained behind its encoder."""
        config, weights = self.autoencoder.config, encoding_weights(self.autoencoder)
        tensors = [weights[name].cpu().contiguous().numpy().tobytes() for name in sorted(weights)]
        return [sorted(weights), config.scaling_factor, config.shift_factor, *tensors]

    def encode(self, pictures: Tensor) -> Tensor:
        """Normalised latents B C h w of pictures B 3 H W in [-1, 1]."""
        with self.autocast():
            latents = self.autoencoder.encode(pictures.to(self.context.device)).latent_dist.mode()
        return self.autoencoder.normalize(latents.float())

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast in the recipe's precision."""
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.recipe.train.precision == "bf16")

    def attention(self) -> AbstractContextManager[Any]:
        """Plain attention on the CPU, where the backward pass of the fused kernel is several times slower.

        Not when activations are recomputed: that happens outside this context, with the default kernel.
        """
        plain = self.context.device.type == "cpu" and not self.recipe.train.activation_checkpointing
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    # Batches

    def batch(self, step: int) -> Batch:
        """This process's samples: latents, noise, noise levels and text."""
        # Sampled for the global batch, then sliced, so that the number of processes changes nothing.
        total, own = self.share(step)
        batch = self.batches(step, own)
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, step))
        chance = [part[own] for part in self.sample_chance(total, batch.latents.shape[1:], generator)]
        noise, sigmas, dropped, encoders = chance
        captions = self.captions(batch.pictures, batch.epochs, dropped)
        return self.conditioned(batch.latents, noise, sigmas, captions, encoders)

    def sample_chance(self, count: int, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The random choices for `count` samples of `shape`: noise, sigmas, dropped captions, and dropped encoders.

        Shapes: B C h w, B, B, and B E for E text encoders. A caption that no encoder sees counts as dropped.
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

    def captions(self, pictures: list[int], variants: list[int], dropped: Tensor) -> list[str]:
        """A caption of each picture, in the wording that `variants` gives; "" where it is `dropped` (bool B)."""
        return [
            "" if drop else self.source.caption(picture, variant)
            for picture, variant, drop in zip(pictures, variants, dropped.tolist(), strict=True)
        ]

    def conditioned(
        self, latents: Tensor, noise: Tensor, sigmas: Tensor, captions: list[str], dropped: Tensor | None = None
    ) -> Batch:
        """These samples as a batch on the device; `dropped` as for `conditions`."""
        device = self.context.device
        return {
            "x0": latents.to(device).contiguous(memory_format=torch.channels_last),
            "noise": noise.to(device).contiguous(memory_format=torch.channels_last),
            "sigmas": sigmas.to(device),
        } | self.conditions(captions, dropped)

    def conditions(self, captions: list[str], dropped: Tensor | None = None) -> Batch:
        """The encoded captions for a batch: `states` B N D, `mask` B N and, for a network that reads it, `pooled` B P.

        With a teacher, also what it needs in addition. dropped: B E, True where one of the E text encoders does not see
        the caption.
        """
        with self.autocast():
            text = self.text(captions, dropped)
        if self.trims_text:
            text = text.trimmed()
        conditions = {"states": text.states.float(), "mask": text.mask}
        if self.reads_pooled:
            assert text.pooled is not None  # checked at the start
            conditions["pooled"] = text.pooled.float()
        return conditions | ({} if self.teacher is None else self.teacher.conditions(captions))

    # Losses

    def task_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Eq. 2 for each sample, shape B. `model` predicts the velocity."""
        x0, noise, sigmas = batch["x0"], batch["noise"], batch["sigmas"]
        x = interpolate(x0, noise, sigmas)
        with self.attention():
            velocity = model(x, TIMESTEP_SCALE * sigmas, **text_arguments(batch), return_dict=False)[0]
        return flow_matching(velocity, x0, noise)

    @cached_property
    def heldout(self) -> Batch:
        """A batch of held-out compositions, all square, at evenly spaced noise levels."""
        source = self.recipe.data.validation(self.validation_count).open()
        indices, pictures = first_readable(source, self.validation_count)
        latents = encode_in_parts(self.encode, pictures)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))  # for any recipe seed
        sigmas = (torch.arange(self.validation_count) + 0.5) / self.validation_count
        captions = [source.caption(index, 0) for index in indices]
        return self.conditioned(latents, noise, sigmas, captions)

    def in_parts(self, function: Callable[[Batch], Batch], batch: Mapping[str, Tensor]) -> Batch:
        """Applies `function` to pieces of `batch` and joins the results.

        No piece is larger than this process's share of a step, so what fits in training fits here.
        """
        size = len(self.local_indices(0))
        pieces = [
            function({name: value[start : start + size] for name, value in batch.items()})
            for start in range(0, len(batch["x0"]), size)
        ]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def by_noise_level(self, losses: Mapping[str, Tensor]) -> dict[str, list[float]]:
        """The losses of the samples of `heldout`, averaged over `timestep_bins` equal parts of [0, 1]."""
        sigmas = [(index + 0.5) / self.timestep_bins for index in range(self.timestep_bins)]
        return {"sigma": sigmas} | {
            name: loss.reshape(self.timestep_bins, -1).mean(dim=1).tolist() for name, loss in losses.items()
        }

    def make_binding_test(self, count: int) -> BindingTest | None:
        """Held-out compositions with `count` right and wrong captions of each kind; None if the source has none."""
        source = self.recipe.data.validation(self.validation_count).open()
        if not count or not isinstance(source, ContrastingSource):
            return None
        contrasts = source.contrasts(count, ALIKE)
        return make_binding_test(contrasts, lambda pictures: encode_in_parts(self.encode, pictures), self.conditioned)

    @torch.no_grad()
    def measure_binding(self, network: nn.Module, test: BindingTest | None) -> dict[str, float]:
        """How captions with one wrong detail change the loss of `network`; empty without a test."""
        if test is None:
            return {}

        def losses(batch: Batch) -> Tensor:
            return self.in_parts(lambda part: {"loss": self.task_losses(network, part)}, batch)["loss"]

        with self.autocast():
            return measure_binding(losses, test)

    # Samples and the finished model

    def pipeline(self, network: Denoiser) -> SnapGenPipeline:
        """The complete pipeline around `network`."""
        return SnapGenPipeline(
            network,
            self.autoencoder,
            **self.text_components,
            language_max_length=self.recipe.language.max_length,
            language_prefix=self.recipe.language.prefix,
            text_layout=self.text.layout.to_config(),
            shift=self.recipe.timesteps.shift,
            default_guidance_scale=self.recipe.guidance_scale,
            default_num_inference_steps=self.recipe.num_inference_steps,
            known_words=self.source.words() if isinstance(self.source, WordedSource) else None,
        )

    def sample_grid(self, model: ModelType) -> Image.Image:
        """Guided samples for the recipe's prompts, from fixed noise."""
        prompts = list(self.recipe.prompts) or [
            self.source.caption(index, 0) for index in range(min(24, len(self.source)))
        ]
        pipeline = self.pipeline(self.denoiser(model))
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
        with self.autocast():
            pictures = pipeline(prompts, generator=generators, output_type="np", return_dict=False)[0]
        return contact_sheet([np.round(picture * 255).astype(np.uint8) for picture in pictures], prompts, columns=8)

    def save(self, model: ModelType, folder: Path) -> None:
        """Writes a complete pipeline folder."""
        self.pipeline(self.denoiser(model)).save_pretrained(folder)
