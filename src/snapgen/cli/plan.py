"""`snapgen plan`: estimate what a recipe will cost on given GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapgen.cli.options import check_installed
from snapgen.messages import markdown_table

if TYPE_CHECKING:
    from snapgen.profiling.plan import Plan


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe of an autoencoder, flow, distill or step stage, a YAML file.")],
    gpus: Annotated[int, typer.Option(min=1, max=100_000, help="How many GPUs.")] = 1,
    gpu: Annotated[str, typer.Option(help="Their kind: a100, h100, h200, b200, l40s, rtx4090.")] = "h100",
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the GPU's dense bf16 rate that training reaches.")
    ] = 0.4,
    teacher: Annotated[
        str | None, typer.Option(help="Preset that stands for the recipe's teacher; by default, its name decides.")
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(min=1, help="Pictures in the latent cache, if the recipe does not say.")
    ] = None,
    shard: Annotated[bool, typer.Option("--shard", help="Memory under FSDP2 instead of DDP.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Print the samples, MACs, GPU-hours, memory per GPU and storage that RECIPE will take."""
    check_installed(("accelerate",), "planning needs", "train")

    from snapgen.models.presets import TEACHERS, UNETS
    from snapgen.profiling.plan import GPUS
    from snapgen.profiling.plan import plan as make_plan
    from snapgen.train.stages import load_recipe

    if gpu not in GPUS:
        raise ValueError(f"--gpu {gpu} is not known: use {', '.join(GPUS)}")
    if teacher not in (None, *TEACHERS, *UNETS):
        raise ValueError(f"--teacher {teacher} is not known: use {', '.join(TEACHERS)}, or a UNet's preset")
    made = make_plan(load_recipe(recipe, set_ or []), gpus, gpu, utilisation, teacher, shard, pictures)
    typer.echo(json.dumps(made.model_dump()) if as_json else table(made))


def table(made: Plan) -> str:
    """The plan as Markdown."""
    from snapgen.profiling.plan import duration, human

    fits = "fits" if made.fits else "does not fit"
    rows = [
        ("parameters trained", f"{made.parameters / 1e6:.1f} M"),
        ("steps", f"{made.steps:,}"),
        ("samples", f"{made.samples:,}"),
        ("MACs a sample, forward", f"{made.macs_per_sample / 1e9:.2f} G"),
        *((f"FLOPs of the run: {part}", f"{size:.3g}") for part, size in made.flops.items()),
        ("FLOPs of the run", f"{made.training_flops:.3g}"),
        (f"GPU-hours at {made.utilisation:.0%} of {made.gpu}'s bf16 rate", f"{made.gpu_hours:.2f}"),
        (f"time on {made.gpus} x {made.gpu}", duration(made.days)),
        *((f"memory a GPU: {part}", human(size)) for part, size in made.memory.items() if size),
        ("memory a GPU", f"{human(made.memory_total)} of {human(made.memory_of_gpu)}: {fits}"),
        *((f"storage: {part}", human(size)) for part, size in made.storage.items() if size),
        *(("not counted", part) for part in made.uncounted),
    ]
    return "\n".join(markdown_table(("", ""), rows))
