"""The files and statistics of a human study like Fig. 8: picture ids, the raters' votes, win rates and agreement.

Raters see two pictures of one prompt side by side and choose the left one, the right one or neither, once per question.
Pictures have opaque ids on the page; a separate file, the key, says which model generated which.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from snapgen.config import Settings
from snapgen.evaluation.statistics import krippendorff_alpha, two_way_bootstrap, wilson
from snapgen.files import JSON_LIMIT, read_whole
from snapgen.messages import between, markdown_table

PAGE, KEY = "study.html", "key.json"  # in a study's folder
QUESTIONS = {  # the three of Fig. 8
    "alignment": "Which picture follows the text better?",
    "aesthetics": "Which picture looks better?",
    "realism": "Which picture looks more real?",
}
MODELS = ("a", "b")
RATER = r"[A-Za-z0-9_-]{1,32}"  # part of the file's name; the page enforces the same

Model = Literal["a", "b"]


class DrawnBy(Settings):
    """The prompt and the model of a picture, in the key."""

    prompt: int  # index of the prompt
    model: Model


class Key(Settings):
    """Which model generated which picture of a study; voters must not see it."""

    study: str  # the study's id
    models: dict[Model, str]  # the models' names, as given on the command line
    prompts: tuple[str, ...]
    questions: tuple[str, ...]
    pictures: dict[str, DrawnBy]  # by picture id


class Vote(Settings):
    """An answer to one question about one pair of pictures."""

    question: str
    left: str  # the picture's id
    right: str
    choice: Literal["left", "right", "tie"]


class Votes(Settings):
    """The file that the page saves for a rater."""

    study: str
    rater: str = Field(pattern=f"^{RATER}$")
    votes: tuple[Vote, ...]


FileType = TypeVar("FileType", Key, Votes)


def read_json(file_type: type[FileType], path: Path) -> FileType:
    """The content of the JSON file `path`; ValueError naming the first mistake in it."""
    try:
        return file_type.model_validate_json(read_whole(path, JSON_LIMIT))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        kind = file_type.__name__.lower()
        raise ValueError(f"{path} is no {kind} file of a study: {place}: {first['msg'].lower()}") from None


def prompt_column(lines: Sequence[str]) -> list[str]:
    """The distinct prompts in the lines of a file: one prompt per line, or PartiPrompts' TSV with a column "Prompt"."""
    header = lines[0].split("\t") if lines else []
    if "Prompt" in header:
        column = header.index("Prompt")
        lines = [line.split("\t")[column].strip() for line in lines[1:]]
    return list(dict.fromkeys(lines))


