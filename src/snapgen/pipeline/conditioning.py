"""The text conditioning of the UNet, computed once because it is the same at every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from snapgen.models.denoiser import Denoiser, pooled_width
from snapgen.models.unet import SnapGenUNet, TextKeyValues
from snapgen.text.encoder import TextStates

# Arguments of the network: the text's keys and values for every cross-attention (for a teacher: text states B N D), the
# mask B N, and for a UNet that reads it the pooled vector B P.
ProjectedText = dict[str, TextKeyValues | Tensor]


@dataclass(frozen=True)
class Conditioning:
    """The text of B pictures, projected for `unet` on first use: an unused branch costs nothing."""

    unet: Denoiser
    text: TextStates  # B N D
    negative: TextStates | None  # B N D, what guidance steers away from; None without guidance

    @cached_property
    def positive(self) -> ProjectedText:
        """The text alone, for a batch of B: enough without guidance."""
        return self._project(self.text)

    @cached_property
    def both(self) -> ProjectedText:
        """The negative text, then the text, for a batch of 2B."""
        assert self.negative is not None
        return self._project(TextStates.cat([self.negative, self.text]))

    def _project(self, text: TextStates) -> ProjectedText:
        # Keep the padding if the network is compiled, for a fixed number of tokens, or a teacher, which attends to it.
        compiled = any(module._compiled_call_impl is not None for module in self.unet.modules())
        if isinstance(self.unet, SnapGenUNet) and not compiled:
            text = text.trimmed()
        projected: ProjectedText = {
            "encoder_hidden_states": self.unet.text_key_values(text.states),
            "encoder_attention_mask": text.mask,
        }
        if pooled_width(self.unet) is not None and text.pooled is not None:
            projected["pooled_projections"] = text.pooled
        return projected
