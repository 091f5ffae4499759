"""Text to image with the networks of a bundle, whatever computes them: the loop of the pipeline in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from snapgen.files import JSON_LIMIT, read_whole
from snapgen.flow.guidance import guide, has_guidance, is_guided
from snapgen.flow.noise import seeded_noise
from snapgen.flow.sampling import euler_step
from snapgen.flow.schedule import TIMESTEP_SCALE, sampling_levels
from snapgen.messages import one_line
from snapgen.runtime.bundle import DECODER, UNET, Bundle, Text

LARGEST_NOISE = 2**25  # numbers: 128 channels at 4096 x 4096 pixels; a hostile bundle must not fill the memory

Arrays = Mapping[str, np.ndarray]  # by name of an input or output
Runner = Callable[[Arrays], dict[str, np.ndarray]]  # a network: inputs -> outputs


@dataclass(frozen=True)
class Encoded:
    """A prompt as the UNet reads it: `states` 1 M D, `mask` 1 M, and the pooled vector 1 P if there is one."""

    states: np.ndarray
    mask: np.ndarray
    pooled: np.ndarray | None

    def trimmed(self) -> Encoded:
        """Without masked tokens: they cost time and change nothing."""
        seen = self.mask[0].astype(bool)
        return Encoded(self.states[:, seen], self.mask[:, seen], self.pooled)


class BundlePipeline:
    """Turns prompts into pictures, one at a time."""

    def __init__(self, bundle: Bundle, networks: Mapping[str, Runner], tokenizers: Mapping[str, Tokenizer]) -> None:
        """`networks`: by name, as `bundle` lists them; `tokenizers`: by file."""
        self.bundle = bundle
        self.networks = networks
        self.tokenizers = tokenizers

    def __call__(
        self,
        prompt: str,
        seed: int,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        height: int | None = None,
        width: int | None = None,
        encoders: Sequence[str] | None = None,
        after_step: Callable[[], object] = lambda: None,
    ) -> Image.Image | None:
        """The picture of `prompt` from the noise of `seed`, as `SnapGenPipeline` makes it; None if it is not finite.

        height, width: in pixels; encoders: the text encoders that read the prompt, by default all. What is not given
        is the model's own. ValueError for a size that the networks cannot take.
        """
        noise = seeded_noise(seed, self.latent_shape(height, width))
        latents = self.denoise(prompt, noise, steps, guidance, interval, encoders, after_step)
        decoded = self.decode(latents)
        return to_picture(decoded) if np.isfinite(decoded).all() else None

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int, int]:
        """The shape of the latents of a picture of `height` and `width` pixels, 1 C h w."""
        latents = self.bundle.latents
        unit, own = latents.pixels, (latents.height * latents.pixels, latents.width * latents.pixels)
        height, width = height or own[0], width or own[1]
        if latents.fixed and (height, width) != own:
            raise ValueError(f"size {width}x{height}: the bundle was made for {own[1]}x{own[0]} alone")
        if height % (unit * latents.multiple) or width % (unit * latents.multiple):
            raise ValueError(f"size {width}x{height}: the bundle takes multiples of {unit * latents.multiple}")
        shape = 1, latents.channels, height // unit, width // unit
        if (count := prod(shape)) > LARGEST_NOISE:
            raise ValueError(f"size {width}x{height}: latents of {count:,} numbers, at most {LARGEST_NOISE:,} expected")
        return shape

    def encode(self, prompt: str, encoders: Sequence[str] | None = None) -> Encoded:
        """`prompt` as the text encoders named `encoders`, by default all, read it; ValueError if there are none."""
        texts = self.bundle.texts
        if not texts:
            raise ValueError("this bundle has no text encoder: it was made of a network alone")
        length = max(text.tokens[1] for text in texts)
        states = np.zeros((1, length, max(text.columns[1] for text in texts)), np.float32)
        mask = np.zeros((1, length), np.int64)
        clips = [text.columns[1] for text in texts if text.pooled]
        pooled = np.zeros((1, max(clips)), np.float32) if clips and self._reads_pooled else None
        for text in texts:
            start, columns = text.tokens[0], slice(*text.columns)
            if text.tokenizer is None or not prompt.strip() or (encoders is not None and text.network not in encoders):
                mask[:, start] = 1  # no text: zeros, and only the first token is seen
                continue
            found, seen = self._read(text, prompt)
            length = found["states"].shape[1]
            states[:, start : start + length, columns] = found["states"]
            mask[:, start : start + length] |= seen
            if pooled is not None and text.pooled:
                pooled[:, columns] = found["pooled"]
        return Encoded(states, mask, pooled)

    @property
    def _reads_pooled(self) -> bool:
        return any(port.name == "pooled_projections" for port in self.bundle.networks[UNET].inputs)

    def _read(self, text: Text, prompt: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The outputs of a text encoder for `prompt`, and the mask of its tokens, both without the prefix."""
        assert text.tokenizer is not None
        tokens = text.tokens[1] - text.tokens[0] + text.prefix_length
        tokenizer = self.tokenizers[text.tokenizer]
        tokenizer.no_padding()
        tokenizer.enable_truncation(tokens)
        ids = tokenizer.encode(text.prefix + prompt).ids
        padding = tokens - len(ids) if self.bundle.latents.fixed else 0
        inputs = {
            "input_ids": np.array([ids + [text.pad_token] * padding], np.int64),
            "attention_mask": np.array([[1] * len(ids) + [0] * padding], np.int64),
        }
        found = dict(self.networks[text.network](inputs))
        columns = text.columns[1] - text.columns[0]
        states = checked(found, text.network, "states", (1, len(ids) + padding, columns))
        if text.pooled and self._reads_pooled:
            checked(found, text.network, "pooled", (1, columns))
        prefix = slice(text.prefix_start, text.prefix_start + text.prefix_length)
        found["states"] = np.delete(states, prefix, axis=1)
        return found, np.delete(inputs["attention_mask"], prefix, axis=1)

    def denoise(
        self,
        prompt: str,
        noise: np.ndarray,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        encoders: Sequence[str] | None = None,
        after_step: Callable[[], object] = lambda: None,
    ) -> np.ndarray:
        """The latents of `prompt`, 1 C h w, from `noise` of that shape: guided Euler steps."""
        own = self.bundle.sampling
        guidance = own.guidance if guidance is None else guidance
        text = self._for_unet(self.encode(prompt, encoders))
        negative = self._for_unet(self.encode("", encoders)) if has_guidance(guidance) else text
        x = noise
        for sigma, following in pairwise(sampling_levels(steps or own.steps, own.shift)):
            velocity = self.velocity(x, sigma, text)
            if is_guided(sigma, guidance, interval):
                velocity = guide(velocity, self.velocity(x, sigma, negative), guidance)
            x = euler_step(x, velocity, sigma, following)  # Eq. 3
            after_step()
        return x

    def _for_unet(self, text: Encoded) -> Encoded:
        return text if self.bundle.latents.fixed else text.trimmed()

    def velocity(self, x: np.ndarray, sigma: float, text: Encoded) -> np.ndarray:
        """The UNet's velocity of the latents `x`, 1 C h w, at the noise level `sigma`."""
        return checked(self.networks[UNET](unet_inputs(x, sigma, text)), UNET, "velocity", x.shape)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """The picture of `latents`, 1 3 H W, in about [-1, 1]."""
        count, _, height, width = latents.shape
        unit = self.bundle.latents.pixels
        shape = (count, 3, height * unit, width * unit)
        return checked(self.networks[DECODER]({"latents": latents}), DECODER, "picture", shape)


