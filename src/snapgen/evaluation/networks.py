"""Loads the transformers networks that judge pictures, from a folder or the hub; what is missing is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from PIL import Image

from snapgen.messages import one_line
from snapgen.weights import load_network, load_pretrained

CLIP = "openai/clip-vit-large-patch14"


def find_judge(name: str | Path, source: str, folder: str = "FOLDER") -> str:
    """`name`, a folder or a name on the hub; ValueError saying what to download if it is neither.

    `source`: the hub name to download; `folder`: where to put it, for `--weights FOLDER`.
    """
    if not Path(name).is_dir():
        try:
            hf_hub_download(str(name), "config.json")  # one file of many: wait for an unreachable hub only once
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'{name}' is not a folder here, and the hub does not provide it: `hf download {source} --local-dir "
                f"{folder}`, then --weights FOLDER ({one_line(error, 200)})"
            ) from None
    return str(name)


def load_judge(processor: Any, network: Any, place: str, device: torch.device) -> tuple[Any, Any]:
    """The processor and the network (frozen, fp32) in `place`, by their classes; ValueError unless complete."""
    judge = load_network(network, place, dtype=torch.float32).to(device).eval().requires_grad_(False)
    return load_pretrained(processor.from_pretrained, place), judge


class Clip:
    """A CLIP with its processor: unit embeddings of one picture or a few texts at a time."""

    def __init__(self, name: str | Path, device: torch.device, folder: str = "FOLDER"):
        """`folder`: as for `find_judge`. Raises ValueError if there is no such CLIP."""
        from transformers import CLIPModel, CLIPProcessor

        place = find_judge(name, CLIP, folder)
        self.processor, self.network = load_judge(CLIPProcessor, CLIPModel, place, device)

    @torch.no_grad()
    def picture(self, picture: Image.Image) -> torch.Tensor:
        """The embedding of `picture`: D."""
        pixels = self.processor(images=picture, return_tensors="pt")["pixel_values"].to(self.network.device)
        state = self.network.visual_projection(self.network.vision_model(pixel_values=pixels).pooler_output)
        return F.normalize(state[0], dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> torch.Tensor:
        """The embeddings of `texts`: N D. Texts longer than CLIP's limit are truncated."""
        tokens = self.processor(text=texts, padding=True, truncation=True, return_tensors="pt")
        read = self.network.text_model(
            input_ids=tokens["input_ids"].to(self.network.device),
            attention_mask=tokens["attention_mask"].to(self.network.device),
        )
        return F.normalize(self.network.text_projection(read.pooler_output), dim=-1)
