"""What the UNet reads of the prompts: the same at every step, so it is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from snapgen.models.denoiser import Denoiser
from snapgen.models.unet import SnapGenUNet, TextKeyValues
from snapgen.text.encoder import TextStates

# Keys and values of the text for every cross-attention (text states B N D for a teacher), and the mask B N.
ProjectedText = tuple[TextKeyValues | Tensor, Tensor]


@dataclass(frozen=True)
class Conditioning:
    """The text of B pictures, projected for `unet` when first asked for: a branch that is never used costs nothing."""

    unet: Denoiser
    text: TextStates  # B N D
    negative: TextStates  # B N D, what guidance leads away from

    @cached_property
    def positive(self) -> ProjectedText:
        """The text alone, for a batch of B: all that is needed without guidance."""
        return self._project(self.text)

    @cached_property
    def both(self) -> ProjectedText:
        """The negative text and then the text, for a batch of 2B."""
        return self._project(TextStates.cat([self.negative, self.text]))

    def _project(self, text: TextStates) -> ProjectedText:
        # A network is compiled for one number of tokens, and a teacher attends to padding too.
        if isinstance(self.unet, SnapGenUNet) and self.unet._compiled_call_impl is None:
            text = text.trimmed()
        return self.unet.text_key_values(text.states), text.mask
