"""The human study's arithmetic against cases that were worked out by hand, and what it refuses."""

import json
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snapgen.cli.main import run
from snapgen.evaluation.statistics import krippendorff_alpha, two_way_bootstrap, wilson
from snapgen.study import votes as study
from snapgen.study.votes import Key, Vote, Votes
from snapgen.world.source import SceneSettings, SceneSource

NONE = np.nan


def make_key(prompts: int = 4) -> Key:
    """A study whose picture of prompt 2 by model B is called "b2"."""
    drawn_by = {f"{model}{i}": {"prompt": i, "model": model} for i in range(prompts) for model in "ab"}
    return Key.model_validate_json(
        json.dumps(
            {
                "study": "s1",
                "models": {"a": "small", "b": "large"},
                "prompts": [f"prompt {i}" for i in range(prompts)],
                "questions": ["alignment", "aesthetics"],
                "pictures": drawn_by,
            }
        )
    )


def vote(left: str, right: str, choice: Any, question: str = "alignment") -> Vote:
    return Vote(question=question, left=left, right=right, choice=choice)


def votes(*given: Vote, rater: str = "anna", of: str = "s1") -> Votes:
    return Votes(study=of, rater=rater, votes=given)


def write(folder: Path, *files: Votes, key: Key | None = None) -> list[str]:
    """The arguments of `study score` for `files`."""
    (folder / "key.json").write_text((key or make_key()).model_dump_json())
    paths = [folder / f"votes-{number}.json" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_text(content.model_dump_json())
    return ["study", "score", str(folder), *map(str, paths)]


def test_merging_follows_the_key_whatever_the_side() -> None:
    anna = votes(vote("a0", "b0", "left"), vote("b1", "a1", "left"), vote("b2", "a2", "right"), vote("a3", "b3", "tie"))
    ben = votes(vote("b0", "a0", "left"), vote("a1", "b1", "tie", "aesthetics"), rater="ben")
    key = make_key()
    np.testing.assert_array_equal(study.merge(key, [anna, ben], "alignment"), [[1, 0, 1, 0.5], [0, NONE, NONE, NONE]])
    np.testing.assert_array_equal(study.merge(key, [anna, ben], "aesthetics"), [[NONE] * 4, [NONE, 0.5, NONE, NONE]])
    result = study.score(key, [anna, ben])
    assert result["raters"] == ["anna", "ben"]
    assert result["left"] == 3 / 4  # of the four votes that chose a side


def test_ties_count_half_and_one_rater_has_wilsons_interval() -> None:
    scores = np.array([[1.0] * 10 + [0.0] * 5 + [0.5] * 10])  # 10 + 5 of 25
    row = study.tally(scores)
    assert (row["wins_a"], row["ties"], row["wins_b"], row["votes"], row["expected"]) == (10, 10, 5, 25, 25)
    assert row["win_rate_a"] == pytest.approx(0.6)
    assert row["method"] == "wilson"
    assert row["interval"] == pytest.approx(wilson(15, 25))
    assert (row["agreement"], row["alpha"]) == (None, None)


def test_wilson_solves_its_own_equation() -> None:
    for right, count in ((15, 25), (7.5, 12), (1, 400)):
        for bound in wilson(right, count):
            assert (bound - right / count) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / count)
    assert wilson(0, 10)[0] == 0
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe (1998), table I, method 3
    assert wilson(0, 10)[1] == pytest.approx(0.2775, abs=5e-5)  # z^2 / (n + z^2)


def binomial_quantile(share: float, count: int, rate: float) -> float:
    total = 0.0
    for k in range(count + 1):
        total += comb(count, k) * rate**k * (1 - rate) ** (count - k)
        if total >= share:
            return k / count
    raise AssertionError


def test_raters_who_agree_on_everything_say_no_more_than_one_of_them() -> None:
    one = np.array([1.0] * 28 + [0.0] * 12)
    exact = [binomial_quantile(share, 40, 0.7) for share in (0.025, 0.975)]  # all that resampling prompts can give
    for raters in (2, 10):
        assert two_way_bootstrap(np.tile(one, (raters, 1))) == pytest.approx(exact, abs=0.0251)


def test_raters_who_differ_make_the_interval_wide_however_many_prompts_there_are() -> None:
    habits = np.repeat([[1.0], [1.0], [0.0], [0.0]], 200, axis=1)  # each rater always chooses the same model
    low, high = two_way_bootstrap(habits)
    # The number of draws of the two raters for A is binomial: 0 of 4 has probability 1/16, more than 2.5 %.
    assert (low, high) == (0, 1)
    independent = np.random.default_rng(0).integers(0, 2, (20, 200)).astype(float)
    low, high = two_way_bootstrap(independent)
    assert 0.03 < high - low < 0.1  # twice 1.96 standard deviations of 4000 coins are 0.031


def test_where_all_agree_the_interval_is_not_empty() -> None:
    row = study.tally(np.ones((3, 10)))
    assert row["win_rate_a"] == 1
    assert row["interval"] == pytest.approx([0.7225, 1], abs=5e-5)  # 10 prompts, not 30 votes
    assert row["agreement"] == 1
    assert row["alpha"] is None


