"""The text conditioning of the UNet, computed once because it is the same at every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from snapgen.models.denoiser import Denoiser
from snapgen.models.unet import SnapGenUNet, TextKeyValues
from snapgen.text.encoder import TextStates

# The text's keys and values for every cross-attention (for a teacher: text states B N D), and the mask B N.
ProjectedText = tuple[TextKeyValues | Tensor, Tensor]


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
        if isinstance(self.unet, SnapGenUNet) and self.unet._compiled_call_impl is None:
            text = text.trimmed()
        return self.unet.text_key_values(text.states), text.mask
