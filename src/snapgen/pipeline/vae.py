"""Autoencoders at the pipelines' boundary: this package's, or diffusers' `AutoencoderKL` and `AutoencoderTiny`.

They all say in their configuration how the latents of diffusion become theirs: `z / scaling_factor + shift_factor`.
"""

from __future__ import annotations

import warnings
from math import isclose
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from snapgen.models.autoencoder import SnapGenAutoencoder

Autoencoder = SnapGenAutoencoder | AutoencoderKL | AutoencoderTiny
SCALE_FACTOR = 8  # pixels per latent position where there is no autoencoder to ask: SD3's, and those of all presets


def scale_factor(vae: Any) -> int:
    """Pixels per latent position along each side; `SCALE_FACTOR` without an autoencoder."""
    if vae is None:
        return SCALE_FACTOR
    return vae.spatial_factor if hasattr(vae, "spatial_factor") else 2 ** (len(vae.config.block_out_channels) - 1)


def normalization(vae: Any) -> tuple[float, float]:
    """The scaling and shift of `vae`; diffusers' autoencoders may have none."""
    return vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0


def check_vae(vae: Any, unet: Any, previous: Any) -> None:
    """Raise ValueError unless `vae` can be for the latents of `unet`, and of the autoencoder that it replaces.

    `unet` and `previous` may be None. Whether the weights match cannot be seen; what the configurations say can.
    Another scale of the latents is only a warning: the latents themselves may have it.
    """
    kind = type(vae).__name__
    if not {"latent_channels", "scaling_factor"} <= set(getattr(vae, "config", ())):
        raise ValueError(f"vae is a {kind}, expected a SnapGenAutoencoder, AutoencoderKL or AutoencoderTiny")
    if vae.config.get("latents_mean") is not None or vae.config.get("latents_std") is not None:
        raise ValueError(f"vae ({kind}) normalises each channel by itself, expected one scaling_factor for all")
    channels = vae.config.latent_channels
    if unet is not None and channels != unet.config.in_channels:
        raise ValueError(f"vae ({kind}) has {channels} latent channels, the unet {unet.config.in_channels}")
    if previous is None:
        return
    if scale_factor(vae) != scale_factor(previous):
        factors = f"{scale_factor(vae)} pixels per latent position, the vae that it replaces {scale_factor(previous)}"
        raise ValueError(f"vae ({kind}) has {factors}")
    # A tiny autoencoder takes the latents of diffusion as they are, and so replaces any.
    if isinstance(vae, AutoencoderTiny) or isinstance(previous, AutoencoderTiny):
        return
    ours, theirs = normalization(vae), normalization(previous)
    if not all(isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in zip(ours, theirs, strict=True)):
        numbers = f"{ours[0]:g} and {ours[1]:g}, the vae that it replaces {theirs[0]:g} and {theirs[1]:g}"
        message = f"vae ({kind}) has scaling_factor and shift_factor {numbers}: it seems to be for other latents"
        warnings.warn(message, stacklevel=3)


def decode(vae: Any, latents: Tensor, together: int) -> Tensor:
    """Pictures B 3 H W in about [-1, 1], fp32, of the latents of diffusion; `together` are computed at once."""
    scaling, shift = normalization(vae)
    z = (latents / scaling + shift).to(vae.dtype)
    return torch.cat([vae.decode(part, return_dict=False)[0] for part in z.split(together)]).float()


def encode(vae: Any, pictures: Tensor, together: int) -> Tensor:
    """The latents of diffusion, fp32, of pictures B 3 H W in [-1, 1]: the most probable ones, without noise.

    Contiguous, like the pictures given to `vae`, because the order in memory decides how sums are rounded.
    """
    scaling, shift = normalization(vae)
    pictures = pictures.to(vae.dtype).contiguous()
    found = [vae.encode(part, return_dict=False)[0] for part in pictures.split(together)]
    z = torch.cat([part if isinstance(part, Tensor) else part.mode() for part in found])
    return ((z.float() - shift) * scaling).contiguous()
