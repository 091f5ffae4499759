"""Counts the parameters and multiply-accumulates of models on the `meta` device, without weights or computation.

The paper's "FLOPs" are multiply-accumulates (MACs) of convolutions, linear layers and, for its UNets, the two products
inside attention: only if they are included does rung (b) save 17 %. They are also counted separately.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from snapgen.files import read_json
from snapgen.machine.counting import Counts, count
from snapgen.messages import one_line
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.presets import AUTOENCODERS, RUNG_CHANGES, UNETS
from snapgen.models.unet import SnapGenUNet

TEXT_TOKENS = 77  # CLIP's length, assumed for the text states


def count_unet(configuration: dict[str, Any], latent: int) -> Counts:
    """The counts of a UNet for one `latent` x `latent` sample with 77 text tokens."""
    with torch.device("meta"):
        unet = SnapGenUNet(**configuration)
        sample = torch.empty(1, unet.config.in_channels, latent, latent)
        states = torch.empty(1, TEXT_TOKENS, unet.config.cross_attention_dim)
        return count(unet, lambda: unet(sample, torch.empty(1), states))


def count_decoder(configuration: dict[str, Any], latent: int) -> Counts:
    """The counts of an autoencoder's decoder for one `latent` x `latent` latent."""
    with torch.device("meta"):
        autoencoder = SnapGenAutoencoder(**configuration)
        z = torch.empty(1, autoencoder.config.latent_channels, latent, latent)
        return count(autoencoder.decoder, lambda: autoencoder.decoder(z))


def count_encoder(configuration: dict[str, Any], latent: int) -> Counts:
    """The counts of an autoencoder's encoder for the picture of one `latent` x `latent` latent."""
    with torch.device("meta"):
        autoencoder = SnapGenAutoencoder(**configuration)
        side = latent * autoencoder.spatial_factor
        picture = torch.empty(1, autoencoder.config.in_channels, side, side)
        return count(autoencoder.encoder, lambda: autoencoder.encoder(picture))


def ladder() -> list[dict[str, Any]]:
    """The rungs of Fig. 2-3 in order: `name`, `parameters`, `macs_32` and `macs_128` (latents of these sides)."""
    rungs = []
    for name in RUNG_CHANGES:
        small, large = (count_unet(UNETS[f"rung-{name}"], latent) for latent in (32, 128))
        rungs.append({"name": name, "parameters": small.parameters, "macs_32": small.macs, "macs_128": large.macs})
    return rungs


def profile(unet: dict[str, Any] | None, autoencoder: dict[str, Any] | None, latent: int | None) -> dict[str, Any]:
    """The counts that `snapgen profile` reports for a UNet's and an autoencoder's configuration; either may be None.

    `latent` is the latent's side, by default the UNet's own, or 128 without a UNet. The UNet's counts are
    `parameters`, `macs`, `attention_macs`, `modules`; the autoencoder's begin with `encoder_` and `decoder_`.
    """
    side = latent or (unet or {}).get("sample_size", 128)
    counts: dict[str, Any] = {"latent": side}
    if unet is not None:
        counts |= vars(count_unet(unet, side))
    if autoencoder is not None:
        for part, counted in (
            ("encoder", count_encoder(autoencoder, side)),
            ("decoder", count_decoder(autoencoder, side)),
        ):
            counts |= {f"{part}_{key}": value for key, value in vars(counted).items()}
    return counts


def configurations(name: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The UNet's and the autoencoder's configurations in a preset or model folder; ValueError if it is neither."""
    if name in UNETS or name in AUTOENCODERS:
        return UNETS.get(name), AUTOENCODERS.get(name)
    folder = Path(name)
    if not (folder / "model_index.json").is_file():
        known = ", ".join(["ladder", *UNETS, *(preset for preset in AUTOENCODERS if preset not in UNETS)])
        raise ValueError(f"'{name}' is neither a preset nor a model folder: expected one of {known}, or a folder")
    return _read(folder / "unet" / "config.json", SnapGenUNet), _read(
        folder / "vae" / "config.json", SnapGenAutoencoder
    )


def _read(path: Path, kind: type[Any]) -> dict[str, Any]:
    """The configuration of a network of class `kind`; ValueError if it is of another."""
    configuration = read_json(path)
    if (name := configuration.get("_class_name")) != kind.__name__:
        raise ValueError(f"{path} describes a {one_line(name, 100)}: only a {kind.__name__} is counted")
    return {key: value for key, value in configuration.items() if not key.startswith("_")}
