"""Shows and records a training run: progress on standard error, metrics.jsonl, TensorBoard, curves and samples."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from snapgen.config import TrainSettings
from snapgen.files import atomic_file, naming, parse_json
from snapgen.messages import QUIET_SECONDS, counted
from snapgen.pictures import save_png

Item = TypeVar("Item")
PANELS = 3  # of the losses by noise level, side by side


class Display:
    """Progress on standard error: bars on a terminal, plain lines elsewhere, nothing when not `enabled`."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        console = Console(stderr=True)
        self.bars: Progress | None = None
        if enabled and console.is_terminal:
            # One display for everything: rich allows only one at a time.
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self.bars.start()

    def line(self, text: str) -> None:
        """Prints one line, above the bars if there are any."""
        if self.bars is not None:
            self.bars.console.print(text, markup=False, highlight=False)
        elif self.enabled:
            print(text, file=sys.stderr, flush=True)

    def track(self, items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        """Yields `items`, showing how many of `total` are done, the rate and the time left."""
        if self.bars is None:
            yield from counted(items, self.line, description, total)
            return
        started, task = time.monotonic(), self.bars.add_task(description, total=total, detail="")
        try:
            for done, item in enumerate(items, start=1):
                yield item
                rate = done / max(time.monotonic() - started, 1e-9)
                self.bars.update(task, completed=done, detail=f"{rate:.1f}/s")
        finally:
            self.bars.remove_task(task)

    def close(self) -> None:
        """Removes the bars."""
        if self.bars is not None:
            self.bars.stop()


class Report:
    """The record of a run, kept by the first process."""

    def __init__(self, run: Path, settings: TrainSettings, start: int, display: Display) -> None:
        """`start`: steps already done; whatever an earlier attempt recorded after them is dropped."""
        self.run, self.settings, self.display = run, settings, display
        self.metrics = run / "metrics.jsonl"
        with atomic_file(self.metrics) as temporary:
            kept = [line for line in read_metrics(self.metrics) if line["step"] <= start]
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.metrics.open("a", buffering=1)  # a line reaches the disk as it is written
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
        self.seconds = math.nan  # per step, smoothed
        self.shown = time.monotonic()  # when the last line was printed
        self.task = None
        if display.bars is not None:
            self.task = display.bars.add_task("train", total=settings.steps, completed=start, detail="")

    def step(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Records the finished step number `step`, which took `seconds`."""
        # JSON has no NaN: values that are not finite become null.
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with naming(self.metrics):
            self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.seconds = seconds if math.isnan(self.seconds) else 0.95 * self.seconds + 0.05 * seconds
        rate = self.settings.batch_size / self.seconds
        due = step % self.settings.log_every == 0 or step == self.settings.steps
        if self.display.bars is not None and self.task is not None:
            detail = f"loss {metrics['loss']:.4g}  {rate:.1f} samples/s"
            self.display.bars.update(self.task, completed=step, detail=detail)
        elif due or time.monotonic() - self.shown >= QUIET_SECONDS:
            self.shown = time.monotonic()
            left = timedelta(seconds=round((self.settings.steps - step) * self.seconds))
            loss = f"loss {metrics['loss']:.4g}"
            self.display.line(f"step {step}/{self.settings.steps}  {loss}  {rate:.1f} samples/s  {left} left")
        if due:
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, step)

    def samples(self, step: int, image: Image.Image | None) -> None:
        """Writes the sample grid of `step`, if the stage made one."""
        if image is None:
            return
        save_png(image, self.run / "samples" / f"step_{step:08d}.png")
        self.writer.add_image("samples", numpy.asarray(image.convert("RGB")), step, dataformats="HWC")

    def timesteps(self, step: int, losses: Mapping[str, list[float]]) -> None:
        """Adds a line to timesteps.jsonl and plots all lines as in Fig. 6; does nothing if there are no losses."""
        if not losses:
            return
        path = self.run / "timesteps.jsonl"
        lines = [line for line in read_metrics(path) if line["step"] < step] + [{"step": step, **losses}]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with atomic_file(self.run / "plots" / "timesteps.png") as temporary:
            plot_timesteps(lines).savefig(temporary, dpi=120)

    def plot(self) -> None:
        """Plots the curves again from metrics.jsonl."""
        lines = read_metrics(self.metrics)
        if lines:
            with atomic_file(self.run / "plots" / "loss.png") as temporary:
                plot_metrics(lines).savefig(temporary, dpi=120)

    def close(self) -> None:
        """Closes the files."""
        self.file.close()
        self.writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, none if it does not exist; a last line that a kill cut off is skipped.

    Whatever follows a damaged line is skipped with it.
    """
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            line = parse_json(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines


def plot_metrics(lines: list[dict[str, Any]]) -> Figure:
    """Curves over the steps: loss (raw and smoothed), learning rate and gradient norm, and evaluations if any."""
    panels: dict[str, list[str]] = {}  # by the part before the last "/"
    for key in sorted({key for line in lines for key in line if key.startswith("eval/")}):
        panels.setdefault(key.rpartition("/")[0].replace("/ideal", "/rise"), []).append(key)
    figure = Figure(figsize=(8, 4 * (2 + len(panels))), layout="constrained")
    axes = figure.subplots(2 + len(panels), 1, sharex=True)
    steps = [line["step"] for line in lines]

    losses = _finite(lines, "loss")
    axes[0].plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes[0].plot(steps, smooth(losses, window=max(1, len(losses) // 50)), color="tab:blue", label="loss, smoothed")
    if numpy.nanmin(losses) > 0 and numpy.nanmax(losses) > 10 * numpy.nanmin(losses):
        axes[0].set_yscale("log")

    norms = _finite(lines, "grad_norm")
    axes[1].plot(steps, norms, color="tab:orange", linewidth=0.8, label="grad_norm")
    if numpy.nanmin(norms) > 0:
        axes[1].set_yscale("log")
    rate = axes[1].twinx()
    rate.plot(steps, [line["learning_rate"] for line in lines], color="tab:green", label="learning_rate")
    rate.set_ylim(bottom=0)
    rate.legend(loc="upper right")

    for axis, keys in zip(axes[2:], panels.values(), strict=True):
        colors: dict[str, str] = {}  # by the part after it: an ideal has the colour of its measure
        for key in keys:
            color = colors.setdefault(key.rpartition("/")[2], f"C{len(colors)}")
            style = "--" if "/ideal/" in key else "o-"
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            axis.plot([step for step, _ in points], [value for _, value in points], style, c=color, ms=3, label=key)
    for axis in axes:
        axis.legend(loc="upper left")
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    return figure


def plot_timesteps(lines: list[dict[str, Any]]) -> Figure:
    """Losses by noise level as in Fig. 6, one panel per loss: the latest curve is strong, earlier ones fade."""
    names = [name for name in lines[-1] if name not in ("step", "sigma")]
    rows, columns = -(-len(names) // PANELS), min(len(names), PANELS)
    figure = Figure(figsize=(6 * columns, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.remove()
    for axes, name in zip(panels, names, strict=False):
        for age, line in enumerate(reversed(lines)):
            strength = 1.0 if age == 0 else max(0.1, 0.5 - 0.05 * age)
            label = f"step {line['step']}" if age in (0, len(lines) - 1) else None
            axes.plot(line["sigma"], line[name], "o-", markersize=2, color="tab:blue", alpha=strength, label=label)
        axes.set(xlabel="sigma", ylabel=name)
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def _finite(lines: list[dict[str, Any]], key: str) -> list[float]:
    """The values of `key`; NaN where the value was not finite."""
    return [math.nan if line[key] is None else line[key] for line in lines]


def smooth(values: list[float], window: int) -> list[float]:
    """Exponential moving average over about `window` values, corrected for its start at 0.

    A NaN is ignored: the average stays as it was.
    """
    keep, average, weight, result = 1 - 1 / window, 0.0, 0.0, []
    for value in values:
        if not math.isnan(value):
            average = keep * average + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        result.append(average / weight if weight else math.nan)
    return result
