"""Pictures of tiny pipelines, each from its own seed."""

from __future__ import annotations

from typing import Any

import torch

from snapgen.pipeline.text_to_image import SnapGenPipeline


def seeds(*numbers: int) -> list[torch.Generator]:
    """A generator for each of `numbers`."""
    return [torch.Generator().manual_seed(number) for number in numbers]


def draw(pipeline: SnapGenPipeline, prompt: str | list[str] | None, seed: int = 0, **settings: Any) -> torch.Tensor:
    """Pictures B 3 H W in [0, 1], the first with `seed`, the next with the one after it, and so on."""
    texts = settings["prompt_embeds"] if prompt is None else [prompt] if isinstance(prompt, str) else prompt
    count = len(texts) * settings.get("num_images_per_prompt", 1)
    generator = seeds(*range(seed, seed + count))
    return pipeline(prompt, generator=generator, **{"output_type": "pt"} | settings).images
