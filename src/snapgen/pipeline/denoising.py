"""The loop from noise to latents, which all pipelines share: guided Euler steps, and callbacks that may intervene."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snapgen.flow.guidance import guide, has_guidance, is_guided
from snapgen.flow.path import interpolate
from snapgen.flow.sampling import euler_step
from snapgen.flow.schedule import TIMESTEP_SCALE
from snapgen.pipeline.conditioning import Conditioning
from snapgen.pipeline.request import Request
from snapgen.text.encoder import TextStates

if TYPE_CHECKING:
    from snapgen.pipeline.text_to_image import SnapGenPipeline


@dataclass
class Start:
    """Where a call begins."""

    latents: Tensor  # B C h w, fp32, at the first of `sigmas`; the other tensors too
    sigmas: list[float]  # the levels to visit, falling, the last 0
    noise: Tensor
    x0: Tensor | None = None  # of a picture to start from
    mask: Tensor | None = None  # B 1 h w, boolean, where that picture may change; None: everywhere

    def keep(self, x: Tensor, sigma: float) -> Tensor:
        """The latents `x` at the level `sigma`, with the picture put back outside the mask."""
        if self.mask is None or self.x0 is None:
            return x
        return torch.where(self.mask, x, interpolate(self.x0, self.noise, torch.tensor([sigma], device=x.device)))


@dataclass
class Texts:
    """What the B pictures show, and what guidance steers away from; None without guidance."""

    text: TextStates  # B N D
    negative: TextStates | None  # B N D

    def on(self, device: torch.device, count: int) -> Texts:
        """The same on `device`, each text repeated `count` times in a row."""
        text, negative = (
            part and part.to(device, part.states.dtype).repeat(count) for part in (self.text, self.negative)
        )
        assert text is not None
        return Texts(text, negative)

    def conditionings(self, unet: Any, together: int) -> list[Conditioning]:
        """The conditioning of every part of `together` pictures."""
        texts = self.text.split(together)
        negatives = self.negative.split(together) if self.negative is not None else [None] * len(texts)
        return [Conditioning(unet, *pair) for pair in zip(texts, negatives, strict=True)]

    def as_given(self, guided: bool) -> TextStates:
        """What callbacks see, in diffusers' order: with guidance the negative texts and then the texts, 2B N D."""
        return TextStates.cat([self.negative, self.text]) if guided and self.negative is not None else self.text

    def changed(self, given: TextStates, states: Tensor, mask: Tensor) -> Texts:
        """The texts after a callback returned `states` and `mask` for the `given` ones, whole or the texts alone."""
        count = len(self.text.states)
        if len(states) == 1 < count and torch.equal(states[0], given.states[-1]):
            return self  # diffusers' cutoff callbacks drop the negative texts by [-1:], for a single picture
        if len(mask) == 2 * len(states):
            mask = mask[count:]
        if len(states) not in (count, len(given.states)) or states.shape[:2] != mask.shape:
            shapes = f"{tuple(states.shape)} and prompt_attention_mask of {tuple(mask.shape)}"
            expected = f"{len(given.states)} texts as given, or the last {count}, with one mask for each token"
            raise ValueError(f"the callback returned prompt_embeds of shape {shapes}, expected {expected}")
        negative = self.negative
        if len(states) > count:
            pooled = None if negative is None else negative.pooled
            negative = TextStates(states[:count], mask[:count].bool(), pooled)
        return Texts(TextStates(states[-count:], mask[-count:].bool(), self.text.pooled), negative)


def denoise(pipeline: SnapGenPipeline, start: Start, texts: Texts, together: int, request: Request) -> Tensor:
    """The latents, B C h w at sigma 0, after Euler steps along the guided velocity; `together` are computed at once."""
    x = start.latents
    conditionings = texts.conditionings(pipeline.unet, together)
    with pipeline.progress_bar(list(pairwise(start.sigmas))) as levels:
        for index, (sigma, following) in enumerate(levels):
            if pipeline.interrupt:
                continue
            parts = zip(x.split(together), conditionings, strict=True)
            interval = request.guidance_interval
            velocity = torch.cat([guided_velocity(pipeline, part, sigma, text, interval) for part, text in parts])
            x = euler_step(x, velocity, sigma, following)  # Eq. 3
            x = start.keep(x, following)
            if request.callback_on_step_end is not None:
                x, changed = call_back(pipeline, request, index, sigma, x, texts)
                if changed is not texts:
                    texts, conditionings = changed, changed.conditionings(pipeline.unet, together)
    return x


def guided_velocity(
    pipeline: SnapGenPipeline, x: Tensor, sigma: float, text: Conditioning, interval: tuple[float, float]
) -> Tensor:
    """The velocity B C h w of `x` at `sigma`: one evaluation without guidance, two at once with it."""
    if not is_guided(sigma, pipeline.guidance_scale, interval):
        return pipeline.predict_velocity(x, sigma, text.positive)
    both = pipeline.predict_velocity(torch.cat([x, x]), sigma, text.both)
    v_negative, v_text = both.chunk(2)
    return guide(v_text, v_negative, pipeline.guidance_scale)


def call_back(
    pipeline: SnapGenPipeline, request: Request, index: int, sigma: float, x: Tensor, texts: Texts
) -> tuple[Tensor, Texts]:
    """The latents and texts after the user's callback, which may change them, the guidance, or interrupt."""
    assert request.callback_on_step_end is not None
    given = texts.as_given(pipeline.do_classifier_free_guidance)
    tensors = {"latents": x, "prompt_embeds": given.states, "prompt_attention_mask": given.mask}
    seen = {name: tensors[name] for name in request.callback_on_step_end_tensor_inputs or ["latents"]}
    timestep = torch.tensor(TIMESTEP_SCALE * sigma)
    found = tensors | (request.callback_on_step_end(pipeline, index, timestep, seen) or {})
    if has_guidance(pipeline.guidance_scale) and texts.negative is None:
        raise ValueError("the callback turned guidance on, but the call began without: no negative text was encoded")
    if any(found[name] is not tensors[name] for name in ("prompt_embeds", "prompt_attention_mask")):
        texts = texts.changed(given, found["prompt_embeds"], found["prompt_attention_mask"])
    return found["latents"], texts
