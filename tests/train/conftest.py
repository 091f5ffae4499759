"""What the tests of training share: one chain of debug stages, and a tiny published teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import save_file
from support.recipes import paths_below, run_recipe
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.lpips import vgg16_features
from snapgen.models.presets import AUTOENCODERS, TEACHERS


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the autoencoder, text, flow and teacher recipes have run, in `<recipe>/`."""
    folder = tmp_path_factory.mktemp("debug")
    run_recipe("autoencoder", folder / "autoencoder")
    run_recipe("text", folder / "text")
    run_recipe("flow", folder / "flow", *paths_below(folder))
    run_recipe("teacher", folder / "teacher", *paths_below(folder))
    return folder


@pytest.fixture(scope="session")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the random weights of a VGG-16 in half precision, as LPIPS reads them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vgg16")
    tensors = {f"features.{name}": tensor.half() for name, tensor in vgg16_features().state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def published(tiny_model: Path, text_models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion 3 on the latents of `tiny_model`."""
    torch.manual_seed(2)
    tokenizer = AutoTokenizer.from_pretrained(text_models[0])
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2} | special
    clips = [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=width, projection_dim=width, max_position_embeddings=16, **sizes
            )
        )
        for width in (8, 12)
    ]
    t5 = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    student = SnapGenAutoencoder.from_pretrained(tiny_model / "vae")
    shape = AUTOENCODERS["debug"]
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=shape["encoder_channels"],
        layers_per_block=1,
        norm_num_groups=shape["norm_num_groups"],
        latent_channels=16,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae.encoder.load_state_dict(student.encoder.state_dict())
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**TEACHERS["debug-teacher"] | {"pooled_projection_dim": 20}),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clips[0],
        tokenizer=tokenizer,
        text_encoder_2=clips[1],
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=tokenizer,
    )
    folder = tmp_path_factory.mktemp("published") / "sd3"
    pipeline.save_pretrained(folder)
    return folder
