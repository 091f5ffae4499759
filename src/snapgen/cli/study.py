"""`snapgen study`: let people compare two models blindly. Bad options are rejected before torch is imported."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from snapgen.cli.options import LARGEST_SEED, check_range
from snapgen.cli.outputs import check_folder
from snapgen.cli.progress import continuable, show_message
from snapgen.files import read_prompts
from snapgen.pipeline.load import check_model_name, load_pipeline

app = typer.Typer(help="Let people compare two models blindly.", no_args_is_help=True)

MODEL = "'mini', 'mini-base', a model folder, or a hub name (owner/name)."


@app.callback()
def study() -> None:
    """Let people compare two models blindly (the paper's Fig. 8)."""


@app.command()
def make(
    model_a: Annotated[str, typer.Argument(metavar="MODEL_A", help=MODEL)],
    model_b: Annotated[str, typer.Argument(metavar="MODEL_B", help=MODEL)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for page, key, pictures. Continues if it exists.")],
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One prompt per line, or PartiPrompts.tsv; by default 24 that fit 'mini'."),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Prompts to sample from the file; all if not given.")] = None,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="alignment, aesthetics, realism; by default all three with --prompts, else the first two.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the pictures, their ids and the choice of prompts.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Steps from noise to picture; the models' own if not given.")
    ] = None,
) -> None:
    """Generate pictures with two models and write a page to vote on; prints the page's and the key's file names."""
    from snapgen.study.votes import KEY, PAGE, choose_prompts, prompt_column

    shipped = Path(str(files("snapgen.study").joinpath("study_prompts.txt")))
    texts = prompt_column(read_prompts(prompts or shipped))
    if not texts:
        raise ValueError(f"{prompts} holds no prompts")
    check_range("--count", count, 1, len(texts))
    check_range("--steps", steps, 1, 1000)
    check_range("--seed", seed, 0, LARGEST_SEED - len(texts))
    asked = parse_questions(questions or ("alignment,aesthetics,realism" if prompts else "alignment,aesthetics"))
    check_model_name(model_a)
    check_model_name(model_b)
    check_folder("--out", out)
    if count is not None:
        texts = choose_prompts(texts, count, seed)

    from snapgen.study.page import make_study

    with continuable(out, "the same command"):
        make_study((model_a, model_b), load_pipeline, texts, asked, seed, steps, out, show_message)
    typer.echo(out / PAGE)
    typer.echo(out / KEY)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `study make` wrote.")],
    votes: Annotated[list[Path], typer.Argument(metavar="VOTES...", help="Files that the raters saved.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Merge all raters' votes; prints wins, ties and win rates with 95 % intervals."""
    from snapgen.study.votes import KEY, Key, read_json, read_votes, table
    from snapgen.study.votes import score as score_votes

    key = read_json(Key, folder / KEY)
    result = score_votes(key, read_votes(key, votes))
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else table(result))


def parse_questions(text: str) -> list[str]:
    """The questions in text such as "alignment,realism"; ValueError unless all are known and different."""
    from snapgen.study.votes import QUESTIONS

    questions = [part.strip() for part in text.split(",")]
    for question in questions:
        if question not in QUESTIONS:
            raise ValueError(f"--questions: there is no '{question}': use {', '.join(QUESTIONS)}")
    if len(set(questions)) < len(questions):
        raise ValueError(f"--questions {text} names one twice")
    return questions
