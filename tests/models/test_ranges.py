"""The ranges of configurations: kept by every network, and wide enough for all of ours."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.classifier import SceneClassifier
from snapgen.models.discriminator import PatchDiscriminator
from snapgen.models.distiller import Discriminator
from snapgen.models.presets import AUTOENCODERS, TEACHERS, UNETS, create_denoiser
from snapgen.models.reader import Reader
from snapgen.models.teacher import TeacherTransformer
from snapgen.models.unet import SnapGenUNet

CLASSIFIER = {"nouns": ["cat"], "looks": [None]}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SnapGenUNet, {"layers_per_block": 9}, "layers_per_block: .* less than or equal to 8"),
        (SnapGenUNet, {"transformer_layers": (33, 0, 0)}, "transformer_layers.0: .* less than or equal to 32"),
        (SnapGenUNet, {"block_out_channels": ()}, "block_out_channels: .* at least 1 item"),
        (SnapGenUNet, {"ffn_ratio": 0}, "ffn_ratio: .* greater than or equal to 1"),
        (SnapGenUNet, {"separable": 1}, "separable: .* valid boolean"),
        (SnapGenUNet, {"self_attention": (1, 0, 0)}, "self_attention.0: .* valid boolean"),
        (SnapGenUNet, {"expansion": 10**9}, "expansion: .* less than or equal to 16"),
        (SnapGenUNet, {"depth": 3}, "depth: unexpected keyword argument"),
        (SnapGenAutoencoder, {"decoder_blocks": (1, 1, 65, 1)}, "decoder_blocks.2: .* less than or equal to 64"),
        (SnapGenAutoencoder, {"latent_channels": 0}, "latent_channels: .* greater than or equal to 1"),
        (SnapGenAutoencoder, {"shift_factor": float("inf")}, "shift_factor: .* finite number"),
        (SceneClassifier, CLASSIFIER | {"blocks": 10**9}, "blocks: .* less than or equal to 64"),
        (SceneClassifier, CLASSIFIER | {"channels": [8, 8, 8]}, "channels.3: field required"),
        (SceneClassifier, {"nouns": [], "looks": [None]}, "nouns: .* at least 1 item"),
        (Reader, {"width": 10**9, "subjects": 2, "answers": {"noun": 2}}, "width: .* less than or equal to 16384"),
        (Reader, {"width": 8, "subjects": 2, "answers": {"noun": 0}}, "answers.noun: .* greater than or equal to 1"),
        (PatchDiscriminator, {"channels": (64,) * 9}, "channels: .* at most 8 items"),
        (Discriminator, {"channels": [8], "hidden": 10**9}, "hidden: .* less than or equal to 16384"),
        (TeacherTransformer, {"num_layers": 10**9}, "num_layers: .* less than or equal to 64"),
        (TeacherTransformer, {"pos_embed_max_size": 10**5}, "pos_embed_max_size: .* less than or equal to 1024"),
        (TeacherTransformer, {"qk_norm": "evil"}, "qk_norm: .* 'rms_norm'"),
    ],
)
def test_what_is_outside_is_named_before_anything_is_built(kind: Any, settings: dict[str, Any], message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {message}") as caught:
        kind(**settings)
    assert time.monotonic() - started < 1
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_every_preset_is_inside() -> None:
    with torch.device("meta"):
        for name in (*UNETS, *TEACHERS):
            create_denoiser(name)
        for configuration in AUTOENCODERS.values():
            SnapGenAutoencoder(**configuration)


def test_lists_are_as_good_as_tuples_and_the_configuration_is_kept_as_given() -> None:
    unet = SnapGenUNet(**UNETS["debug"] | {"block_out_channels": [32, 64], "skip_spread": 1})
    assert unet.config.block_out_channels == [32, 64] and unet.config.skip_spread == 1
