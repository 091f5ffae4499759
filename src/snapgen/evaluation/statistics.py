"""Statistics of scores: 95 % intervals of shares (right pictures, votes) and means, and agreement between raters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt

import numpy as np

Z = 1.959964  # standard deviations: +-Z holds 95 % of a normal distribution


def wilson(right: float, count: float) -> tuple[float, float]:
    """The 95 % Wilson interval of the share `right` / `count`, count > 0; a tie may count half."""
    share = right / count
    spread = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    middle, scale = share + Z**2 / (2 * count), 1 + Z**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def effective_tally(groups: Iterable[Sequence[bool]]) -> tuple[float, float]:
    """The right and the total number of independent pictures that carry as much information as all of `groups`.

    Each group is the verdicts on one prompt's pictures, at least one. They are correlated, so the effective count (Korn
    & Graubard 1998) is the one whose binomial variance equals the variance between prompts. It lies between the number
    of prompts and the number of pictures. If all pictures are right, or none, their spread is unknown, and it is the
    number of prompts.
    """
    tallies = [(sum(group), len(group)) for group in groups]
    prompts, right, count = len(tallies), sum(one for one, _ in tallies), sum(size for _, size in tallies)
    share = right / count
    effective: float = prompts
    if 0 < right < count and prompts > 1:
        spread = sum((one - share * size) ** 2 for one, size in tallies) * prompts / (prompts - 1) / count**2
        effective = min(count, max(prompts, share * (1 - share) / spread)) if spread else count
    return share * effective, effective


def interval_of_mean(tallies: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The 95 % interval of the mean of several shares, each (right, count): Wilson half-widths add in quadrature.

    Unlike a bootstrap, it does not shrink to a point where all pictures of a category are right, or none (MOVER, method
    of variance estimates recovery: Zou & Donner 2008).
    """
    number = len(tallies)
    mean = sum(right / count for right, count in tallies) / number
    bounds = [(right / count, *wilson(right, count)) for right, count in tallies]
    below = sqrt(sum((share - low) ** 2 for share, low, _ in bounds)) / number
    above = sqrt(sum((high - share) ** 2 for share, _, high in bounds)) / number
    return max(0.0, mean - below), min(1.0, mean + above)


def interval_of_values(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % Student interval of the mean of independent `values`; None for fewer than two."""
    from scipy.stats import t

    number = len(values)
    if number < 2:
        return None
    mean = sum(values) / number
    error = sqrt(sum((value - mean) ** 2 for value in values) / (number - 1) / number)
    half = float(t.ppf(0.975, number - 1)) * error
    return mean - half, mean + half


def two_way_bootstrap(scores: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of raters x prompts `scores`, NaN where there is no vote.

    Raters and prompts are both resampled with replacement: a vote's weight is how often its rater was sampled times how
    often its prompt was (the pigeonhole bootstrap, Owen 2007).
    """
    generator = np.random.default_rng(seed)
    raters, prompts = scores.shape
    rater_weights = generator.multinomial(raters, np.full(raters, 1 / raters), draws)
    prompt_weights = generator.multinomial(prompts, np.full(prompts, 1 / prompts), draws)
    voted = np.isfinite(scores)
    totals = ((rater_weights @ np.nan_to_num(scores)) * prompt_weights).sum(1)
    counts = ((rater_weights @ voted) * prompt_weights).sum(1)
    low, high = np.quantile(totals[counts > 0] / counts[counts > 0], (0.025, 0.975))
    return float(low), float(high)


def cohen_kappa(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, float | None]:
    """How often two judges agree, and Cohen's kappa (chance 0, always 1), from at least one pair of verdicts.

    Kappa is None if both judges always give the same one verdict: chance would always agree too.
    """
    number = len(pairs)
    observed = sum(first == second for first, second in pairs) / number
    first, second = (sum(verdicts) / number for verdicts in zip(*pairs, strict=True))
    expected = first * second + (1 - first) * (1 - second)
    return observed, None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(scores: np.ndarray) -> tuple[float | None, float | None]:
    """How often two raters of a prompt agree, and Krippendorff's alpha for nominal data (chance 0, always 1).

    `scores`: raters x prompts, any numbers as categories, NaN where there is no vote. Both are None if no prompt has
    two votes; alpha is also None if all votes are the same. Krippendorff, "Computing Krippendorff's Alpha-Reliability"
    (2011).
    """
    voted = np.isfinite(scores)
    scores = scores[:, voted.sum(0) > 1]
    if not scores.size:
        return None, None
    categories = np.unique(scores[np.isfinite(scores)])
    counts = np.stack([(scores == category).sum(0) for category in categories]).astype(float)  # categories x prompts
    votes = counts.sum(0)
    pairs = (counts * (counts - 1)).sum(0)  # ordered pairs of raters that agree
    observed = float((pairs / (votes - 1)).sum() / votes.sum())
    totals, number = counts.sum(1), votes.sum()
    expected = float((totals * (totals - 1)).sum() / (number * (number - 1)))
    return observed, None if expected == 1 else 1 - (1 - observed) / (1 - expected)
