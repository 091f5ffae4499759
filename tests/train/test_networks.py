"""The setting `model`: a preset by name, or with changes to its configuration, for every stage's network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.recipes import RECIPES, paths_below, recipe_of, run_recipe

from snapgen.config import RecipeError
from snapgen.models.presets import create_autoencoder, create_unet
from snapgen.models.unet import SnapGenUNet
from snapgen.profiling.plan import plan
from snapgen.train.stage import Context
from snapgen.train.stages.autoencoder import AutoencoderStage
from snapgen.train.stages.flow import FlowStage

CONTEXT = Context(torch.device("cpu"), 0, 1, Path(), lambda items, description, total: items)


def flow(*overrides: str) -> FlowStage:
    return FlowStage(recipe_of(RECIPES / "debug" / "flow.yaml", *overrides), CONTEXT)


def test_a_name_is_a_preset_and_stays_a_name() -> None:
    recipe = recipe_of(RECIPES / "debug" / "flow.yaml")
    assert (recipe.model.preset, recipe.model.changes()) == ("debug", {})
    assert recipe.model_dump(mode="json")["model"] == "debug" == str(recipe.model)
    assert recipe == recipe_of(RECIPES / "debug" / "flow.yaml", "model={preset: debug}")


@pytest.mark.parametrize("name", ["imagenet_256", "t2i_5_distill_1024", "t2i_6_step_1024"])
def test_changes_reach_the_network_and_the_plan(name: str) -> None:
    path = RECIPES / "paper" / f"{name}.yaml"
    changed = recipe_of(path, "model={preset: t2i, cross_attention_dim: 2048, transformer_layers: [1, 2, 3]}")
    assert changed.model_dump(mode="json")["model"]["transformer_layers"] == [1, 2, 3]
    with torch.device("meta"):
        network = changed.model.create()
        expected = create_unet("t2i", cross_attention_dim=2048, transformer_layers=(1, 2, 3))
    assert network.config.cross_attention_dim == 2048 and network.config.transformer_layers == (1, 2, 3)
    parameters = sum(parameter.numel() for parameter in expected.parameters())
    assert plan(changed, 8, "h100", 0.4).parameters == pytest.approx(parameters, rel=0.06)  # and projector or heads


def test_teachers_and_autoencoders_take_changes_too() -> None:
    teacher = recipe_of(RECIPES / "debug" / "teacher.yaml", "model={preset: debug-teacher, num_layers: 3}")
    assert teacher.model.create().config.num_layers == 3
    changed = recipe_of(RECIPES / "debug" / "autoencoder.yaml", "model={preset: debug, decoder_blocks: [2, 1, 1, 1]}")
    stage = AutoencoderStage(changed, CONTEXT)
    assert stage.model.autoencoder.config.decoder_blocks == (2, 1, 1, 1)
    assert len(stage.model.autoencoder.decoder.stages[0].blocks) == 2
    sizes = [sum(p.numel() for p in create_autoencoder("debug", decoder_blocks=b).decoder.parameters()) for b in BLOCKS]
    assert sizes[0] > sizes[1]


BLOCKS = ((2, 1, 1, 1), (1, 1, 1, 1))


@pytest.mark.slow
def test_a_changed_network_is_trained_and_continued(folder: Path, tmp_path: Path) -> None:
    own = "model={preset: debug, ffn_ratio: 2}"
    model = run_recipe("flow", tmp_path / "run", own, "train.steps=1", *paths_below(folder))
    assert SnapGenUNet.from_pretrained(model / "unet").config.ffn_ratio == 2
    assert "ffn_ratio: 2" in (tmp_path / "run" / "recipe.yaml").read_text()
    run_recipe("flow", tmp_path / "run", own, "train.steps=2", *paths_below(folder), resume=True)
    assert flow(own, f"initial={model}", *paths_below(folder)).network.config.ffn_ratio == 2
    with pytest.raises(RecipeError, match="model: ffn_ratio is 3, but the network in .*/model was trained with 2"):
        flow("model={preset: debug, ffn_ratio: 3}", f"initial={model}", *paths_below(folder))
    with pytest.raises(RecipeError, match="takes and gives latents of 8 channels, those of .* have 16"):
        flow("model={preset: debug, in_channels: 8, out_channels: 8}", *paths_below(folder))


def test_changes_that_cannot_be_are_one_line() -> None:
    for model, message in (
        (
            "{preset: t2i, cross_attention_dim: wide}",
            "model: cross_attention_dim: input should be a valid int",
        ),
        ("{preset: t2i, block_out_channels: 4}", "block_out_channels: input should be a valid array"),
        ("{preset: t2i, width: 4}", "unknown key width, expected some of sample_size, in_channels"),
        ("{preset: t2i, sample_size: 4}", "sample_size is decided by data.resolution"),
        ("{cross_attention_dim: 4}", "model.preset: field required"),
        ("4", "model: input should be an object"),
    ):
        with pytest.raises(RecipeError, match=message) as error:
            recipe_of(RECIPES / "debug" / "flow.yaml", f"model={model}")
        assert "\n" not in str(error.value)
    recipe = recipe_of(RECIPES / "debug" / "flow.yaml", "model={preset: debug, norm_num_groups: 7}")
    with pytest.raises(RecipeError, match="model: debug with norm_num_groups 7 cannot be built: num_channels"):
        recipe.model.create()
