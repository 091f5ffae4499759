"""Reader: answers questions about a text encoder's token states with one cross-attention, as a UNet reads them.

What it can answer, the states express in a form that one cross-attention can find. Trained together with the encoder,
it teaches the states to express it; trained on frozen states, it measures whether they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from snapgen.models.ranges import Count, Width, within_ranges


class Reader(nn.Module):
    """A query per kind and subject of question, one attention over the states, and one linear layer per kind."""

    @within_ranges
    def __init__(
        self,
        width: Width,
        subjects: Width,
        answers: Annotated[Mapping[str, Width], Field(max_length=64)],
        heads: Count = 4,
    ):
        """
        Args:
            width: width of the text states, D.
            subjects: number of things that questions can be about.
            answers: number of possible answers for each kind of question.
            heads: number of attention heads.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} of the text states is not divisible by {heads} heads")
        self.heads = heads
        self.subject = nn.Embedding(subjects, width)
        self.kind = nn.Embedding(len(answers), width)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.answer = nn.ModuleDict({kind: nn.Linear(width, count) for kind, count in answers.items()})

    def forward(
        self, states: Tensor, mask: Tensor, questions: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """The logits of the answers, Q A for each kind.

        Args:
            states: text states B N D, each token of unit RMS.
            mask: B N, True where a token may be attended.
            questions: the Q questions of each kind: the batch element that each is about, and its subject.
        """
        keys, values = self.to_kv(states).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        logits = {}
        for number, kind in enumerate(self.answer):
            if kind not in questions:
                continue
            samples, subjects = questions[kind]
            query = self.subject(subjects) + self.kind.weight[number]  # Q D
            query = query.unflatten(-1, (self.heads, 1, -1)).to(keys.dtype)  # Q heads 1 head_dim
            seen = F.scaled_dot_product_attention(
                query, keys[samples], values[samples], attn_mask=mask[samples, None, None, :].bool()
            )
            logits[kind] = self.answer[kind](seen.flatten(1))
        return logits


def unit_rms(states: Tensor) -> Tensor:
    """`states` ... D with every token scaled to a root mean square of 1, as `TransformersTextEncoder` returns them."""
    return F.rms_norm(states.float(), states.shape[-1:])


def right_answers(logits: Tensor, truth: Tensor) -> Tensor:
    """Which of Q questions are answered correctly, bool Q.

    `truth`: the index of the right answer, Q; or Q A with 1 for each of several right answers, which must all be given.
    """
    if truth.ndim == 1:
        return logits.argmax(dim=1) == truth
    return ((logits > 0) == truth.bool()).all(dim=1)


def answer_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean negative log-likelihood of the right answers, a scalar; for several, summed over all possible answers."""
    if truth.ndim == 1:
        return F.cross_entropy(logits.float(), truth)
    return F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none").sum(dim=1).mean()
