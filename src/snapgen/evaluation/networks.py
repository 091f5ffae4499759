"""Networks of transformers that judge pictures, from a folder or from the hub; what is missing is one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

CLIP = "openai/clip-vit-large-patch14"


def load_judge(load: Callable[..., Any], name: str | Path, source: str, folder: str = "FOLDER") -> Any:
    """`load(name)` for a `from_pretrained`; ValueError saying what to fetch if it is not there.

    `source`: the hub's name of what may be fetched; `folder`: where to put it, for `--weights FOLDER`.
    Networks must have all of their weights: transformers would fill others with random numbers.
    """
    try:
        if not issubclass(load.__self__, torch.nn.Module):  # type: ignore[attr-defined]
            return load(name)
        network, report = load(name, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"'{name}' is no folder here with what is needed, and the hub does not hand it out: "
            f"`hf download {source} --local-dir {folder}`, then --weights FOLDER ({' '.join(str(error).split())[:200]})"
        ) from None
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"'{name}' lacks {len(missing)} tensors of {type(network).__name__}, such as {missing[0]}")
    return network.eval().requires_grad_(False)


class Clip:
    """A CLIP with its processor: unit vectors of pictures and texts, one picture or a few texts at a time."""

    def __init__(self, name: str | Path, device: torch.device, folder: str = "FOLDER"):
        """`folder`: as for `load_judge`. Raises ValueError if there is no such CLIP."""
        from transformers import CLIPModel, CLIPProcessor

        self.processor = load_judge(CLIPProcessor.from_pretrained, name, CLIP, folder)
        self.network = load_judge(CLIPModel.from_pretrained, name, CLIP, folder).to(device)

    @torch.no_grad()
    def picture(self, picture: Image.Image) -> torch.Tensor:
        """D."""
        pixels = self.processor(images=picture, return_tensors="pt")["pixel_values"].to(self.network.device)
        state = self.network.visual_projection(self.network.vision_model(pixel_values=pixels).pooler_output)
        return F.normalize(state[0], dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> torch.Tensor:
        """N D; what is longer than CLIP reads is cut."""
        tokens = self.processor(text=texts, padding=True, truncation=True, return_tensors="pt")
        read = self.network.text_model(
            input_ids=tokens["input_ids"].to(self.network.device),
            attention_mask=tokens["attention_mask"].to(self.network.device),
        )
        return F.normalize(self.network.text_projection(read.pooler_output), dim=-1)
