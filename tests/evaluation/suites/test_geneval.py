"""Every rule on detections whose verdicts are known, and the whole suite on tiny networks."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.judges import save_clip, save_detector

from snapgen.cli.main import run
from snapgen.evaluation.geneval_rules import Found, confident, judge
from snapgen.evaluation.suites import geneval
from snapgen.files import fingerprint

CAT, TWO_CATS = {"class": "cat", "count": 1}, {"class": "cat", "count": 2}
DOG_LEFT_OF_CAT = [CAT, {"class": "dog", "count": 1, "position": ["left of", 0]}]
TASKS = {
    "single_object": {"include": [CAT]},
    "two_object": {"include": [CAT, {"class": "dog", "count": 1}]},
    "counting": {"include": [TWO_CATS], "exclude": [{"class": "cat", "count": 3}]},
    "colors": {"include": [CAT | {"color": "red"}]},
    "position": {"include": DOG_LEFT_OF_CAT},
    "color_attr": {"include": [CAT | {"color": "red"}, {"class": "dog", "count": 1, "color": "blue"}]},
}


def found(name: str, score: float = 0.95, left: float = 0, top: float = 0, color: str | None = None) -> Found:
    """An object of 10 x 10 px; `color` is what the classifier will say."""
    return Found(name, color, (left, top, left + 10, top + 10), score, np.ones((1, 1), bool))


def verdict(task: str, *seen: Found):
    return judge(TASKS[task], confident(seen, task), lambda one: one.color or "white")


@pytest.mark.parametrize(
    ("task", "seen", "rule"),
    [
        ("single_object", [found("cat", 0.31)], ""),
        ("single_object", [found("cat", 0.3)], "missing"),  # the threshold itself is not enough
        ("single_object", [found("dog")], "missing"),
        ("single_object", [found("cat"), found("cat"), found("dog")], ""),
        ("two_object", [found("dog"), found("cat")], ""),
        ("two_object", [found("cat"), found("cat")], "missing"),
        ("counting", [found("cat"), found("cat", 0.91)], ""),
        ("counting", [found("cat"), found("cat", 0.89)], "missing"),  # counting has a threshold of its own
        ("counting", [found("cat")] * 3, "count"),
        ("counting", [found("cat"), found("cat"), found("cat", 0.89)], ""),
        ("colors", [found("cat", color="red")], ""),
        ("colors", [found("cat", color="blue")], "color"),
        ("colors", [found("cat", 0.9, color="blue"), found("cat", 0.8, color="red")], "color"),  # the best one counts
        ("colors", [found("cat", 0.8, color="blue"), found("cat", 0.9, color="red")], ""),
        ("position", [found("dog", left=0), found("cat", left=30)], ""),
        ("position", [found("dog", left=30), found("cat", left=0)], "position"),
        ("position", [found("dog", left=0), found("cat", left=2)], "position"),  # within 0.1 of the widths' sum
        ("position", [found("dog", left=0), found("cat", left=5)], ""),  # (5 - 2) / 5 of the way is beyond it
        ("position", [found("dog", left=0), found("cat", left=3.9)], "position"),  # (3.9 - 2) / 3.9 is not half
        ("position", [found("dog", top=0), found("cat", top=30)], "position"),
        ("position", [found("dog")], "missing"),
        ("color_attr", [found("cat", color="red"), found("dog", color="blue")], ""),
        ("color_attr", [found("cat", color="blue"), found("dog", color="red")], "color"),
        ("color_attr", [found("cat", color="red")], "missing"),
    ],
)
def test_rules(task: str, seen: list[Found], rule: str) -> None:
    given = verdict(task, *seen)
    assert given.correct == (rule == "")
    assert given.rule == rule
    assert bool(given.reason) == (rule != "")


def test_an_object_in_place_of_a_target_that_is_missing() -> None:
    assert "no target for dog to be left of" in verdict("position", found("dog")).reason


def test_at_most_sixteen_of_a_class_are_kept_the_best() -> None:
    kept = confident([found("cat", 0.5 + i / 100) for i in range(20)], "single_object")["cat"]
    assert [one.score for one in kept] == [0.5 + i / 100 for i in range(19, 3, -1)]


def test_the_box_of_a_mask() -> None:
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:8] = True
    assert geneval.box_of(mask) == (3, 2, 8, 5)


@pytest.mark.slow
def test_the_command_from_end_to_end(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = [{"tag": tag, **clauses, "prompt": f"a photo of {tag}"} for tag, clauses in TASKS.items()]
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    save_clip(tmp_path / "judges" / "clip")
    save_detector(tmp_path / "judges" / "detector")
    command = ["evaluate", str(tiny_model), "--suite", "geneval", "--prompts", str(file), "--steps", "1"]
    command += ["--weights", str(tmp_path / "judges"), "--out", str(tmp_path / "out"), "--json"]
    assert run(command) == 1
    assert "holds 6 prompts: GenEval has 553" in capfd.readouterr().err
    monkeypatch.setattr(geneval, "PROMPTS", 6)
    assert run(command) == 1
    assert "but not GenEval's" in capfd.readouterr().err
    monkeypatch.setattr(geneval, "PROMPTS_SHA256", fingerprint(prompts))
    assert run([*command, "--seeds", "0"]) == 1
    assert "GenEval takes 4 pictures per prompt" in capfd.readouterr().err
    assert run(command) == 0
    report = json.loads(capfd.readouterr().out)
    assert list(report["categories"]) == list(TASKS)
    assert (report["count"], list(report["by_seed"])) == (24, ["0", "1", "2", "3"])
    assert report["score"] == pytest.approx(np.mean(list(report["categories"].values())))
    pictures = tmp_path / "out" / "geneval" / "pictures"
    assert json.loads((pictures / "00005" / "metadata.jsonl").read_text()) == prompts[5]
    samples = sorted(file.name for file in (pictures / "00005" / "samples").iterdir())
    assert samples == ["0000.png", "0001.png", "0002.png", "0003.png"]
    lines = json.loads((tmp_path / "out" / "geneval" / "report.json").read_text())["pictures"]
    assert any(line["found"] for line in lines)  # the detector was run, and saw something


def test_a_detector_with_other_labels_is_refused(tmp_path: Path) -> None:
    save_detector(tmp_path, ["nothing", *geneval.CLASSES[:-1]])
    with pytest.raises(ValueError, match="does not name COCO's 80 classes in their order"):
        geneval.Detector(tmp_path, geneval.torch.device("cpu"))
