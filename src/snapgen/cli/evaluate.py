"""`snapgen evaluate`: score a model. What can be refused is refused before torch is imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from snapgen.cli.generate import LARGEST_SEED, SIZES, check_range
from snapgen.cli.model import INDEX, check_model_name, load_autoencoder, load_pipeline
from snapgen.evaluation import SUITES, EvaluationSettings, check_options, check_subject, check_suites, load_suite
from snapgen.evaluation.folders import has_picture_suffix


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="'mini', a model folder, a hub name; fid: pictures, psnr: an autoencoder."
        ),
    ],
    suite: Annotated[str, typer.Option(metavar="NAME[,NAME]", help="What to measure: " + ", ".join(SUITES) + ".")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for pictures and reports; default runs/evaluation/MODEL. Continues there."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    count: Annotated[int | None, typer.Option(help="scenes: prompts a category; fid, psnr: pictures.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N[,N]", help="A picture a prompt and seed; the suite's own if not given.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps from noise to picture; the model's own if not given.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strictly to follow the prompt; the model's own if not given.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures in px; the model's own if not given.")] = None,
    nouns: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="scenes, fid: of these things only; all if not given.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What to draw: a prompt a line, or the benchmark's own file.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="PATH", help="fid: pictures or statistics (.npz); psnr: pictures.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="PATH|NAME", help="Of the network that judges; the suite's own if not given.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="fid: inception, mini-encoder, or a CLIP.")
    ] = None,
) -> None:
    """Score MODEL by benchmarks; prints the tables, or with --json the numbers."""
    names = [name.strip() for name in suite.split(",")]
    check_suites(names)
    given = {"count": count, "nouns": nouns, "prompts": prompts} | {
        "reference": reference,
        "weights": weights,
        "features": features,
    }
    check_options(names, [option for option, value in given.items() if value is not None])
    check_range("--count", count, 2, 100_000)
    check_range("--steps", steps, 1, 1000)
    check_range("--guidance", guidance, 0, 100)
    if size is not None and size not in SIZES:
        raise ValueError(f"--size {size} cannot be drawn: a multiple of {SIZES.step} from {SIZES[0]} to {SIZES[-1]}")
    for option, path in (("--prompts", prompts), ("--reference", reference)):
        if path is not None and not path.exists():
            raise ValueError(f"{option} {path} does not exist")
    chosen = EvaluationSettings(
        count, parse_seeds(seeds), steps, guidance, size, parse_nouns(nouns), prompts, reference, weights, features
    )
    kind = subject_kind(model)
    check_subject(names, kind)
    folder = out or Path("runs") / "evaluation" / Path(model).resolve().name
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} exists and is not a folder")

    suites = {name: load_suite(name) for name in names}
    subject = {"model": load_pipeline, "autoencoder": load_autoencoder, "pictures": Path}[kind](model)
    reports = {name: run(subject, chosen, folder / name, show_progress) for name, run in suites.items()}
    if as_json:
        typer.echo(json.dumps(next(iter(reports.values())) if len(reports) == 1 else reports, ensure_ascii=False))
    else:
        for name in reports:
            typer.echo((folder / name / "report.md").read_text(encoding="utf-8"), nl=False)


def subject_kind(model: str) -> str:
    """What `model` names: a "model", an "autoencoder" (a folder with its config.json) or "pictures" (a folder)."""
    folder = Path(model)
    if folder.is_dir() and not (folder / INDEX).is_file():
        if (folder / "config.json").is_file():
            return "autoencoder"
        if any(has_picture_suffix(file) for file in folder.iterdir()):
            return "pictures"
    check_model_name(model)
    return "model"


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """The seeds of "0,1,2"; ValueError unless all are different whole numbers that a generator takes."""
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


def parse_nouns(text: str | None) -> tuple[str, ...] | None:
    """The nouns of "cat,ice cream"; ValueError unless there are two or more, all in the vocabulary."""
    from snapgen.data.vocabulary import NOUN

    if text is None:
        return None
    nouns = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [noun for noun in nouns if noun not in NOUN]:
        raise ValueError(f"--nouns: '{unknown[0]}' is not in the vocabulary: {', '.join(NOUN)}")
    if len(nouns) < 2:
        raise ValueError(f"--nouns {text}: at least two different ones are needed")
    return nouns


def show_progress(message: str) -> None:
    """`message` on standard error, if somebody watches."""
    if sys.stderr.isatty():
        typer.echo(message, err=True)
