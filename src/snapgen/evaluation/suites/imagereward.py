"""The suite "imagereward": ImageReward, a model of human preference (Xu et al. 2023).

Protocol. One picture per prompt (of the text file `--prompts`) and seed, resized to 224 px (bicubic, shorter side) and
cropped to the middle square. BLIP's ViT-L and its text encoder with cross-attention read picture and prompt (35
tokens). An MLP turns the first token's state into a reward, standardised by the published mean and deviation. The score
is the mean reward.

The `image-reward` package no longer installs beside current libraries (it pins timm 0.6 and fairscale and needs
torchvision), so its published weights run in transformers' BLIP, the same network under other names. `--weights` is a
folder with `ImageReward.pt` (hub: THUDM/ImageReward) and bert-base-uncased's vocabulary (`vocab.txt`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

from snapgen.evaluation import EvaluationSettings, required_prompts
from snapgen.evaluation.prompts import score_prompts, some_prompts
from snapgen.files import sha256
from snapgen.messages import Notify, one_line
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.weights import check_healthy, load_pretrained

FILE, VOCABULARY = "ImageReward.pt", "vocab.txt"
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the training rewards; published
TOKENS = 35
MLP_WIDTHS = (1024, 128, 64, 16, 1)
PIXEL_MEAN, PIXEL_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

CONFIGURATION = {  # BLIP large, as `create_vit("large")` and the published med_config.json define it
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "vocab_size": 30524,
        "hidden_size": 768,
        "encoder_hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "layer_norm_eps": 1e-12,
        "is_decoder": True,  # transformers' name for "has cross-attention"
    },
}
RENAMED = (  # ImageReward's names -> transformers'
    (r"^blip\.visual_encoder\.cls_token$", "blip.vision_model.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "blip.vision_model.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "blip.vision_model.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "blip.vision_model.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"blip.vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"blip.vision_model.encoder.layers.\1.self_attn.qkv."),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"blip.vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"blip.vision_model.encoder.layers.\1.mlp."),
    (r"^mlp\.layers\.(\d+)\.", r"mlp.\1."),
)
# Not used by the score, or not weights at all.
PASSED_OVER = re.compile(r"^blip\.(vision_proj|text_proj)\.|position_ids$")


class ImageReward(nn.Module):
    """BLIP and the MLP on its first text state."""

    def __init__(self, configuration: Mapping[str, Any] = CONFIGURATION):
        super().__init__()
        blip = BlipForImageTextRetrieval(BlipConfig(**configuration))
        self.blip = nn.ModuleDict({"vision_model": blip.vision_model, "text_encoder": blip.text_encoder})
        width = blip.config.text_config.hidden_size
        layers: list[nn.Module] = []
        for index, following in enumerate(MLP_WIDTHS):
            # The dropouts do nothing here, but keep the published numbering of the layers.
            layers += [nn.Linear(width, following), nn.Dropout()] if index < 3 else [nn.Linear(width, following)]
            width = following
        self.mlp = nn.Sequential(*layers)

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Rewards B of pictures B 3 H W, normalised as for BLIP, and their prompts' token ids and mask, each B N."""
        seen = self.blip["vision_model"](pixels).last_hidden_state
        states = self.blip["text_encoder"](
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        return (self.mlp(states[:, 0])[:, 0] - MEAN) / DEVIATION


def rename(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published state dictionary under the names of `ImageReward`."""
    renamed = {}
    for name, tensor in state.items():
        if PASSED_OVER.search(name):
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def load_imagereward(
    folder: Path, device: torch.device, configuration: Mapping[str, Any] = CONFIGURATION
) -> Callable[[str, Image.Image], float]:
    """The judge in `folder`; ValueError saying which file is missing or does not fit."""
    for file in (folder / FILE, folder / VOCABULARY):
        if not file.is_file():
            raise ValueError(
                f"imagereward needs {file}: `hf download THUDM/ImageReward {FILE} --local-dir {folder}` and "
                f"`hf download google-bert/bert-base-uncased {VOCABULARY} --local-dir {folder}` (--weights FOLDER)"
            )
    network = ImageReward(configuration).eval().to(device)
    side = BlipConfig(**configuration).vision_config.image_size
    try:
        # Only published as a pickle; with `weights_only`, torch reads tensors and refuses anything else.
        state = torch.load(folder / FILE, map_location="cpu", weights_only=True)
        network.load_state_dict(rename(state))
    except Exception as error:  # unpickling and torch raise their own types
        raise ValueError(f"{folder / FILE} does not fit: {one_line(error, 300)}") from None
    check_healthy(dict(network.named_parameters()), str(folder / FILE))
    tokenizer = load_pretrained(BertTokenizer.from_pretrained, str(folder))

    @torch.no_grad()
    def judge(prompt: str, picture: Image.Image) -> float:
        read = tokenizer(prompt, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        pixels = preprocess(picture, side).to(device)
        return float(network(pixels, read["input_ids"].to(device), read["attention_mask"].to(device)))

    return judge


def preprocess(picture: Image.Image, side: int) -> torch.Tensor:
    """`picture` as 1 3 `side` `side`, normalised as CLIP and BLIP expect."""
    scale = side / min(picture.size)
    resized = picture.resize([max(side, int(scale * n)) for n in picture.size], Image.Resampling.BICUBIC)
    left, top = round((resized.width - side) / 2), round((resized.height - side) / 2)
    cut = torch.from_numpy(np.array(resized.crop((left, top, left + side, top + side)))).permute(2, 0, 1) / 255
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (PIXEL_MEAN, PIXEL_DEVIATION))
    return ((cut - mean) / deviation)[None]


def evaluate_imagereward(
    pipeline: SnapGenPipeline, settings: EvaluationSettings, folder: Path, progress: Notify
) -> dict[str, Any]:
    """Score `pipeline`, write pictures and report to `folder`, return the report."""
    some_prompts(required_prompts("imagereward", settings))  # before anything is loaded
    weights = Path(settings.weights or "weights/imagereward")
    judge = load_imagereward(weights, pipeline.device)
    facts = {"judge": "ImageReward-v1.0", "judge_sha256": sha256(weights / FILE)}
    return score_prompts("imagereward", pipeline, settings, folder, progress, judge, facts, "ImageReward")
