"""How fast the training loop is, and what it adds to the network's own time.

    python benchmarks/throughput.py [--cases mini,t2i-256,t2i-1024] [--steps 20] [--batch N] [--out benchmarks/results]

Of each case, in turns in one process, the medians of: a step of the loop (`train_step` and its record) on a batch that
is there already; the bare step of the same network on the same batch (forward, backward, AdamW); a large bf16 matrix
product, whose rate is what the model's FLOPs are held against; and, where the case has data, the making of a batch.
Steps that write samples or checkpoints are skipped. Latents and text states are random unless the case has data.
Writes throughput_<device>.json and .md.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from shared import machine_facts, make_parser, page, write_results
from torch import Tensor, nn

from snapgen.config import RecipeError, TrainSettings, parse_recipe, read_recipe
from snapgen.machine.counting import count
from snapgen.messages import markdown_table
from snapgen.models.presets import create_unet
from snapgen.train.distribution import distribute, make_accelerator
from snapgen.train.guard import Guard
from snapgen.train.loop import prepare_network, train_step
from snapgen.train.optimizer import make_optimizer
from snapgen.train.report import Display, Report
from snapgen.train.stage import Context, Stage, derive_seed
from snapgen.train.stages.flow import FlowRecipe, FlowStage
from snapgen.train.state import TrainState, make_ema

ROOT = Path(__file__).parent.parent
WARMUP = 2  # turns that do not count; the first one compiles
MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the product


@dataclass(frozen=True)
class Case:
    """A network and how it is trained."""

    preset: str
    pixels: int
    batch: int
    tokens: int  # of text
    precision: str = "bf16"
    compile: bool = False
    recipe: str | None = None  # whose data is made, with the bundled autoencoder and text encoder


CASES = {
    "debug": Case("debug", 32, 8, 16, "fp32"),  # to try this script
    "mini": Case("mini", 128, 32, 16, recipe="recipes/mini/flow.yaml"),
    "t2i-256": Case("t2i", 256, 64, 377, compile=True),
    "t2i-1024": Case("t2i", 1024, 8, 377, compile=True),
}
DEFAULTS = {"cpu": "mini", "cuda": "mini,t2i-256,t2i-1024"}


class SyntheticStage(FlowStage):
    """The flow stage's loss on one random batch."""

    def __init__(self, recipe: FlowRecipe, context: Context, case: Case):
        Stage.__init__(self, recipe, context)
        torch.manual_seed(recipe.seed)
        unet = create_unet(case.preset)
        self.model = unet.to(context.device, memory_format=torch.channels_last)
        side = case.pixels // 8
        latents = torch.randn(2, case.batch, unet.config.in_channels, side, side, device=context.device)
        x0, noise = (tensor.contiguous(memory_format=torch.channels_last) for tensor in latents)
        self.kept = {
            "x0": x0,
            "noise": noise,
            "sigmas": torch.rand(case.batch, device=context.device),
            "states": torch.randn(case.batch, case.tokens, unet.config.cross_attention_dim, device=context.device),
            "mask": torch.ones(case.batch, case.tokens, dtype=torch.bool, device=context.device),
        }

    def batch(self, step: int) -> dict[str, Tensor]:
        """Always the same."""
        return self.kept

    def sample_grid(self, model: nn.Module) -> Image.Image:
        """Not asked for here."""
        raise NotImplementedError


def make_recipe(case: Case, cache: Path, **overrides: Any) -> FlowRecipe:
    """The flow recipe of `case`, its data few pictures of the miniature's."""
    train: dict[str, Any] = {"steps": 1000, "batch_size": case.batch, "learning_rate": 1e-4}
    train |= {"precision": case.precision, "compile": case.compile}
    mapping = {"stage": "flow", "model": case.preset, "data": {"source": "scenes", "resolution": 32, "count": 64}}
    if case.recipe is not None:
        mapping = read_recipe(ROOT / case.recipe, [f"data.count={2 * case.batch}"]).settings
    places = {"autoencoder": "mini", "text": "mini", "cache": str(cache)}
    return parse_recipe(FlowRecipe, mapping | places | {"train": train} | overrides, "benchmark")


