"""`snapgen evaluate`: score a model by benchmarks. Bad options are rejected before torch is imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from snapgen.cli.options import LARGEST_SEED, SIZES, check_range, parse_interval, parse_nouns
from snapgen.cli.outputs import check_folder
from snapgen.cli.progress import continuable, show_message
from snapgen.evaluation import (
    SUITES,
    EvaluationSettings,
    check_options,
    check_subject,
    check_suites,
    load_suite,
    required_prompts,
)
from snapgen.pipeline.load import INDEX, check_model_name, load_autoencoder, load_pipeline


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="'mini', 'mini-base', a model folder or a hub name; fid also: pictures, psnr also: an autoencoder.",
        ),
    ],
    suite: Annotated[str, typer.Option(metavar="NAME[,NAME]", help="What to measure: " + ", ".join(SUITES) + ".")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for pictures and reports; default runs/evaluation/MODEL. Continues if it exists.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    count: Annotated[int | None, typer.Option(help="scenes: prompts per category; fid, psnr: pictures.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N[,N]", help="One picture per prompt and seed; by default the suite's own.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps from noise to picture; the model's own if not given.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strictly to follow the prompt; the model's own if not given.")
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Lowest and highest noise level, from 0 to 1, at which guidance is on."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures in px; the model's own if not given.")] = None,
    nouns: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="scenes, fid: only these things; all if not given.")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="[SUITE=]FILE", help="What to generate: one prompt per line, or the benchmark's file."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="[SUITE=]PATH", help="fid: pictures or statistics (.npz); psnr: pictures."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="[SUITE=]PATH", help="Weights of the judging network: a path or hub name."),
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="fid: inception, scene-classifier, mini-encoder, or a CLIP.")
    ] = None,
) -> None:
    """Score MODEL by benchmarks; prints tables, or with --json numbers.

    --prompts, --reference and --weights may be given several times, once for each suite: --weights clip=PATH.
    """
    names = [name.strip() for name in suite.split(",")]
    check_suites(names)
    files = {"prompts": prompts or [], "reference": reference or [], "weights": weights or []}
    given: dict[str, object] = {**files, "count": count, "nouns": nouns, "features": features}
    given |= {"seeds": seeds, "steps": steps, "guidance": guidance, "guidance-interval": guidance_interval}
    check_options(names, [option for option, value in given.items() if value not in (None, [])])
    check_range("--count", count, 2, 100_000)
    check_range("--steps", steps, 1, 1000)
    check_range("--guidance", guidance, 0, 100)
    if size is not None and size not in SIZES:
        raise ValueError(f"--size {size} cannot be used: a multiple of {SIZES.step} from {SIZES[0]} to {SIZES[-1]}")
    every = EvaluationSettings(
        count=count,
        seeds=parse_seeds(seeds),
        steps=steps,
        guidance=guidance,
        guidance_interval=None if guidance_interval is None else parse_interval(guidance_interval),
        size=size,
        nouns=parse_nouns(nouns),
        features=features,
    )
    own = {option: by_suite(option, values, names) for option, values in files.items()}
    chosen = {
        name: replace(
            every,
            prompts=existing_path("prompts", own["prompts"].get(name)),
            reference=existing_path("reference", own["reference"].get(name)),
            weights=own["weights"].get(name),
        )
        for name in names
    }
    for name, settings in chosen.items():
        if SUITES[name].needs:
            required_prompts(name, settings)
    kind = subject_kind(model, names)
    check_subject(names, kind)
    folder = out or Path("runs") / "evaluation" / Path(model).resolve().name
    check_folder("--out", folder)

    suites = {name: load_suite(name) for name in names}
    loaders: dict[str, Callable[[str], Any]]
    loaders = {"model": load_pipeline, "autoencoder": load_autoencoder, "pictures": Path}
    subject = loaders[kind](model)
    reports = {}
    for name, run in suites.items():
        with continuable(folder / name, "the same command"):
            reports[name] = run(subject, chosen[name], folder / name, show_message)
        if not as_json:
            typer.echo((folder / name / "report.md").read_text(encoding="utf-8"), nl=False)
    if as_json:
        typer.echo(json.dumps(next(iter(reports.values())) if len(reports) == 1 else reports, ensure_ascii=False))


def subject_kind(model: str, names: list[str]) -> str:
    """The kind of `model`: a "model", an "autoencoder" (a folder with its config.json) or "pictures" (a folder)."""
    folder = Path(model)
    if folder.is_dir() and not (folder / INDEX).is_file():
        if (folder / "config.json").is_file():
            return "autoencoder"
        if all("pictures" in SUITES[name].subjects for name in names):
            return "pictures"
    check_model_name(model)
    return "model"


def by_suite(option: str, values: list[str], names: list[str]) -> dict[str, str]:
    """The value of `option` for each suite in `names`: "VALUE" is for all that take it, "SUITE=VALUE" for one."""
    takers = [name for name in names if option in SUITES[name].takes]
    shared: dict[str, str] = {}
    own: dict[str, str] = {}
    for value in values:
        suite, named, rest = value.partition("=")
        if not named or suite not in SUITES:
            shared = dict.fromkeys(takers, value)
        elif suite in takers:
            own[suite] = rest
        else:
            raise ValueError(f"--{option} {value}: {suite} is not among the suites here that take it")
    return shared | own


def existing_path(option: str, value: str | None) -> Path | None:
    """`value` as a path, or None if it is None; ValueError if the path does not exist."""
    if value is not None and not Path(value).exists():
        raise ValueError(f"--{option} {value} does not exist")
    return None if value is None else Path(value)


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """The seeds in text such as "0,1,2"; ValueError unless all are different whole numbers that a generator takes."""
    if text is None:
        return None
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds {text} is not of the form N,N,... for example 0,1,2") from None
    for seed in seeds:
        check_range("--seeds", seed, 0, LARGEST_SEED)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {text} names a seed twice")
    return seeds
