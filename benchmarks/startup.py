"""How long a person waits: import, help, from cold start to a file, and the sampling within it.

    python benchmarks/startup.py [--repeats N] [--model NAME|PATH] [--steps N] [--size N]

Prints the median of the repeats, with the fastest and the slowest, in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = [str(Path(sys.executable).with_name("snapgen"))]
PROMPT = "two red apples"


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def run_process(*command: str) -> Callable[[], object]:
    """An action that runs `command` in a fresh process."""
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def sampling(model: str, steps: int, size: int | None) -> Callable[[], object]:
    """An action that draws one picture of `size` px (None: the model's own) with a pipeline that is already loaded."""
    import torch

    from snapgen.pipeline.load import load_pipeline

    pipeline = load_pipeline(model)
    generator = torch.Generator()
    return lambda: pipeline(
        [PROMPT], height=size, width=size, num_inference_steps=steps, generator=[generator.manual_seed(0)]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, help="side in px of the picture that is sampled")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, steps = str(Path(folder) / "picture.png"), str(options.steps)
        generate = [*COMMAND, "generate", PROMPT, "--out", out, "--steps", steps, "--model", options.model]
        actions = {
            "python, nothing imported": run_process(sys.executable, "-c", "pass"),
            "import snapgen": run_process(sys.executable, "-c", "import snapgen"),
            "snapgen --help": run_process(*COMMAND, "--help"),
            "import torch": run_process(sys.executable, "-c", "import torch"),
            "import snapgen.pipeline.text_to_image": run_process(
                sys.executable, "-c", "import snapgen.pipeline.text_to_image"
            ),
            f"snapgen generate, {steps} steps, cold start to file": run_process(*generate),
            f"sampling, {steps} steps": sampling(options.model, options.steps, options.size),
        }
        for name, action in actions.items():
            action()  # fills the disk cache
            times = [seconds(action) for _ in range(options.repeats)]
            print(f"{name:48} {statistics.median(times):7.3f}  ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
