"""The study's page in a real browser: voting, going on after a reload, saving; and the command that makes it."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from snapgen.cli.main import run
from snapgen.pipeline.load import load_pipeline
from snapgen.study.votes import Key, Votes, read_json

PROMPTS = [
    "a cat",
    "two red apples",
    "a <b>dog</b></script>",
    "a cat and a dog and two red apples " * 7 + "on a blue background",
]
STEPS = len(PROMPTS) * 2  # of two questions


@pytest.fixture(scope="module")
def second_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights."""
    pipeline = load_pipeline(str(tiny_model))
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.mul_(-1)
    folder = tmp_path_factory.mktemp("second") / "secretname"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def command(tiny_model: Path, second_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Makes the study of this file."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    arguments = [str(tiny_model), str(second_model), "--prompts", str(folder / "prompts.txt"), "--out", str(folder)]
    return ["study", "make", *arguments, "--steps", "1", "--questions", "alignment,aesthetics"]


@pytest.fixture(scope="module")
def folder(command: list[str]) -> Path:
    assert run(command) == 0
    return Path(command[command.index("--out") + 1])


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """A fresh browser's page of the study, at its start; whatever it complains of fails the test."""
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto((folder / "study.html").as_uri())
    yield page
    context.close()
    assert errors == []
    assert {url.partition(":")[0] for url in requested} <= {"file", "data", "blob"}


def begin(page: Any, rater: str) -> None:
    page.get_by_label("Your name or initials").fill(rater)
    page.get_by_role("button", name="Begin").click()


def count(page: Any) -> str:
    return str(page.inner_text("#count"))


def shown(page: Any) -> tuple[str, str, str, str]:
    """Prompt, question, and both pictures."""
    sources = [page.get_attribute(side, "src") for side in ("#left", "#right")]
    return page.inner_text("#prompt"), page.inner_text("#question"), *sources


def save(page: Any, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator(".save:visible").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.slow
def test_voting_by_keyboard_and_mouse_reloading_and_scoring(
    page: Any, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begin(page, "anna")
    assert count(page) == f"1 of {STEPS}"
    assert page.get_by_role("button", name="Back").is_disabled()
    seen = [shown(page)]
    page.keyboard.press("ArrowLeft")
    seen.append(shown(page))
    assert (seen[0][0], seen[0][2:]) == (seen[1][0], seen[1][2:])  # the same pair, another question
    assert seen[0][1] != seen[1][1]
    page.get_by_role("button", name="Right picture").click()
    page.keyboard.press("ArrowDown")
    before = shown(page)
    page.get_by_role("button", name="No difference").click()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Backspace")
    page.get_by_role("button", name="Back").click()
    assert (count(page), shown(page)) == (f"4 of {STEPS}", before)

    page.reload()
    page.locator("#trial").wait_for()
    assert (count(page), shown(page)) == (f"4 of {STEPS}", before)
    early = read_json(Votes, save(page, tmp_path))
    assert [vote.choice for vote in early.votes] == ["left", "right", "tie"]
    for _ in range(3, STEPS):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("h1:visible") == "Thank you, all done"
    page.evaluate("localStorage.clear()")
    page.reload()  # the end, too, is kept, and the tab itself remembers what the storage lost
    path = save(page, tmp_path)
    assert path.name == "votes-anna.json"

    # What the page says was left and right is what was shown there.
    key, votes = read_json(Key, folder / "key.json"), read_json(Votes, path)
    data = json.loads(page.inner_text("#study"))
    source = {picture["id"]: picture["src"] for pair in data["pairs"] for picture in pair["pictures"]}
    assert (source[votes.votes[0].left], source[votes.votes[0].right]) == seen[0][2:]
    assert key.prompts[key.pictures[votes.votes[0].left].prompt] == seen[0][0].strip("“”")

    assert run(["study", "score", str(folder), str(path), "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["questions"]
    chosen: Counter[str] = Counter()
    for vote in votes.votes:
        picture = vote.left if vote.choice == "left" else vote.right
        chosen["tie" if vote.choice == "tie" else key.pictures[picture].model] += 1
    assert sum(chosen.values()) == STEPS
    for outcome, name in (("wins_a", "a"), ("wins_b", "b"), ("ties", "tie")):
        assert sum(row[outcome] for row in rows.values()) == chosen[name]


@pytest.mark.slow
def test_the_next_rater_has_another_order_and_the_first_can_go_on(page: Any) -> None:
    begin(page, "anna")
    orders = {"anna": [], "ben": []}
    for rater, order in orders.items():
        for _ in range(STEPS):
            order.append(shown(page))
            page.keyboard.press("ArrowLeft")
        if rater == "anna":
            page.get_by_role("button", name="Somebody else").click()
            begin(page, "ben")
    assert orders["anna"] != orders["ben"]
    assert {frozenset((prompt, question, left, right)) for prompt, question, left, right in orders["anna"]} == {
        frozenset((prompt, question, left, right)) for prompt, question, left, right in orders["ben"]
    }
    page.get_by_role("button", name="Somebody else").click()
    begin(page, "anna")
    assert page.inner_text("#file") == "votes-anna.json"  # nothing of it was lost
    page.get_by_role("button", name="Back to the last pair").click()
    assert (count(page), shown(page)) == (f"{STEPS} of {STEPS}", orders["anna"][-1])


@pytest.mark.slow
def test_keys_act_only_where_there_are_pictures(page: Any) -> None:
    page.keyboard.press("ArrowLeft")
    assert page.is_visible("#start")
    begin(page, "no spaces")
    assert page.is_visible("#start")  # the browser says what is wrong with the name
    begin(page, "anna")
    page.keyboard.press("Alt+ArrowRight")
    page.keyboard.press("Backspace")
    assert count(page) == f"1 of {STEPS}"
    page.keyboard.down("ArrowLeft")
    page.keyboard.down("ArrowLeft")  # held down: one vote
    assert count(page) == f"2 of {STEPS}"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "phone"), [(360, 640, True), (1280, 720, False)])
def test_all_choices_are_on_the_screen(browser: Any, folder: Path, width: int, height: int, phone: bool) -> None:
    screen = {"width": width, "height": height}
    context = browser.new_context(viewport=screen, is_mobile=phone, has_touch=phone, reduced_motion="reduce")
    page = context.new_page()
    page.goto((folder / "study.html").as_uri())
    begin(page, "anna")
    for step in range(STEPS):
        assert count(page) == f"{step + 1} of {STEPS}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        left, right, tie = (page.locator(f".choice[data-choice={choice}]") for choice in ("left", "right", "tie"))
        boxes = [button.bounding_box() for button in (left, right, tie)]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["width"] == boxes[1]["width"] > 160
        assert all(box["height"] >= 48 and box["y"] + box["height"] <= height for box in boxes)
        right.tap() if phone else tie.click()
    context.close()


def test_the_page_is_blind_and_needs_nothing_else(folder: Path, tiny_model: Path) -> None:
    html = (folder / "study.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?:|@import|url\(""", html)
    for name in (tiny_model.name, str(tiny_model), "secretname"):
        assert f'"{name}"' not in html
    assert "secretname" not in html
    key = read_json(Key, folder / "key.json")
    assert key.models["b"].endswith("secretname")
    text = re.search(r'id="study">(.*?)</script>', html, re.DOTALL)
    assert text is not None
    data = json.loads(text[1])  # a prompt with markup does not end the script
    assert [pair["prompt"] for pair in data["pairs"]] == PROMPTS
    assert {picture["id"] for pair in data["pairs"] for picture in pair["pictures"]} == set(key.pictures)


def test_making_it_again_goes_on_and_another_study_is_refused(
    command: list[str], folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    again = [str(copy) if argument == str(folder) else argument for argument in command]
    before = {name: (copy / name).read_bytes() for name in ("study.html", "key.json")}
    lost, kept = copy / "pictures" / "b" / "0002.png", copy / "pictures" / "b" / "0001.png"
    pixels, written = Image.open(lost).tobytes(), kept.stat().st_mtime_ns
    lost.unlink()
    (copy / "study.html").unlink()
    assert run(again) == 0
    assert capfd.readouterr().out.splitlines() == [str(copy / "study.html"), str(copy / "key.json")]
    assert Image.open(lost).tobytes() == pixels
    assert kept.stat().st_mtime_ns == written
    assert before == {name: (copy / name).read_bytes() for name in before}
    for changed in (["--seed", "1"], ["--count", "2"]):
        assert run([*again, *changed]) == 1
        assert "give another --out" in capfd.readouterr().err
    assert before == {name: (copy / name).read_bytes() for name in before}


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["mini", "mini"], "Missing option '--out'"),
        (["mini", "--out", "x"], "Missing argument 'MODEL_B'"),
        (["mini", "nonsense", "--out", "x"], "there is no model 'nonsense'"),
        (["mini", "mini", "--out", "x", "--count", "25"], "--count 25 is out of range: from 1 to 24"),
        (["mini", "mini", "--out", "x", "--steps", "0"], "--steps 0 is out of range"),
        (["mini", "mini", "--out", "x", "--questions", "taste"], "there is no 'taste': use alignment, aesthetics"),
        (["mini", "mini", "--out", "x", "--questions", "realism,realism"], "names one twice"),
        (["mini", "mini", "--out", "x", "--prompts", "missing.txt"], "missing.txt: no such file"),
        (["mini", "mini", "--out", "x", "--prompts", "empty.txt"], "empty.txt holds no prompts"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    fragment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    assert run(["study", "make", *arguments]) != 0
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert fragment in err
    assert not (tmp_path / "x").exists()
