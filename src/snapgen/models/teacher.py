"""The teacher: diffusers' SD3 transformer, called like `SnapGenUNet` and with feature taps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from pydantic import Field

from snapgen.models.ranges import Count, Side, Width, within_ranges

Layer = Annotated[int, Field(ge=0, le=63)]  # its number


class TeacherTransformer(SD3Transformer2DModel, ModelMixin):  # diffusers looks for ModelMixin in this very module
    """Stable Diffusion 3's MMDiT (Esser et al. 2024): SD3.5-Large, or a small one trained here.

    Configuration and weights are those of `SD3Transformer2DModel`: `from_pretrained` reads its folders. Only the call
    is that of `SnapGenUNet`, so that stages, pipeline and evaluation accept either. It too predicts `eps - x_0`.
    """

    @within_ranges
    def __init__(
        self,
        sample_size: Side = 128,
        patch_size: Count = 2,
        in_channels: Width = 16,
        num_layers: Count = 18,
        attention_head_dim: Width = 64,
        num_attention_heads: Count = 18,
        joint_attention_dim: Width = 4096,
        caption_projection_dim: Width = 1152,
        pooled_projection_dim: Width = 2048,
        out_channels: Width = 16,
        pos_embed_max_size: Side = 96,
        dual_attention_layers: Annotated[
            tuple[Annotated[int, Field(ge=0, le=64)], ...], Field(max_length=64, strict=False)
        ] = (),
        qk_norm: Literal["rms_norm"] | None = None,
    ):
        """Its arguments are the configuration, with the ranges in which it is defined here."""
        super().__init__(
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            num_layers=num_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            caption_projection_dim=caption_projection_dim,
            pooled_projection_dim=pooled_projection_dim,
            out_channels=out_channels,
            pos_embed_max_size=pos_embed_max_size,
            dual_attention_layers=dual_attention_layers,
            qk_norm=qk_norm,
        )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
        pooled_projections: torch.Tensor | None = None,
        taps: tuple[int, ...] | None = None,
    ) -> Any:
        """One evaluation of the velocity.

        Args:
            sample: noisy latent x_t, B C H W; height and width divisible by the patch size.
            timestep: 1000 * sigma, in [0, 1000]; a number or a tensor of shape () or (B,).
            encoder_hidden_states: text states, B M D.
            encoder_attention_mask: B M; SD3 attends to all tokens, so masked ones are set to zero.
            return_dict: False returns a plain tuple.
            pooled_projections: B D'; by default the mean of the visible tokens.
            taps: indices of the blocks whose image tokens are returned too, as maps B D'' H/patch W/patch; -1 is the
                last. The result is then a tuple of the velocity and the list of maps.
        """
        batch, _, height, width = sample.shape
        timestep = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(batch)
        visible = torch.ones_like(encoder_hidden_states[..., 0])
        if encoder_attention_mask is not None:
            visible = encoder_attention_mask.to(visible.dtype)
        states = encoder_hidden_states * visible[..., None]
        if pooled_projections is None:
            pooled_projections = states.sum(dim=1) / visible.sum(dim=1, keepdim=True)

        rows, columns = height // self.config.patch_size, width // self.config.patch_size
        features: dict[int, torch.Tensor] = {}

        def keep(tap: int) -> Any:
            def hook(block: Any, given: Any, output: tuple[torch.Tensor | None, torch.Tensor]) -> None:
                features[tap] = output[1].transpose(1, 2).unflatten(2, (rows, columns))  # B N D -> B D h w

            return self.transformer_blocks[tap].register_forward_hook(hook)

        hooks = [keep(tap) for tap in taps or ()]
        try:
            velocity = super().forward(sample, states, pooled_projections, timestep, return_dict=False)[0]
        finally:
            for hook in hooks:
                hook.remove()
        if taps is not None:
            return velocity, [features[tap] for tap in taps]
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def text_key_values(self, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """The states themselves: text tokens change from block to block, so nothing can be projected in advance."""
        return encoder_hidden_states
