"""The networks of a model as functions of plain tensors: what every target converts.

Each part is a module in fp32 whose `forward` takes and returns tensors alone, with an example of its inputs and the
names of the sizes that may change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snapgen.models.denoiser import Denoiser, pooled_width, text_width
from snapgen.pipeline.vae import Autoencoder, normalization
from snapgen.text.encoder import TransformersTextEncoder


@dataclass(frozen=True)
class Part:
    """A network to convert."""

    name: str  # "text_encoder", "text_encoder_2", "text_encoder_3", "unet" or "decoder"
    module: nn.Module
    inputs: dict[str, Tensor]  # examples, in the order of `forward`'s arguments
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]  # names of the sizes that may change, by input or output and axis

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, computed by torch."""
        with torch.no_grad():
            found = self.module(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, found, strict=True))


class TextPart(nn.Module):
    """A text encoder's network with what `TransformersTextEncoder` does to its hidden states."""

    def __init__(self, encoder: TransformersTextEncoder, pooled: bool) -> None:
        """`pooled`: return the pooled vector, too."""
        super().__init__()
        self.model = encoder.model
        self.layer = -2 if encoder.is_clip else -1
        self.pooled = pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Token ids and mask, B N', integers -> states B N' D of unit RMS, zeros where masked, and the pooled B D."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        hidden = output.hidden_states[self.layer]
        states = F.rms_norm(hidden, hidden.shape[-1:]) * attention_mask[..., None]
        return (states, output.pooler_output) if self.pooled else (states,)


class UNetPart(nn.Module):
    """The network that predicts the velocity, from text states instead of their keys and values."""

    def __init__(self, unet: Denoiser) -> None:
        super().__init__()
        self.unet = unet
        self.pooled = pooled_width(unet) is not None

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        states: Tensor,
        mask: Tensor,
        pooled: Tensor | None = None,
    ) -> tuple[Tensor]:
        """B C h w; 1000 sigma, (B,); B M D; B M, integers; B P -> the velocity B C h w."""
        more: dict[str, Any] = {"pooled_projections": pooled} if self.pooled else {}
        velocity: Tensor = self.unet(sample, timestep, states, mask, return_dict=False, **more)[0]
        return (velocity,)


class DecoderPart(nn.Module):
    """The autoencoder's decoder, from latents as diffusion has them."""

    def __init__(self, vae: Autoencoder) -> None:
        super().__init__()
        self.vae = vae
        self.scaling, self.shift = normalization(vae)

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """B C h w -> pictures B 3 H W in about [-1, 1]."""
        picture: Tensor = self.vae.decode(latents / self.scaling + self.shift, return_dict=False)[0]
        return (picture,)


def text_part(name: str, encoder: TransformersTextEncoder, pooled: bool) -> Part:
    """The text encoder `name`; with `pooled` it also returns the pooled vector."""
    length = encoder.prefix_length + encoder.max_length
    ids = torch.zeros(1, length, dtype=torch.int64)
    sizes = {0: "batch", 1: "tokens"}
    outputs = ("states", "pooled") if pooled else ("states",)
    axes = {"input_ids": sizes, "attention_mask": sizes, "states": sizes} | ({"pooled": {0: "batch"}} if pooled else {})
    return Part(name, TextPart(encoder, pooled), {"input_ids": ids, "attention_mask": ids + 1}, outputs, axes)


def unet_part(unet: Denoiser, height: int, width: int, tokens: int) -> Part:
    """The UNet for latents of `height` and `width`, and `tokens` tokens of text."""
    batch, text = {0: "batch"}, {0: "batch", 1: "tokens"}
    picture = {0: "batch", 2: "height", 3: "width"}
    inputs = {
        "sample": torch.randn(1, unet.config.in_channels, height, width),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, tokens, text_width(unet)),
        "encoder_attention_mask": torch.ones(1, tokens, dtype=torch.int64),
    }
    axes = {"sample": picture, "timestep": batch, "encoder_hidden_states": text, "encoder_attention_mask": text}
    if (pooled := pooled_width(unet)) is not None:
        inputs["pooled_projections"], axes["pooled_projections"] = torch.randn(1, pooled), batch
    return Part("unet", UNetPart(unet), inputs, ("velocity",), axes | {"velocity": picture})


def decoder_part(vae: Autoencoder, height: int, width: int) -> Part:
    """The decoder of latents of `height` and `width`."""
    latents = torch.randn(1, vae.config.latent_channels, height, width)
    axes = {
        "latents": {0: "batch", 2: "height", 3: "width"},
        "picture": {0: "batch", 2: "picture_height", 3: "picture_width"},
    }
    return Part("decoder", DecoderPart(vae), {"latents": latents}, ("picture",), axes)
