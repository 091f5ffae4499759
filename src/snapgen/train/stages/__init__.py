"""The registry of stages: a new stage is one new file here and one line below."""

from __future__ import annotations

from torch import nn

from snapgen.config import Recipe, RecipeError
from snapgen.registry import load_attribute
from snapgen.train.stage import Stage

STAGES = {
    "autoencoder": "snapgen.train.stages.autoencoder:AutoencoderStage",
    "text": "snapgen.train.stages.text:TextStage",
    "classifier": "snapgen.train.stages.classifier:ClassifierStage",
    "flow": "snapgen.train.stages.flow:FlowStage",
    "distill": "snapgen.train.stages.distill:DistillStage",
    "step": "snapgen.train.stages.step:StepStage",
}


def load_stage(name: str) -> type[Stage[Recipe, nn.Module]]:
    """The class of the stage `name`, imported only now; an unknown name is a RecipeError listing the known ones."""
    if name not in STAGES:
        raise RecipeError(f"stage '{name}' is unknown; known stages: {', '.join(STAGES)}")
    stage: type[Stage[Recipe, nn.Module]] = load_attribute(STAGES[name])
    return stage
