"""The adversarial losses of step distillation (Sec. 3.4, Eq. 9), of logits of any shape; all are scalar means.

Eq. 9 writes the original game of `log D` and `log(1 - D)`. Its generator gets no gradient from a discriminator that is
sure, so nobody trains it as written; the two usual forms are here. Logits are high for what looks like data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim and Ye 2017), as LADD trains: what is judged right by 1 counts no more."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """The generator's side of `hinge`."""
    return -fake.mean()


def logistic(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's side of Eq. 9: `-log D(x) - log(1 - D(x'))`, D the sigmoid of the logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating(fake: Tensor) -> Tensor:
    """`-log D(x')` (Goodfellow et al. 2014): the same fixed point as Eq. 9, and a gradient when D is sure."""
    return F.softplus(-fake).mean()


# name -> the discriminator's loss of real and generated logits, the generator's of generated ones
GAMES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (hinge, hinge_generator),
    "non-saturating": (logistic, non_saturating),
}


def smoothness(logits: Tensor, perturbed: Tensor) -> Tensor:
    """`(D(x) - D(x + noise))^2` of real x: R1 by finite differences (Lin et al. 2025).

    R1 itself would need second derivatives through the frozen teacher.
    """
    return (logits - perturbed).square().mean()
