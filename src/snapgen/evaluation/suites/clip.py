"""The suite "clip": CLIP score, how well pictures agree with their prompts (Hessel et al. 2021).

Protocol. One picture per prompt (of the text file `--prompts`) and seed. Its score is the cosine of its CLIP embedding
and the prompt's, with negative values as 0, on the paper's scale of 0 to 1 (0.332 is what others call 33.2). CLIP is
OpenAI's ViT-L/14 unless `--weights` gives another folder or hub name; scores of different CLIPs are not comparable.
Prompts longer than CLIP's 77 tokens are truncated, as everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL.Image import Image

from snapgen.evaluation import EvaluationSettings, required_prompts
from snapgen.evaluation.networks import CLIP, Clip
from snapgen.evaluation.prompts import score_prompts, some_prompts
from snapgen.messages import Notify
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.weights import network_hash


def evaluate_clip(
    pipeline: SnapGenPipeline, settings: EvaluationSettings, folder: Path, progress: Notify
) -> dict[str, Any]:
    """Score `pipeline`, write pictures and report to `folder`, return the report."""
    some_prompts(required_prompts("clip", settings))  # before anything is loaded
    name = settings.weights or CLIP
    clip = Clip(name, pipeline.device)

    def judge(prompt: str, picture: Image) -> float:
        return max(0.0, float(clip.picture(picture) @ clip.texts([prompt])[0]))

    facts = {"judge": Path(name).name, "judge_sha256": network_hash({"clip": clip.network})}
    return score_prompts("clip", pipeline, settings, folder, progress, judge, facts, "CLIP score")
