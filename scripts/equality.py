"""Check that a refactor changed nothing: pictures, previews and weights byte by byte; losses, scores and plans exactly.

    python scripts/equality.py record before.json      # before the refactor
    python scripts/equality.py compare before.json     # after it: prints what differs, exit status 1 if anything does

It only uses the command line, so the same script works before and after; `--snapgen` names another checkout's command.
Use the same processor both times, because others round differently. It runs on one thread and takes three minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {  # options of `snapgen generate` besides prompts and seed
    "few_steps": ["--model", "mini"],
    "guided": ["--model", "mini-base", "--steps", "8", "--count", "2"],
    "wide": ["--model", "mini-base", "--steps", "4", "--size", "160x96", "--guidance", "2.5"],
}
PROMPTS = ["a red apple", "a dog to the left of a tree"]
# In order: some start from the runs of earlier ones.
RECIPES = [
    "autoencoder",
    "text",
    "nouns",
    "layout",
    "flow",
    "teacher",
    "distill",
    "step",
    "decoder",
    "classifier",
    "lora",
]
PLANS = ["t2i_2_256", "t2i_5_distill_1024", "t2i_6_step_1024", "decoder", "imagenet_256"]
TIMES = ("seconds", "samples_per_second", "time", "memory")  # endings of metrics that differ from run to run


def main() -> None:
    """Read the command line; record, or compare with a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path, help="the record, JSON")
    parser.add_argument("--snapgen", type=Path, default=Path(sys.executable).with_name("snapgen"), help="the command")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = observe(arguments.snapgen.absolute(), Path(folder))
    if arguments.action == "record":
        arguments.file.write_text(json.dumps(found, indent=1) + "\n")
        return
    recorded = json.loads(arguments.file.read_text())
    differences = [key for key in recorded | found if recorded.get(key) != found.get(key)]
    for key in differences:
        print(f"{key}: {recorded.get(key)} -> {found.get(key)}")
    print(f"{len(found) - len(differences)} of {len(recorded | found)} values are the same")
    sys.exit(bool(differences))


def observe(command: Path, folder: Path) -> dict[str, Any]:
    """All values that must not change, by name; `folder` is an empty folder to work in."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copytree(ROOT / "examples", folder / "examples")

    def run(*options: str) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        print("snapgen", *options, file=sys.stderr)
        done = subprocess.run([command, *options], cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"snapgen {' '.join(options)} failed: {done.stderr[-2000:]}")
        return done.stdout

    found: dict[str, Any] = {}
    for name, options in PICTURES.items():
        run("generate", *PROMPTS, "--out", name, "--seed", "7", *options)
        for picture in sorted((folder / name).glob("*.png")):
            found[f"picture {name}/{picture.name}"] = digest(picture)
    run("data", "preview", "--out", "preview.png", "--seed", "3")
    found["data preview"] = digest(folder / "preview.png")
    for name in RECIPES:
        run("train", f"recipes/debug/{name}.yaml")
        trained = folder / "runs/debug" / name
        for line in map(json.loads, (trained / "metrics.jsonl").read_text().splitlines()):
            values = {key: value for key, value in line.items() if not key.endswith(TIMES)}
            found[f"metrics {name} {len([key for key in found if key.startswith(f'metrics {name} ')])}"] = values
        for weights in sorted((trained / "model").rglob("*.safetensors")):
            found[f"weights {name}/{weights.relative_to(trained / 'model')}"] = weights_digest(weights)
    scores = json.loads(run("evaluate", "mini", "--suite", "scenes", "--count", "12", "--json", "--out", "scores"))
    found |= {f"scenes {key}": scores[key] for key in ("score", "categories", "detector", "count")}
    for rung in json.loads(run("profile", "ladder", "--json"))["rungs"]:
        found[f"profile {rung['name']}"] = {key: value for key, value in rung.items() if key != "latency"}
    for name in PLANS:
        plan = json.loads(run("plan", f"recipes/paper/{name}.yaml", "--json"))
        found |= {f"plan {name} {key}": value for key, value in plan.items()}
    return found


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights_digest(file: Path) -> str:
    """SHA-256 of a safetensors file whatever the order of its header, which differs from write to write."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True)
    return hashlib.sha256(header.encode() + content[end:]).hexdigest()


if __name__ == "__main__":
    main()
