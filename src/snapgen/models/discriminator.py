"""The discriminator that judges pictures while a decoder is trained (Sec. 3.2)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from snapgen.models.ranges import Widths, within_ranges


class PatchDiscriminator(nn.Sequential):
    """A PatchGAN (Isola et al. 2017): pictures B 3 H W -> logits B 1 H/8 W/8, one for each patch of 54 px.

    It uses group norm, not batch norm: a step of few patches has poor statistics.
    """

    @within_ranges
    def __init__(self, channels: Widths = (64, 128, 256, 512)):
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index, (width, following) in enumerate(pairwise(channels)):
            stride = 2 if index < len(channels) - 2 else 1
            layers += [
                nn.Conv2d(width, following, 3 + (stride == 2), stride=stride, padding=1),
                nn.GroupNorm(8, following),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """pictures: B 3 H W in [-1, 1], sides divisible by 8."""
        logits: torch.Tensor = super().forward(pictures)
        return logits
