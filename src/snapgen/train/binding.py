"""Binding: measures how much the loss rises when one detail of a caption is made wrong, for each kind of detail.

If a network does not know which noun is on the left, swapping the two does not raise its loss. The loss alone hides
this, and a score shows it only once pictures are sharp. This measure shows it after minutes. It looks at high noise,
where the layout is decided.

There we know what an ideal network would do: at pure noise it predicts the mean of all pictures that the caption
describes. A wrong caption therefore raises its loss by the squared distance between the two captions' mean pictures,
divided by sigma squared, since `v = (x_t - x_0) / sigma`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snapgen.data.source import Contrast

SIGMAS = (0.85, 0.93, 0.98)
ALIKE = 4  # further pictures for each of the two captions, to compute the ideal

Conditions = dict[str, Tensor]  # a batch of the `flow` stage


@dataclass(frozen=True)
class BindingTest:
    """Pictures at each of `SIGMAS`, with right and with wrong captions."""

    kinds: list[str]  # one for each of the K contrasts
    right: Conditions  # 3 K samples, grouped by noise level
    wrong: Conditions
    ideal: dict[str, float]  # by kind: how much an ideal network's loss rises


def make_binding_test(
    contrasts: Sequence[Contrast],
    encode: Callable[[list], Tensor],
    conditioned: Callable[[Tensor, Tensor, Tensor, list[str]], Conditions],
) -> BindingTest:
    """Makes the test from `contrasts`.

    Args:
        encode: turns pictures, uint8 H W 3 each, into normalised latents B C h w.
        conditioned: turns latents, noise, sigmas and captions into the batch that `measure_binding`'s `losses` takes.
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
    # Differences between pictures that are alike except for the wrong detail, shaped K alike (C h w). The mean product
    # of two different differences is the squared distance between the means, without a bias from their spread.
    differences = (
        encode([picture for contrast in contrasts for picture in contrast.like_right])
        - encode([picture for contrast in contrasts for picture in contrast.like_wrong])
    ).reshape(len(contrasts), -1, latents[0].numel())
    alike = differences.shape[1]
    products = differences.sum(dim=1).square() - differences.square().sum(dim=1)
    rises = products.mean(dim=1) / (alike * (alike - 1)) * torch.tensor(SIGMAS).pow(-2).mean()
    return BindingTest(kinds, right, wrong, _by_kind(kinds, rises.cpu()))


def _by_kind(kinds: Sequence[str], values: Tensor) -> dict[str, float]:
    """The mean of `values` for each kind; `kinds` names the kind of each value."""
    return {
        kind: values[torch.tensor([other == kind for other in kinds])].mean().item() for kind in dict.fromkeys(kinds)
    }


def measure_binding(losses: Callable[[Conditions], Tensor], test: BindingTest) -> dict[str, float]:
    """Measures by kind: `binding/<kind>`, the share of pictures whose loss rises (chance: 0.5); `rise/<kind>`, by how
    much it rises; and `ideal/<kind>`, by how much an ideal network's loss would.

    losses: gives the loss of each sample of a batch, shape B.
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
