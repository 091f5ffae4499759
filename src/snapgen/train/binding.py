"""Binding: how much the loss rises when a caption is made wrong in one point, by the kind of point.

A network that does not know which noun is on the left loses nothing when the two are swapped. The loss alone hides it,
a score shows it only once pictures are sharp; this shows it after minutes. It looks at high noise, where it is decided
what stands where.

What an ideal network would lose is known there: at pure noise it predicts the mean of all pictures that the caption
describes. So the loss rises by the squared distance between the means of both captions' pictures, over sigma squared,
since `v = (x_t - x_0) / sigma`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snapgen.data.source import Contrast

SIGMAS = (0.85, 0.93, 0.98)
ALIKE = 4  # other pictures of either caption, for the ideal

Conditions = dict[str, Tensor]  # a batch of the stage `flow`


@dataclass(frozen=True)
class BindingTest:
    """Pictures at each of `SIGMAS`, under right captions and under wrong ones."""

    kinds: list[str]  # of the K contrasts
    right: Conditions  # of 3 K samples, those of one noise level together
    wrong: Conditions
    ideal: dict[str, float]  # by kind, the rise of an ideal network's loss


def make_binding_test(
    contrasts: Sequence[Contrast],
    encode: Callable[[list], Tensor],
    conditioned: Callable[[Tensor, Tensor, Tensor, list[str]], Conditions],
) -> BindingTest:
    """The test of `contrasts`.

    Args:
        encode: pictures, uint8 H W 3 each, to normalised latents B C h w.
        conditioned: from latents, noise, sigmas and captions, the batch that `measure_binding`'s `losses` takes.
    """
    latents = encode([contrast.picture for contrast in contrasts])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator).repeat(len(SIGMAS), 1, 1, 1)
    sigmas = torch.tensor(SIGMAS).repeat_interleave(len(contrasts))
    stacked = latents.repeat(len(SIGMAS), 1, 1, 1)
    right, wrong = (
        conditioned(stacked, noise, sigmas, [*captions] * len(SIGMAS))
        for captions in ([contrast.right for contrast in contrasts], [contrast.wrong for contrast in contrasts])
    )
    kinds = [contrast.kind for contrast in contrasts]
    # Differences of pictures alike but for the wrong point, K alike C h w. The mean of products of different ones is
    # the squared distance between the means, without a bias by their spread.
    differences = (
        encode([picture for contrast in contrasts for picture in contrast.like_right])
        - encode([picture for contrast in contrasts for picture in contrast.like_wrong])
    ).reshape(len(contrasts), -1, latents[0].numel())
    alike = differences.shape[1]
    products = differences.sum(dim=1).square() - differences.square().sum(dim=1)
    rises = products.mean(dim=1) / (alike * (alike - 1)) * torch.tensor(SIGMAS).pow(-2).mean()
    return BindingTest(kinds, right, wrong, _by_kind(kinds, rises.cpu()))


def _by_kind(kinds: Sequence[str], values: Tensor) -> dict[str, float]:
    """The mean of `values`, one for each of `kinds`, by kind."""
    return {
        kind: values[torch.tensor([other == kind for other in kinds])].mean().item() for kind in dict.fromkeys(kinds)
    }


def measure_binding(losses: Callable[[Conditions], Tensor], test: BindingTest) -> dict[str, float]:
    """By kind: `binding/<kind>`, the share of pictures whose loss rises (chance: 0.5), `rise/<kind>`, by how much, and
    `ideal/<kind>`, by how much an ideal network's would.

    losses: of each sample of a batch, shape B.
    """
    rises = (losses(test.wrong) - losses(test.right)).float().cpu().reshape(len(SIGMAS), -1).mean(dim=0)
    measures: dict[str, float] = {}
    for name, values in (
        ("binding", _by_kind(test.kinds, (rises > 0).float())),
        ("rise", _by_kind(test.kinds, rises)),
        ("ideal", test.ideal),
    ):
        measures |= {f"{name}/{kind}": value for kind, value in values.items()}
    return measures
