"""The text stage: what it teaches, and that the UNet reads the states that it taught."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.recipes import RECIPES, metrics_of, recipe_of, run_recipe

from snapgen.models.reader import unit_rms
from snapgen.text.join import JointTextEncoder
from snapgen.text.load import load_text_encoders
from snapgen.train.stage import Context
from snapgen.train.stages.text import TextStage

FEW = "data.nouns=[cat, dog, apple, car, tree, star, fish, house]"


def make_stage(run: Path, *overrides: str) -> TextStage:
    recipe = recipe_of(RECIPES / "debug" / "text.yaml", FEW, *overrides)
    return TextStage(recipe, Context(torch.device("cpu"), 0, 1, run, lambda items, description, total: items))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sixty steps in a world of eight nouns."""
    run = tmp_path_factory.mktemp("text") / "run"
    run_recipe("text", run, FEW, "train.steps=60", "train.batch_size=16", "train.learning_rate=5e-3", "state_noise=0.5")
    return run


@pytest.mark.slow
def test_it_learns_to_answer(trained: Path) -> None:
    """Far better than at first, in 60 steps of 16."""
    lines = metrics_of(trained)
    first, last = (sum(line["questions"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert last < 0.7 * first
    assert lines[-1]["eval/answers_size"] > 0.8


@pytest.mark.slow
def test_the_pipeline_reads_the_states_that_were_taught(trained: Path) -> None:
    components = load_text_encoders([str(trained / "model")], torch.float32)
    text = JointTextEncoder.from_components(components)
    captions = ["a cat to the left of a red dog", "two apples"]
    states = text(captions).trimmed()
    tokens = components["tokenizer"](captions, padding=True, return_tensors="pt")
    hidden = components["text_encoder"](**tokens).last_hidden_state
    assert type(components["text_encoder"]).__name__ == "BertModel"
    assert torch.equal(states.mask, tokens["attention_mask"].bool())
    torch.testing.assert_close(states.states, unit_rms(hidden) * states.mask[..., None])


def test_the_noise_on_states_falls_to_nothing(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, "state_noise=0.8", "train.steps=4")
    assert [stage.batch(step).noise for step in range(4)] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    batch = stage.batch(1)
    assert len(batch.ids) == 2 * len(batch.scenes) == 2 * len(batch.pictures) == 16


def test_noise_disturbs_answers_alone(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, "state_noise=0.8", "train.steps=1000000")
    noisy = stage.batch(0)
    clean = stage._batch([number // 2 for number in stage.local_indices(0)[::2]], variant=1)
    assert torch.equal(noisy.ids, clean.ids)
    stage.model.eval()
    with torch.no_grad():
        (*matched, answers), (*undisturbed, expected) = stage.model(noisy), stage.model(clean)
    for one, other in zip(matched, undisturbed, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(answers["nouns"], expected["nouns"], atol=1e-3)
