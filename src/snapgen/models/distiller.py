"""Networks that only distillation needs: the projector from student to teacher features, the discriminator's heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from pydantic import Field
from torch import Tensor, nn

from snapgen.models.ranges import Width, within_ranges
from snapgen.models.unet import SnapGenUNet


class Projector(nn.Sequential):
    """`psi` of Eq. 5: two convolutions from the student's width to the teacher's."""

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__(
            nn.Conv2d(student_channels, teacher_channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1),
        )


class DistilledStudent(nn.Module):
    """A UNet with what is kept beside it in training and discarded afterwards.

    That is the projector, which is trained too, and `scaling`, whose buffers weight the losses (Eq. 7).
    """

    def __init__(self, unet: SnapGenUNet, teacher_channels: int, scaling: nn.Module | None = None):
        super().__init__()
        self.unet = unet
        self.projector = Projector(unet.config.block_out_channels[0], teacher_channels)
        self.scaling = scaling

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        pooled_projections: torch.Tensor | None = None,
        grid: tuple[int, int] = (1, 1),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity B C H W, and the last layer's features projected onto the teacher's `grid`, B C' h w."""
        velocity, (features,) = self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            encoder_attention_mask,
            pooled_projections=pooled_projections,
            taps=(-1,),
        )
        # The teacher's grid is the coarser one in our recipes: averaging loses nothing that its tokens could contain.
        return velocity, self.projector(F.adaptive_avg_pool2d(features, grid))


class DiscriminatorHead(nn.Module):
    """Judges every position of one feature map, given the noise level: two linear layers (Sec. 3.4)."""

    def __init__(self, channels: int, hidden: int, time_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)  # feature scales differ with depth
        self.linear_in = nn.Linear(channels, hidden)
        self.time = nn.Linear(time_dim, hidden)
        self.linear_out = nn.Linear(hidden, 1)

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """features: B C h w; time: B T. Returns logits B h*w."""
        tokens = self.norm(features.flatten(2).transpose(1, 2))  # B N C
        hidden = F.silu(self.linear_in(tokens) + self.time(time)[:, None])
        return self.linear_out(hidden).squeeze(-1)


class Discriminator(nn.Module):
    """`D` of Eq. 9 without its frozen backbone: one head for each of the teacher's feature maps."""

    @within_ranges
    def __init__(
        self,
        channels: Annotated[Sequence[Width], Field(max_length=1024)],
        hidden: Width = 256,
        time_dim: Width = 256,
    ):
        super().__init__()
        self.time_proj = Timesteps(time_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(time_dim, time_dim)
        self.heads = nn.ModuleList([DiscriminatorHead(width, hidden, time_dim) for width in channels])

    def forward(self, features: Sequence[Tensor], timestep: Tensor) -> Tensor:
        """features: one map B C h w per head; timestep: B in [0, 1000].

        Returns the logits of all heads and positions, B N: high for what looks like data.
        """
        time = F.silu(self.time_embedding(self.time_proj(timestep)))
        logits = [head(features, time) for head, features in zip(self.heads, features, strict=True)]
        return torch.cat(logits, dim=1)