def test_alpha_of_krippendorffs_own_examples() -> None:
    """Sections B and C of "Computing Krippendorff's Alpha-Reliability" (2011)."""
    units = np.array([[ord(letter) for letter in row] for row in ("aabbdcccedda", "babbbccceddd")], float)
    assert krippendorff_alpha(units) == pytest.approx((9 / 12, 0.692), abs=5e-4)
    rows = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    table = np.array([[NONE if cell == "." else float(cell) for cell in row] for row in rows])
    _, alpha = krippendorff_alpha(table)
    assert alpha == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize(
    ("files", "fragment"),
    [
        ([votes(of="s2")], "is of another study: s2, the key is of s1"),
        ([votes(vote("a0", "b0", "tie", "taste"))], "no question 'taste'"),
        ([votes(vote("a0", "b9", "tie"))], "no picture 'b9'"),
        ([votes(vote("a0", "b1", "tie"))], "pictures a0 and b1 are not a pair"),
        ([votes(vote("a0", "a0", "tie"))], "pictures a0 and a0 are not a pair"),
        ([votes(vote("a0", "b0", "tie"), vote("b0", "a0", "left"))], "'prompt 0' has two votes on alignment"),
        ([votes(), votes()], "are both of the rater 'anna'"),
    ],
)
def test_votes_that_do_not_fit_are_one_line(
    files: Sequence[Votes], fragment: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(write(tmp_path, *files)) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"snapgen: error: {tmp_path}")
    assert fragment in err


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("votes", "is no votes file of a study: : invalid json"),
        ('{"study": "s1", "rater": "anna", "votes": [{}]}', "votes.0.question: field required"),
        ('{"study": "s1", "rater": "../anna", "votes": []}', "rater: string should match pattern"),
        ('{"study": "s1", "rater": "anna", "votes": [], "more": 1}', "more: extra inputs are not permitted"),
    ],
)
def test_a_damaged_file_is_one_line(
    content: str, fragment: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = write(tmp_path, votes())
    (tmp_path / "votes-0.json").write_text(content)
    assert run(command) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert fragment in err


def test_scores_as_a_table_and_as_an_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    anna = votes(vote("a0", "b0", "left"), vote("b1", "a1", "left"), vote("a2", "b2", "left"))
    ben = votes(vote("a0", "b0", "left"), vote("b1", "a1", "tie"), rater="ben")
    command = write(tmp_path, anna, ben)
    assert run([*command, "--json"]) == 0
    row = json.loads(capfd.readouterr().out)["questions"]["alignment"]
    assert (row["wins_a"], row["ties"], row["wins_b"]) == (3, 1, 1)
    assert row["win_rate_a"] == pytest.approx(3.5 / 5)
    assert row["agreement"] == 0.5
    # Two doubly judged prompts, 4 votes: A A, B tie. Expected agreement 2 * 1 / (4 * 3) = 1/6.
    assert row["alpha"] == pytest.approx(1 - (1 / 2) / (5 / 6))
    assert run(command) == 0
    out = capfd.readouterr().out
    assert "| alignment | 3 | 1 | 1 | 5 of 8 | 70.0% |" in out
    assert "| aesthetics | 0 | 0 | 0 | 0 of 8 | - | - | - | - |" in out
    assert out.startswith("# Study s1: 4 prompts, votes of anna, ben\n")
    assert "A is small, B is large." in out


def test_prompts_of_a_text_file_and_of_partiprompts() -> None:
    assert study.prompt_column(["a cat", "a dog", "a cat"]) == ["a cat", "a dog"]
    table = [
        "Prompt\tCategory\tChallenge\tNote",
        'the words "fly high"\tArtifacts\tComplex\tquoted',
        "bond\tAbstract\tBasic",
    ]
    assert study.prompt_column(table) == ['the words "fly high"', "bond"]
    assert study.prompt_column([]) == []


def test_a_choice_of_prompts_is_the_seeds() -> None:
    prompts = [str(i) for i in range(100)]
    chosen = study.choose_prompts(prompts, 10, 3)
    assert chosen == study.choose_prompts(prompts, 10, 3) != study.choose_prompts(prompts, 10, 4)
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen, key=int)


def test_neither_ids_nor_their_order_tell_the_model() -> None:
    named = study.name_pictures(500, "a secret")
    assert sorted((fact.prompt, fact.model) for fact in named.values()) == [(i, m) for i in range(500) for m in "ab"]
    first: dict[int, str] = {}
    for fact in named.values():
        first.setdefault(fact.prompt, fact.model)
    assert 200 < list(first.values()).count("a") < 300  # a fair coin misses it once in 100,000 times
    assert set(named) != set(study.name_pictures(500, "another"))


def test_the_miniature_knows_every_word_of_the_prompts_that_are_shipped() -> None:
    path = Path(study.__file__).with_name("study_prompts.txt")
    prompts = path.read_text().splitlines()
    source = SceneSource(SceneSettings(count=4000, split="train"))
    known = {word for i in range(4000) for word in source.caption(i, 0).lower().split()}
    assert len(set(prompts)) == 24
    assert not {word for prompt in prompts for word in prompt.split()} - known
