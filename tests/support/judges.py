"""Tiny judges with random weights in folders, as the hub's are."""

from pathlib import Path

import torch
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from snapgen.evaluation.suites.geneval import CLASSES
from snapgen.text.tokenizer import train_tokenizer

TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 32, "patch_size": 16}


def tokenizer():
    return train_tokenizer(["a photo of a red cat", "is there a dog yes no"], 120, max_length=24)


def save_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": 120, "max_position_embeddings": 24, "bos_token_id": 2, "eos_token_id": 3}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, tokenizer()).save_pretrained(folder)
    return folder


def save_detector(folder: Path, labels: list[str] | None = None) -> Path:
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,  # of 32 groups, which are fixed
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=20,
        id2label=dict(enumerate(labels or CLASSES)),
    )
    network = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # confident, so that something is found in every picture
        network.class_predictor.weight *= 40
    network.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def save_vqa(folder: Path) -> Path:
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": 120, "max_position_embeddings": 24, "encoder_hidden_size": 16}
    text |= {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer()).save_pretrained(folder)
    return folder
