"""The cost of a training step in compute and memory (`Stage.cost`), counted on the meta device without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from snapgen.config import Recipe
from snapgen.data.latents import pictures_at_once
from snapgen.files import read_json
from snapgen.machine.counting import count, peak_bytes
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.denoiser import Denoiser, network_class, text_width
from snapgen.models.presets import AUTOENCODER_OF, TEACHER_OF, create_autoencoder, create_denoiser
from snapgen.models.teacher import TeacherTransformer
from snapgen.pipeline.bundled import BUNDLED, bundled_folder
from snapgen.train.latent_recipe import LatentRecipe
from snapgen.weights import load_config

FP32, BF16 = 4, 2  # bytes
LATENT_FACTOR = 8  # pixels per latent position, along each side
CLIP_TOKENS, T5_TOKENS = 77, 256
MOST_TOKENS = 2**16  # of a tokenizer with a limit: without one, transformers writes a number of 31 digits
UNTRAINED_TOKENS = 32  # for a text encoder that is not trained yet: as many as the miniature's has


@dataclass(frozen=True)
class TextModel:
    """A published text encoder."""

    parameters: int
    embeddings: int  # how many of these are looked up, not multiplied
    tokens: int | None = CLIP_TOKENS  # per caption; None: a language model, for which the recipe sets the number


TEXT_MODELS = {
    "openai/clip-vit-large-patch14": TextModel(123_060_480, 38_004_480),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": TextModel(693_021_440, 63_340_800),
    "google/gemma-2-2b": TextModel(2_614_341_888, 589_824_000, None),
    "google/t5-v1_1-xxl": TextModel(4_762_310_656, 131_596_288, T5_TOKENS),
}
TEXT_MODELS["google/gemma-2-2b-it"] = TEXT_MODELS["google/gemma-2-2b"]

# Published teachers and the presets they are counted as. They read captions with their own encoders.
PUBLISHED_TEACHERS = {
    "stabilityai/stable-diffusion-3.5-large": "sd3.5-large",
    "stabilityai/stable-diffusion-3.5-large-turbo": "sd3.5-large",
}
PUBLISHED_ENCODERS = (
    "openai/clip-vit-large-patch14",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "google/t5-v1_1-xxl",
)


@dataclass(frozen=True)
class Cost:
    """The cost of one step. `flops` are per sample, summed over all turns; `frozen` and `activations` are in bytes."""

    network: nn.Module  # everything that the stage trains or keeps with it, on the meta device
    macs: int  # forward pass of the finished network, per sample
    flops: dict[str, float]  # by part
    frozen: dict[str, int]  # networks that are not trained, by part
    activations: int  # peak during the forward pass, or while pictures are encoded
    latent_bytes: int = 0  # per picture in the cache
    target_bytes: int = 0  # per stored target of the teacher
    uncounted: tuple[str, ...] = ()  # further parts whose size is unknown
    draws: int = 0  # stored targets of each picture


def compute_dtype(recipe: Recipe) -> torch.dtype:
    """The dtype of the recipe's forward pass."""
    return torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32


def frozen_bytes(recipe: Recipe) -> int:
    """Bytes per frozen parameter."""
    return BF16 if recipe.train.precision == "bf16" else FP32


