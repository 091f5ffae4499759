"""Reader: answers questions from the token states of a text encoder as a UNet reads them, by one attention.

What it can answer, the states say in a form that one cross-attention finds. Trained together with the encoder it makes
the states say it; trained on frozen states it measures whether they do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


class Reader(nn.Module):
    """A query for every kind and subject of question, one attention over the states, one linear layer a kind."""

    def __init__(self, width: int, subjects: int, answers: Mapping[str, int], heads: int = 4):
        """
        Args:
            width: of the text states, D.
            subjects: number of things that questions can be about.
            answers: number of possible answers of each kind of question.
            heads: of the attention.
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
        """Logits of the answers, Q A for each kind.

        Args:
            states: text states B N D, each token of unit RMS.
            mask: B N, True where a token may be attended.
            questions: for each kind its Q questions: the element of the batch that each is about, and its subject.
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
    """`states` ... D with every token scaled to a root mean square of 1, as `TransformersTextEncoder` gives them."""
    return F.rms_norm(states.float(), states.shape[-1:])


def right_answers(logits: Tensor, truth: Tensor) -> Tensor:
    """Which of Q questions are answered right, bool Q.

    `truth`: the number of the right answer, Q; or Q A, 1 for each of several right answers, all of which must be given.
    """
    if truth.ndim == 1:
        return logits.argmax(dim=1) == truth
    return ((logits > 0) == truth.bool()).all(dim=1)


def answer_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean negative log-likelihood of the right answers, a scalar; of several, summed over all that might be given."""
    if truth.ndim == 1:
        return F.cross_entropy(logits.float(), truth)
    return F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none").sum(dim=1).mean()