def checked(outputs: Arrays, network: str, name: str, shape: Sequence[int]) -> np.ndarray:
    """The output `name` of `network`; ValueError unless it is there, in this shape."""
    array = outputs.get(name)
    if array is None or array.shape != tuple(shape):
        given = "missing" if array is None else f"of shape {list(array.shape)}"
        raise ValueError(f"the output {name} of the network {network} is {given}, expected {list(shape)}")
    return array


def unet_inputs(x: np.ndarray, sigma: float, text: Encoded) -> dict[str, np.ndarray]:
    """The UNet's inputs by name."""
    inputs = {
        "sample": x,
        "timestep": np.array([TIMESTEP_SCALE * sigma], np.float32),
        "encoder_hidden_states": text.states,
        "encoder_attention_mask": text.mask,
    }
    return inputs if text.pooled is None else inputs | {"pooled_projections": text.pooled}


def to_picture(decoded: np.ndarray) -> Image.Image:
    """A decoded picture, 1 3 H W in about [-1, 1], with 8 bits."""
    levels = np.clip(decoded[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1) * 255
    return Image.fromarray(levels.round().astype(np.uint8))


def read_tokenizers(folder: Path, files: Iterable[str]) -> dict[str, Tokenizer]:
    """The tokenizers in `folder`, by file; ValueError naming one that cannot be read."""
    found = {}
    for name in files:
        try:
            found[name] = Tokenizer.from_str(read_whole(folder / name, JSON_LIMIT).decode("utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{folder / name} is not a tokenizer: {one_line(error, 300)}") from error
    return found
