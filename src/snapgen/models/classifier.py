"""SceneClassifier: a small convolutional network that predicts what is where in a picture, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from pydantic import Field
from torch import nn

from snapgen.models.ranges import Count, Width, within_ranges

LIST = Field(strict=False)  # JSON has lists, not tuples
NAMES = Field(min_length=1, max_length=1000, strict=False)

CELL = 16  # px along each side: four convolutions of stride 2


@dataclass(frozen=True)
class Reading:
    """What a batch of pictures shows, for N nouns in L looks: expected values, summed over all cells."""

    counts: torch.Tensor  # B N L: number of things of each noun in each look
    centres: torch.Tensor  # B N 2: x and y of each noun's mean centre, fractions of the side


class ResidualConv(nn.Module):
    """x + conv3x3(SiLU(GroupNorm(x))), B C H W."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(F.silu(self.norm(x)))


class SceneClassifier(ModelMixin, ConfigMixin):
    """Predicts for every cell of 16 px whether the centre of a thing lies in it, which noun it is, and in which look.

    There are no boxes and no search: the probabilities are summed over the picture. This counts a thing once even if
    its centre lies between cells, and a doubtful thing as a fraction.
    """

    @register_to_config
    @within_ranges
    def __init__(
        self,
        nouns: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000, strict=False)],
        looks: Annotated[tuple[str | None, ...], Field(min_length=1, max_length=1000, strict=False)],
        channels: Annotated[tuple[Width, Width, Width, Width], Field(strict=False)] = (
            24,
            48,
            80,
            128,
        ),  # after each halving
        blocks: Count = 3,  # at the cells' resolution: each sees 32 px further
        norm_num_groups: Width = 8,
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, stride=2, padding=1)]
        for width, following in pairwise(channels):
            layers += [nn.GroupNorm(norm_num_groups, width), nn.SiLU()]
            layers.append(nn.Conv2d(width, following, 3, stride=2, padding=1))
        layers += [ResidualConv(channels[-1], norm_num_groups) for _ in range(blocks)]
        self.features = nn.Sequential(*layers, nn.GroupNorm(norm_num_groups, channels[-1]), nn.SiLU())
        self.noun = nn.Conv2d(channels[-1], len(nouns) + 1, 1)  # the last class: no centre here
        self.look = nn.Conv2d(channels[-1], len(looks), 1)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits B N+1 h w of the nouns and "none", and B L h w of the looks, which matter only where a noun is.

        pictures: B 3 H W in [-1, 1], sides divisible by 16; h, w = H/16, W/16.
        """
        features = self.features(pictures)
        return self.noun(features), self.look(features)

    @torch.no_grad()
    def read(self, pictures: torch.Tensor) -> Reading:
        """What `pictures` (as in `forward`) show."""
        nouns, looks = self(pictures)
        noun = nouns.float().softmax(dim=1)[:, :-1]
        look = looks.float().softmax(dim=1)
        counts = torch.einsum("bnyx,blyx->bnl", noun, look)
        height, width = noun.shape[-2:]
        mass = noun.sum(dim=(2, 3)).clamp(min=1e-6)
        x = (noun.sum(dim=2) @ _middles(width, noun)) / mass
        y = (noun.sum(dim=3) @ _middles(height, noun)) / mass
        return Reading(counts, torch.stack([x, y], dim=-1))


def _middles(cells: int, like: torch.Tensor) -> torch.Tensor:
    """The centres of the cells along an axis, fractions of the side."""
    return (torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) / cells