def rotate(actions: dict[str, Callable[[], object]], turns: int, device: torch.device) -> dict[str, float]:
    """The median seconds of each of `actions`, which are taken in turns: what disturbs the machine disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(WARMUP + turns):
        for name, action in actions.items():
            synchronize(device)
            started = time.perf_counter()
            action()
            synchronize(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken[WARMUP:]) for name, taken in times.items()}


def synchronize(device: torch.device) -> None:
    """Waits for what was asked of the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_case(case: Case, turns: int) -> dict[str, Any]:
    """The times of `case` and what follows from them."""
    with tempfile.TemporaryDirectory() as folder, closing(Display(enabled=False)) as display:
        run = Path(folder)
        recipe = make_recipe(case, run / "cache")
        settings: TrainSettings = recipe.train
        accelerator = make_accelerator(settings)
        context = Context(accelerator.device, 0, 1, run, display.track)
        stage = SyntheticStage(recipe, context, case)
        prepare_network(stage.model, settings)
        optimizer, bare_optimizer = make_optimizer(stage.model, settings), make_optimizer(stage.model, settings)
        model = distribute(accelerator, stage.model, optimizer)
        state = TrainState(stage.model, optimizer, make_ema(stage.model, settings), Guard(settings))
        done = 0

        def loop_step() -> None:
            nonlocal done
            torch.manual_seed(derive_seed(recipe.seed, done, 0))
            metrics, _, objection = train_step(accelerator, stage, model, state, done, set())
            done += 1
            report.step(done, metrics, 1.0)
            if objection is not None:
                raise ValueError(f"the loop left a step out: {objection}; its time would not count")

        def bare_step() -> None:
            bare_optimizer.zero_grad(set_to_none=True)
            stage.loss(model, stage.kept)["loss"].backward()
            bare_optimizer.step()

        side = MATRIX[context.device.type]
        left, right = torch.randn(2, side, side, device=context.device, dtype=torch.bfloat16)
        actions: dict[str, Callable[[], object]] = {
            "loop": loop_step,
            "bare": bare_step,
            "matrix": lambda: left @ right,
        }
        if case.recipe is not None:
            source = FlowStage(recipe, context)
            numbers = iter(range(10**9))
            actions["data"] = lambda: source.batch(next(numbers))
        with closing(Report(run, settings, 0, display)) as report:
            times = rotate(actions, turns, context.device)
        kept = {name: tensor.to("meta") for name, tensor in stage.kept.items()}
        with torch.device("meta"):
            counted = create_unet(case.preset)
        macs = count(counted, lambda: counted(kept["x0"], kept["sigmas"], kept["states"], kept["mask"])).macs
    matrix_flops = 2 * side**3 / times["matrix"]
    model_flops = 2 * 3 * macs  # of a batch: the backward pass is worth two
    return {
        "preset": case.preset,
        "pixels": case.pixels,
        "batch": case.batch,
        "precision": case.precision,
        "compile": case.compile,
        "turns": turns,
        "loop_s": times["loop"],
        "bare_s": times["bare"],
        "overhead": times["loop"] / times["bare"] - 1,
        "data_s": times.get("data"),
        "samples_per_second": case.batch / (times["loop"] + times.get("data", 0.0)),
        "macs_per_sample": macs // case.batch,
        "matrix_flops": matrix_flops,
        "utilisation": model_flops / times["loop"] / matrix_flops,
    }


def largest(case: Case, turns: int) -> dict[str, Any]:
    """`measure_case` at the case's batch, or half of it and so on until it fits in the GPU's memory."""
    while True:
        try:
            return measure_case(case, turns)
        except torch.OutOfMemoryError:
            if case.batch == 1:
                raise RecipeError(f"{case.preset} at {case.pixels} px does not fit in this GPU's memory") from None
            case = replace(case, batch=case.batch // 2)
        torch.cuda.empty_cache()


def main() -> None:
    """Measure the cases; write and print the results."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = make_parser(__doc__)
    parser.add_argument("--cases", default=DEFAULTS[device], help=f"of {', '.join(CASES)}, separated by commas")
    parser.add_argument("--steps", type=int, default=20, help=f"turns that count, after {WARMUP} that do not")
    parser.add_argument("--batch", type=int, help="samples a step, instead of each case's own number")
    options = parser.parse_args()
    results = []
    for name in options.cases.split(","):
        case = replace(CASES[name], batch=options.batch or CASES[name].batch)
        results.append({"name": name} | largest(case, options.steps))
        print("  ".join(row(results[-1])), file=sys.stderr, flush=True)
    report = machine_facts(device, "accelerate") | {"results": results}
    write_results(options.out / f"throughput_{device}", report, table(report))


def row(result: dict[str, Any]) -> list[str]:
    """The cells of one case in `table`."""
    return [
        result["name"],
        f"{result['pixels']}",
        f"{result['batch']}",
        result["precision"] + (", compiled" if result["compile"] else ""),
        f"{1000 * result['loop_s']:.1f} ms",
        f"{1000 * result['bare_s']:.1f} ms",
        f"{result['overhead']:+.1%}",
        "" if result["data_s"] is None else f"{1000 * result['data_s']:.1f} ms",
        f"{result['samples_per_second']:.1f}",
        f"{result['macs_per_sample'] / 1e9:.2f} G",
        f"{result['utilisation']:.1%} of {result['matrix_flops'] / 1e12:.2f} TFLOP/s",
    ]


def table(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    steps = ("loop step", "bare step", "loop adds", "data", "samples/s")
    columns = ("case", "pixels", "batch", "precision", *steps, "MACs", "of the measured bf16 matrix rate")
    heading = f"{report['device']}, {report['threads']} CPU threads, torch {report['versions']['torch']}"
    return page(__file__, heading, markdown_table(columns, map(row, report["results"])))


if __name__ == "__main__":
    main()
