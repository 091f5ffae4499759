"""The named configurations of all networks. Full-size and miniature ones use the same classes.

`t2i` and `imagenet` are the paper's UNets (379 M and 372 M parameters); `decoder` is its 1.38 M-parameter
decoder behind SD3's encoder; `mini` is for the embedded world.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snapgen.models.autoencoder import SnapGenAutoencoder
    from snapgen.models.teacher import TeacherTransformer
    from snapgen.models.unet import SnapGenUNet

UNETS: dict[str, dict[str, Any]] = {
    "t2i": {"cross_attention_dim": 2304},  # Gemma-2-2b's width
    "imagenet": {"cross_attention_dim": 768, "sample_size": 32},  # CLIP-L's width
    # Two stages: a 16x16 latent is too small for three. Self-attention only in the lowest, as in the paper. At so few
    # positions the first stage's residual blocks are cheap, and they mix neighbours: they stay, before its
    # transformers. A first stage only six times as wide as the latent is slow to learn to pass the noise on to the
    # velocity; with the best linear prediction added to the output, it need not. 0.6 is the typical spread of the
    # latent's components (`benchmarks/latent_spectrum.py`). Sinusoidal positions show where a thing belongs.
    "mini": {
        "sample_size": 16,
        "block_out_channels": (96, 192),
        "transformer_layers": (1, 2),
        "self_attention": (False, True),
        "residual_blocks": (True, True),
        "layers_per_block": 1,
        "positions": True,
        "skip_spread": 0.6,
        "cross_attention_dim": 256,
        "attention_head_dim": 48,
        "time_embedding_dim": 256,
    },
    "debug": {
        "sample_size": 4,
        "block_out_channels": (32, 64),
        "transformer_layers": (1, 1),
        "self_attention": (False, True),
        "residual_blocks": (False, True),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 16,
        "time_embedding_dim": 32,
        "norm_num_groups": 8,
    },
}

# Four times smaller than `mini`: a student for machines that cannot train a teacher several times the size of `mini`.
UNETS["mini-small"] = UNETS["mini"] | {
    "block_out_channels": (48, 96),
    "transformer_layers": (1, 1),
    "attention_head_dim": 24,
    "norm_num_groups": 16,
}

# Teachers: diffusers' SD3Transformer2DModel, whose width is heads times head width.
TEACHERS: dict[str, dict[str, Any]] = {
    "sd3.5-large": {  # and SD3.5-Large-Turbo: their published transformer/config.json
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 38,
        "num_attention_heads": 38,
        "attention_head_dim": 64,
        "caption_projection_dim": 2432,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
    "mini-teacher": {
        "sample_size": 16,
        "patch_size": 1,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 10,
        "num_attention_heads": 6,
        "attention_head_dim": 64,
        "caption_projection_dim": 384,
        "joint_attention_dim": 256,
        "pooled_projection_dim": 256,
        "pos_embed_max_size": 32,
        "qk_norm": "rms_norm",
    },
    "debug-teacher": {
        "sample_size": 4,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "caption_projection_dim": 32,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 8,
        "qk_norm": "rms_norm",
    },
}

# The teacher of `mini-small`, trainable on a CPU: 64 tokens per picture.
TEACHERS["mini-small-teacher"] = TEACHERS["mini-teacher"] | {
    "patch_size": 2,
    "num_layers": 6,
    "num_attention_heads": 4,
    "caption_projection_dim": 256,
    "pos_embed_max_size": 16,
}

# Fig. 2 and 3, rung by rung: what each changes relative to the one before. (c0) is (c) without the expansion, (e1) is
# the paper's (e'). As in the paper, they are measured with ImageNet's light text encoder.
RUNG_CHANGES: dict[str, dict[str, Any]] = {
    "a": {
        "cross_attention_dim": 768,
        "transformer_layers": (0, 2, 4),
        "self_attention": (True, True, True),
        "residual_blocks": (True, True, True),
        "separable": False,
        "expansion": None,
        "ffn_ratio": 4,
        "multi_query": False,
        "qk_norm": False,
        "rotary": False,
    },
    "b": {"self_attention": (False, False, True)},
    "c0": {"separable": True},
    "c": {"expansion": 2},
    "d": {"ffn_ratio": 3},
    "e1": {"multi_query": True},
    "e": {"transformer_layers": (1, 2, 4), "residual_blocks": (False, True, True)},
    "f": {"qk_norm": True, "rotary": True},
}
RUNGS: dict[str, dict[str, Any]] = dict(
    zip(RUNG_CHANGES, accumulate(RUNG_CHANGES.values(), lambda rung, change: rung | change), strict=True)
)
UNETS |= {f"rung-{name}": configuration for name, configuration in RUNGS.items()}

AUTOENCODERS: dict[str, dict[str, Any]] = {
    # 1.377 M parameters and 217 GMACs; (2, 1, 1, 1) blocks, fewer at high resolution, as the paper says.
    "decoder": {},
    "mini": {
        "encoder_channels": (16, 32, 64, 128),
        "encoder_layers_per_block": 1,
        "decoder_channels": (192, 160, 96, 48),
        "decoder_blocks": (2, 3, 4, 2),
        "norm_num_groups": 8,
        # The encoder is trained here, so the latents' scale is measured after training.
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    },
    "debug": {
        "encoder_channels": (8, 8, 16, 16),
        "encoder_layers_per_block": 1,
        "decoder_channels": (16, 16, 8, 8),
        "decoder_blocks": (1, 1, 1, 1),
        "norm_num_groups": 4,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    },
}
# Like `mini` and `debug`, with the convolution that lets the stage whiten the latents.
for _name in ("mini", "debug"):
    AUTOENCODERS[f"{_name}-white"] = AUTOENCODERS[_name] | {"use_post_quant_conv": True}

# The defaults for a UNet's preset: the autoencoder of its latents, and the teacher.
AUTOENCODER_OF = {"t2i": "decoder", "imagenet": "decoder", "mini": "mini", "mini-small": "mini", "debug": "debug"}
TEACHER_OF = {
    "t2i": "sd3.5-large",
    "mini": "mini-teacher",
    "mini-small": "mini-small-teacher",
    "debug": "debug-teacher",
}
# Teachers use their students' latents.
AUTOENCODER_OF |= {teacher: AUTOENCODER_OF[student] for student, teacher in TEACHER_OF.items()}


def _preset(presets: dict[str, dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
    if name not in presets:
        raise ValueError(f"unknown {kind} preset '{name}': expected one of {', '.join(presets)}")
    return presets[name]


def create_unet(name: str, **changes: Any) -> SnapGenUNet:
    """A randomly initialised UNet of the preset `name`, with `changes` to its configuration."""
    from snapgen.models.unet import SnapGenUNet

    return SnapGenUNet(**_preset(UNETS, name, "UNet") | changes)


def create_denoiser(name: str, **changes: Any) -> SnapGenUNet | TeacherTransformer:
    """A randomly initialised UNet or transformer of the preset `name`, with `changes` to its configuration."""
    if name not in TEACHERS:
        return create_unet(name, **changes)
    from snapgen.models.teacher import TeacherTransformer

    return TeacherTransformer(**TEACHERS[name] | changes)


def create_autoencoder(name: str, **changes: Any) -> SnapGenAutoencoder:
    """A randomly initialised autoencoder of the preset `name`, with `changes` to its configuration."""
    from snapgen.models.autoencoder import SnapGenAutoencoder

    return SnapGenAutoencoder(**_preset(AUTOENCODERS, name, "autoencoder") | changes)
