"""The adversarial losses of step distillation (Sec. 3.4, Eq. 9): from logits of any shape to scalar means.

Eq. 9 is the original game of `log D` and `log(1 - D)`. A confident discriminator leaves its generator without a
gradient, so nobody trains it as written; the two usual forms are here. Logits are high for what looks like data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim and Ye 2017), as in LADD: logits beyond the margin of 1 cost nothing."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """The generator's side of `hinge`."""
    return -fake.mean()


def logistic(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's side of Eq. 9: `-log D(x) - log(1 - D(x'))`, D the sigmoid of the logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating(fake: Tensor) -> Tensor:
    """`-log D(x')` (Goodfellow et al. 2014): the same fixed point as Eq. 9, but a gradient even when D is confident."""
    return F.softplus(-fake).mean()


# name -> the discriminator's loss (real and generated logits), the generator's loss (generated logits)
GAMES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (hinge, hinge_generator),
    "non-saturating": (logistic, non_saturating),
}


def smoothness(logits: Tensor, perturbed: Tensor) -> Tensor:
    """`(D(x) - D(x + noise))^2` for real x: R1 by finite differences (Lin et al. 2025).

    R1 itself would need second derivatives through the frozen teacher.
    """
    return (logits - perturbed).square().mean()
