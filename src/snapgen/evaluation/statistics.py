"""Intervals of scores: of shares, where they count right pictures, and of means of values."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

Z = 1.959964  # standard deviations that hold 95 % of a normal distribution


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of the share `right` / `count`, count > 0."""
    share = right / count
    spread = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    middle, scale = share + Z**2 / (2 * count), 1 + Z**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def interval_of_mean(tallies: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The 95 % interval of the mean of several shares, each (right, count): their Wilson half-widths add in squares.

    Unlike a bootstrap it is not empty where every picture of a category is right, or none (MOVER, method of variance
    estimates recovery: Zou & Donner 2008).
    """
    number = len(tallies)
    mean = sum(right / count for right, count in tallies) / number
    bounds = [(right / count, *wilson(right, count)) for right, count in tallies]
    below = sqrt(sum((share - low) ** 2 for share, low, _ in bounds)) / number
    above = sqrt(sum((high - share) ** 2 for share, _, high in bounds)) / number
    return max(0.0, mean - below), min(1.0, mean + above)


def interval_of_values(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % Student interval of the mean of independent `values`; None of fewer than two."""
    from scipy.stats import t

    number = len(values)
    if number < 2:
        return None
    mean = sum(values) / number
    error = sqrt(sum((value - mean) ** 2 for value in values) / (number - 1) / number)
    half = float(t.ppf(0.975, number - 1)) * error
    return mean - half, mean + half
