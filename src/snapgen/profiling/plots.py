"""Plots the costs of the paper's ladder of architectures, after Fig. 3."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

PANELS = (("parameters", 1e6, "parameters, M"), ("macs_128", 1e9, "MACs at 128x128, G"), ("median_s", 1, "s a step"))


def plot_ladder(rungs: list[dict[str, Any]], title: str) -> Figure:
    """Labelled bars of every rung's parameters, MACs and, where measured, latency."""
    flat = [rung | rung.get("latency", {}) for rung in rungs]
    panels = [panel for panel in PANELS if panel[0] in flat[0]]
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    names = [f"({rung['name']})" for rung in flat]
    for axes, (key, unit, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        bars = axes.bar(names, [rung[key] / unit for rung in flat], color="tab:blue")
        axes.bar_label(bars, fmt=lambda value: f"{value:.0f}" if value >= 100 else f"{value:.3g}", fontsize=7)
        axes.set_title(label, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=9)
    return figure