@dataclass
class LatentCost:
    """The costs that all stages on latents share: the network and the encoders."""

    recipe: LatentRecipe
    batch: int  # samples at a time
    network: Denoiser = field(init=False)  # on the meta device, fp32
    macs: int = field(init=False)  # of its forward pass, per sample
    side: int = field(init=False)  # of the latents, in latent positions

    def __post_init__(self) -> None:
        self.side = self.recipe.data.resolution // LATENT_FACTOR
        self.network, self.macs = self._counted()

    def _counted(self) -> tuple[Denoiser, int]:
        with torch.device("meta"):
            network = self.recipe.model.create()
            inputs = self.inputs(network, 1)
            return network, count(network, lambda: network(**inputs)).macs

    @property
    def passes(self) -> float:
        """The cost of a training step in forward passes: the backward pass counts as two."""
        return 3.0 + self.recipe.train.activation_checkpointing

    def inputs(self, network: Denoiser, batch: int, published: bool = False) -> dict[str, Tensor]:
        """Latents, timesteps and text for `network`; `published`: it is a teacher with its own text encoders."""
        tokens = CLIP_TOKENS + T5_TOKENS if published else text_tokens(self.recipe)
        inputs = {
            "sample": torch.empty(batch, network.config.in_channels, self.side, self.side),
            "timestep": torch.empty(batch),
            "encoder_hidden_states": torch.empty(batch, tokens, text_width(network)),
        }
        if width := network.config.get("pooled_projection_dim"):
            inputs["pooled_projections"] = torch.empty(batch, width)
        return inputs

    def forward_bytes(self, change: Callable[[Any], object] = lambda network: None) -> int:
        """Peak bytes of the network's forward pass and its loss; `change` modifies the network first."""
        with torch.device("meta"):
            network = self.fresh_network(change)
            inputs = self.cast(self.inputs(network, self.batch))
            return peak_bytes(lambda: network(**inputs, return_dict=False)[0].float().square().mean())

    def fresh_network(self, change: Callable[[Any], object] = lambda network: None) -> Denoiser:
        """A new network as training runs it: in the recipe's precision, recomputing activations if the recipe asks."""
        network = self.recipe.model.create().to(compute_dtype(self.recipe)).train()
        if self.recipe.train.activation_checkpointing:
            network.enable_gradient_checkpointing()
        change(network)
        return network

    def cast(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`inputs` in the recipe's precision."""
        return {name: tensor.to(compute_dtype(self.recipe)) for name, tensor in inputs.items()}

    def total(
        self,
        network: nn.Module,
        flops: dict[str, float],
        frozen: dict[str, int],
        activations: int,
        turns: int = 1,
        target_bytes: int = 0,
        draws: int = 0,
        more_text: tuple[str, ...] = (),
    ) -> Cost:
        """The whole cost, encoders included. `turns`: batches per step; `more_text`: further text encoders."""
        encoding, held, uncounted = self._encoders(more_text)
        cached = self.recipe.cache is not None
        return Cost(
            network,
            self.macs,
            flops | {part: turns * size for part, size in encoding.items()},
            frozen | held,
            max(activations, 0 if cached else self._encoding_bytes()),
            self.network.config.in_channels * self.side**2 * 2 if cached else 0,  # fp16
            target_bytes,
            uncounted,
            draws,
        )

    def _encoders(self, more_text: tuple[str, ...]) -> tuple[dict[str, float], dict[str, int], tuple[str, ...]]:
        """FLOPs per sample and bytes of the frozen autoencoder and text encoders, and the encoders of unknown size."""
        recipe, autoencoder = self.recipe, autoencoder_of(self.recipe)
        flops: dict[str, float] = {}
        if recipe.cache is None:
            picture = torch.empty(1, 3, recipe.data.resolution, recipe.data.resolution, device="meta")
            flops["encoding of pictures"] = 2.0 * count(autoencoder, lambda: autoencoder.encode(picture)).macs
        frozen = {"autoencoder": FP32 * sum(parameter.numel() for parameter in autoencoder.parameters())}
        names = [*text_names(recipe), *more_text]
        models = [TEXT_MODELS[name] for name in names if name in TEXT_MODELS]
        if models:
            multiplied = [
                (model.parameters - model.embeddings) * (model.tokens or recipe.language.max_length) for model in models
            ]
            flops["encoding of text"] = 2.0 * sum(multiplied)
            frozen["text encoders"] = frozen_bytes(recipe) * sum(model.parameters for model in models)
        return flops, frozen, tuple(f"text encoder {name}" for name in names if name not in TEXT_MODELS)

    def _encoding_bytes(self) -> int:
        """Peak bytes while a step encodes pictures; they are freed before the network runs."""
        dtype, side = compute_dtype(self.recipe), self.recipe.data.resolution
        encoder = autoencoder_of(self.recipe).to(dtype).encoder
        pictures = torch.empty(min(self.batch, pictures_at_once(side, side)), 3, side, side, dtype=dtype, device="meta")
        with torch.no_grad():
            return peak_bytes(lambda: encoder(pictures))


def text_names(recipe: LatentRecipe) -> list[str]:
    """The text encoders' folders or hub names."""
    return [recipe.text] if isinstance(recipe.text, str) else list(recipe.text)


def text_tokens(recipe: LatentRecipe) -> int:
    """Tokens of the joined text states: CLIPs share theirs, a language model's follow (as in Stable Diffusion 3)."""
    shared, following = 0, 0
    for name in text_names(recipe):
        if name in TEXT_MODELS:
            tokens = TEXT_MODELS[name].tokens
            shared, following = max(shared, tokens or 0), following + (0 if tokens else recipe.language.max_length)
        else:
            shared = max(shared, _own_tokens(bundled_folder() if name in BUNDLED else Path(name)))
    return shared + following


def _own_tokens(folder: Path) -> int:
    """The maximum length of the tokenizer in `folder`, a pipeline's or a text stage's."""
    try:
        length = read_json(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length")
    except (OSError, ValueError):
        return UNTRAINED_TOKENS
    return length if isinstance(length, int) and 0 < length <= MOST_TOKENS else UNTRAINED_TOKENS


def autoencoder_of(recipe: LatentRecipe) -> SnapGenAutoencoder:
    """The autoencoder in the recipe's folder, or the preset that fits the network if there is none yet; on meta."""
    folder = bundled_folder() / "vae" if str(recipe.autoencoder) in BUNDLED else recipe.autoencoder
    with torch.device("meta"):
        if (folder / "config.json").is_file():
            return cast(
                SnapGenAutoencoder, SnapGenAutoencoder.from_config(load_config(SnapGenAutoencoder, str(folder)))
            )
        return create_autoencoder(AUTOENCODER_OF.get(recipe.model.preset, "decoder"))


class TeacherCost:
    """A frozen teacher on the meta device."""

    def __init__(self, base: LatentCost, name: str, preset: str | None) -> None:
        """`name`: the teacher in the recipe; `preset`: what it is counted as, by default what its name says."""
        self.published = preset == "sd3.5-large" or (preset is None and name in PUBLISHED_TEACHERS)
        self.own_text = PUBLISHED_ENCODERS if name in PUBLISHED_TEACHERS else ()
        with torch.device("meta"):
            self.network = _teacher_network(name, preset, base.recipe.model.preset).requires_grad_(False)
            inputs = base.inputs(self.network, 1, self.published)
            self.counts = count(self.network, lambda: self.network(**inputs))
        grid = self.network.config.patch_size if isinstance(self.network, TeacherTransformer) else 1
        self.grid = base.side // grid  # side of its last feature map

    def frozen(self, recipe: Recipe) -> dict[str, int]:
        """The size of its weights, in bytes."""
        return {"teacher": frozen_bytes(recipe) * self.counts.parameters}


def _teacher_network(name: str, preset: str | None, model: str) -> Denoiser:
    config = Path(name) / "unet" / "config.json"
    if preset is None and name not in PUBLISHED_TEACHERS and name not in BUNDLED and config.is_file():
        kind = network_class(config)
        return cast(Denoiser, kind.from_config(load_config(kind, str(config.parent))))
    known = PUBLISHED_TEACHERS | dict.fromkeys(BUNDLED, "mini")
    return create_denoiser(preset or known.get(name) or TEACHER_OF.get(model, "mini-teacher"))