def choose_prompts(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of `prompts`, sampled with `seed`, in their original order."""
    return [prompts[i] for i in sorted(Random(seed).sample(range(len(prompts)), count))]


def name_pictures(number: int, secret: str) -> dict[str, DrawnBy]:
    """Ids for the pictures of `number` prompts, sorted; without `secret`, neither id nor order reveals the model."""
    names = Random(secret).sample(range(16**8), 2 * number)
    drawn_by = [DrawnBy(prompt=i, model=model) for i in range(number) for model in ("a", "b")]
    return dict(sorted((f"{name:08x}", fact) for name, fact in zip(names, drawn_by, strict=True)))


def check_votes(key: Key, votes: Votes, origin: str) -> None:
    """Raise ValueError naming `origin` unless `votes` match the key's study and pairs, once per pair and question."""
    if votes.study != key.study:
        raise ValueError(f"{origin} is of another study: {votes.study}, the key is of {key.study}")
    seen = set()
    for vote in votes.votes:
        if vote.question not in key.questions:
            raise ValueError(f"{origin}: the study has no question '{vote.question}'")
        for picture in (vote.left, vote.right):
            if picture not in key.pictures:
                raise ValueError(f"{origin}: the study has no picture '{picture}'")
        left, right = key.pictures[vote.left], key.pictures[vote.right]
        if left.prompt != right.prompt or left.model == right.model:
            raise ValueError(f"{origin}: pictures {vote.left} and {vote.right} are not a pair of the study")
        if (vote.question, left.prompt) in seen:
            raise ValueError(f"{origin}: '{key.prompts[left.prompt]}' has two votes on {vote.question}")
        seen.add((vote.question, left.prompt))


def read_votes(key: Key, paths: Sequence[Path]) -> list[Votes]:
    """The votes in `paths`, one file per rater; ValueError naming the first that does not fit the key or the others."""
    files: dict[str, Path] = {}
    read = []
    for path in paths:
        votes = read_json(Votes, path)
        check_votes(key, votes, str(path))
        if votes.rater in files:
            raise ValueError(f"{path} and {files[votes.rater]} are both of the rater '{votes.rater}'")
        files[votes.rater] = path
        read.append(votes)
    return read


def score_of_a(key: Key, vote: Vote) -> float:
    """1 for a vote for model A, 0 for B, 0.5 for neither."""
    if vote.choice == "tie":
        return 0.5
    chosen = vote.left if vote.choice == "left" else vote.right
    return float(key.pictures[chosen].model == "a")


def merge(key: Key, raters: Sequence[Votes], question: str) -> np.ndarray:
    """Model A's scores, raters x prompts; NaN where there is no vote."""
    scores = np.full((len(raters), len(key.prompts)), np.nan)
    for row, votes in enumerate(raters):
        for vote in votes.votes:
            if vote.question == question:
                scores[row, key.pictures[vote.left].prompt] = score_of_a(key, vote)
    return scores


def tally(scores: np.ndarray) -> dict[str, Any]:
    """Counts, A's win rate (ties count half), its 95 % interval and the raters' agreement, from the scores of `merge`.

    With one rater, the interval is Wilson's. With several it is a bootstrap over raters and prompts, because votes of
    one rater, or on one prompt, are not independent. If all votes agree, the bootstrap would shrink to a point, so
    Wilson's over the prompts is used.
    """
    given = scores[np.isfinite(scores)]
    result: dict[str, Any] = {
        "votes": given.size,
        "expected": scores.size,
        "wins_a": int((given == 1).sum()),
        "wins_b": int((given == 0).sum()),
        "ties": int((given == 0.5).sum()),
    }
    if not given.size:
        return result | {"win_rate_a": None, "interval": None, "method": None, "agreement": None, "alpha": None}
    rate = float(given.mean())
    if len(scores) == 1 or np.ptp(given) == 0:
        prompts = int(np.isfinite(scores).any(axis=0).sum())
        interval, method = wilson(rate * prompts, prompts), "wilson"
    else:
        interval, method = two_way_bootstrap(scores), "bootstrap"
    agreement, alpha = krippendorff_alpha(scores)
    return result | {
        "win_rate_a": rate,
        "interval": list(interval),
        "method": method,
        "agreement": agreement,
        "alpha": alpha,
    }


def score(key: Key, raters: Sequence[Votes]) -> dict[str, Any]:
    """The study's result as plain values."""
    decided = [vote.choice for votes in raters for vote in votes.votes if vote.choice != "tie"]
    return {
        "study": key.study,
        "models": key.models,
        "prompts": len(key.prompts),
        "raters": [votes.rater for votes in raters],
        "questions": {question: tally(merge(key, raters, question)) for question in key.questions},
        "left": decided.count("left") / len(decided) if decided else None,  # far from one half: raters favour a side
    }


def table(result: dict[str, Any]) -> str:
    """The result of `score` as Markdown."""
    columns = ("question", "A wins", "ties", "B wins", "votes", "A's win rate", "95 % interval", "agreement", "alpha")
    rows = [
        (
            question,
            f"{row['wins_a']}",
            f"{row['ties']}",
            f"{row['wins_b']}",
            f"{row['votes']} of {row['expected']}",
            percent(row["win_rate_a"]),
            between(row["interval"], ".1%") or "-",
            percent(row["agreement"]),
            "-" if row["alpha"] is None else f"{row['alpha']:.2f}",
        )
        for question, row in result["questions"].items()
    ]
    lines = [
        f"# Study {result['study']}: {result['prompts']} prompts, votes of {', '.join(result['raters'])}",
        "",
        f"A is {result['models']['a']}, B is {result['models']['b']}.",
        "",
        *markdown_table(columns, rows),
        "",
        f"Ties count half. The left picture got {percent(result['left'])} of the votes that chose one.",
    ]
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """A share as a percentage; a dash if there is none."""
    return "-" if share is None else f"{share:.1%}"
