"""What only distillation needs: the projector between the student's features and the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

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
    """A UNet and the projector that is trained with it and then thrown away."""

    def __init__(self, unet: SnapGenUNet, teacher_channels: int):
        super().__init__()
        self.unet = unet
        self.projector = Projector(unet.config.block_out_channels[0], teacher_channels)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        grid: tuple[int, int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity B C H W, and the last layer's features projected onto the teacher's `grid`, B C' h w."""
        velocity, features = self.unet(
            sample, timestep, encoder_hidden_states, encoder_attention_mask, return_features=True
        )
        # The coarser grid of the two: averaging loses nothing that the teacher's tokens could hold.
        return velocity, self.projector(F.adaptive_avg_pool2d(features, grid))
