"""The plots in evaluation reports: bars of scores by category, and a histogram of the pictures' scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure


def plot_bars(
    label: str,
    values: Mapping[str, float],
    intervals: Mapping[str, Sequence[float] | None],
    marks: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """A bar for each of `values`, with its interval (low, high) where there is one.

    `marks`: further values for the same bars, such as a ceiling, by their name in the legend.
    """
    figure = Figure(figsize=(max(4.0, 1.1 * len(values) + 1), 3.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(values))
    axes.bar(places, list(values.values()), width=0.6, color="tab:blue")
    for place, (name, value) in zip(places, values.items(), strict=True):
        if (interval := intervals.get(name)) is not None:
            spread = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
            axes.errorbar(place, value, yerr=spread, color="black", capsize=4)
    for style, (name, others) in zip(("^", "v", "s"), (marks or {}).items(), strict=False):
        axes.plot(places, [others[key] for key in values], style, color="tab:orange", markersize=6, label=name)
    axes.set_xticks(places, [name.replace("_", " ") for name in values], fontsize=8)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    if marks:
        figure.legend(loc="outside lower center", ncols=len(marks), fontsize=8, frameon=False)
    return figure


def plot_spread(label: str, values: Sequence[float], mean: float) -> Figure:
    """The histogram of `values`, one per picture, and their mean."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=min(40, max(5, len(values) // 5)), color="tab:blue")
    axes.axvline(mean, color="tab:orange", label=f"mean {mean:.4g}")
    axes.set(xlabel=label, ylabel="pictures")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
