"""docs/extending.md works as it stands: its files, lines and commands, from top to bottom, in a copy of the package."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Runs commands and Python in one process: torch is imported once.
DRIVER = """
import json, sys
from pathlib import Path
from snapgen.cli.main import run
for kind, content in json.loads(Path("steps.json").read_text()):
    if kind == "python":
        exec(content, {})
    elif run(content):
        sys.exit(f"failed: {content}")
"""


def split_path(block: str) -> tuple[Path | None, str]:
    """The path in a block's first line, if there is one, and the rest."""
    first, _, rest = block.partition("\n")
    named = re.fullmatch(r"# (\S+\.\w+)", first)
    return (Path(named[1]), rest) if named else (None, block)


def patch(file: Path, diff: str) -> None:
    """Applies the hunks of `diff`, separated by lines of dots: what they begin with must stand once in `file`."""
    for hunk in re.split(r"^\.\.\.\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        text = file.read_text()
        assert text.count(before) == 1, f"{file.name} has not once:\n{before}"
        file.write_text(text.replace(before, after))


@pytest.mark.slow
def test_the_page_can_be_followed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("recipes", "examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    steps: list[tuple[str, str | list[str]]] = []
    for kind, block in BLOCK.findall((ROOT / "docs" / "extending.md").read_text()):
        path, content = split_path(block)
        if kind == "diff":
            assert path is not None
            patch(tmp_path / path, content)
        elif kind == "sh":
            commands = [shlex.split(line) for line in content.splitlines()]
            assert {command[0] for command in commands} == {"snapgen"}
            steps += [("snapgen", command[1:]) for command in commands]
        elif path is None:
            steps.append((kind, content))
        else:
            assert not (tmp_path / path).exists()
            (tmp_path / path).write_text(content)
    (tmp_path / "steps.json").write_text(json.dumps(steps))

    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]

    line = json.loads((tmp_path / "runs" / "debug" / "autoencoder" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["spectrum"] > 0
    assert "source: gradients" in (tmp_path / "runs" / "gradients" / "recipe.yaml").read_text()
    assert (tmp_path / "cat.png").exists()
    report = json.loads((tmp_path / "runs" / "evaluation" / "mini" / "colorfulness" / "report.json").read_text())
    assert report["count"] == 40 and 10 < report["score"] < 150
    distance = json.loads((tmp_path / "runs" / "evaluation" / "unicorns" / "fid" / "report.json").read_text())
    assert distance["score"] < 1e-6  # of pictures to themselves
    bundle = json.loads((tmp_path / "bundles" / "ort" / "bundle.json").read_text())
    assert bundle["networks"]["unet"]["file"] == "unet.ort" and bundle["parity"]["relative_error"]["unet"] < 1e-5
    losses = [json.loads(line)["loss"] for line in (tmp_path / "runs" / "denoiser" / "metrics.jsonl").open()]
    assert len(losses) == 20 and losses[-1] < losses[0]
