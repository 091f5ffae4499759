"""Recipe settings shared by the stages that train on latents: `flow`, `distill` and `step`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import Field

from snapgen.config import Recipe, Settings
from snapgen.data.sources import DataSettings
from snapgen.text.encoder import LANGUAGE_MAX_LENGTH
from snapgen.train.networks import DenoiserSettings


class TimestepSettings(Settings):
    """Distribution of the noise levels in training; sampling uses the same `shift`."""

    mean: float = 0.0  # of the logit-normal
    std: float = Field(default=1.0, gt=0)
    # This share of the samples has the mean `high_mean` instead. The layout is decided at high noise, where few of the
    # usual levels lie.
    high_share: float = Field(default=0.0, ge=0, le=1)
    high_mean: float = 2.0
    shift: float = Field(default=3.0, gt=0)


class LanguageSettings(Settings):
    """How a language model among the text encoders reads captions; the pipeline keeps it."""

    max_length: int = Field(default=LANGUAGE_MAX_LENGTH, gt=0)  # tokens
    prefix: str = ""  # instruction before every caption, as Sana gives to Gemma


class LatentRecipe(Recipe):
    """Settings of a stage that trains a text-conditioned network on latents."""

    model: DenoiserSettings  # a preset, or {preset: t2i, cross_attention_dim: 2048}: one with changes
    autoencoder: Path  # diffusers folder of a SnapGenAutoencoder; "mini", also in `text`, means the bundled models'
    # Folder with text_encoder/ and tokenizer/ (and text_encoder_2/ ..., as in pipelines), or up to three folders or hub
    # names of transformers' text models: CLIPs first, then at most one language model.
    text: str | tuple[str, ...]
    language: LanguageSettings = LanguageSettings()
    data: DataSettings
    cache: Path | None  # folder for the latents of all pictures; null: every step encodes its own
    workers: int = Field(default=8, gt=0)  # threads per process that read pictures ahead of the encoder
    initial: Path | None = None  # pipeline folder whose UNet weights to start from; "mini-base": the bundled one
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of captions replaced by the empty prompt
    # Probability that a text encoder reads the empty prompt, independent of the others, so that any of them can be
    # omitted later (Sec. 4). With Stable Diffusion 3's 0.464, 0.464^3 = 10 % of the samples have no text at all.
    encoder_dropout: float = Field(default=0.0, ge=0, lt=1)
    timesteps: TimestepSettings = TimestepSettings()
    guidance_scale: float = Field(default=4.0, ge=0)  # the pipeline's default, also used for sample grids
    num_inference_steps: int = Field(default=28, gt=0)
    prompts: tuple[str, ...] = ()  # for the sample grids; by default captions of the first 24 pictures


LatentRecipeType = TypeVar("LatentRecipeType", bound=LatentRecipe)
