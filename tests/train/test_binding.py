from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.recipes import RECIPES, recipe_of
from torch import Tensor

from snapgen.data.folder import FolderSource
from snapgen.data.source import ContrastingSource
from snapgen.train.binding import SIGMAS, make_binding_test, measure_binding
from snapgen.train.stage import Context
from snapgen.train.stages.flow import FlowStage
from snapgen.world.scene import CATEGORIES
from snapgen.world.source import SceneContrast, SceneSettings, SceneSource

SHAPE = (2, 3, 3)  # of latents here


def encode(pictures: list[np.ndarray]) -> Tensor:
    return torch.stack([torch.from_numpy(picture) for picture in pictures])


def conditioned(latents: Tensor, noise: Tensor, sigmas: Tensor, captions: list[str]) -> dict[str, Tensor]:
    """The "text states" are the mean picture that a caption stands for."""
    levels = {"low": 0.0, "high": 1.0, "other": 3.0}
    means = torch.tensor([levels[caption] for caption in captions], dtype=latents.dtype)
    return {"x0": latents, "noise": noise, "sigmas": sigmas, "means": means}


def make_contrasts(count: int) -> list[SceneContrast]:
    rng = np.random.default_rng(0)

    def pictures(level: float, number: int) -> list[np.ndarray]:
        return list(level + rng.standard_normal((number, *SHAPE)))

    wrong = {"near": ("high", 1.0), "far": ("other", 3.0)}
    return [
        SceneContrast(kind, pictures(0.0, 1)[0], "low", caption, pictures(0.0, 6), pictures(level, 6))
        for kind, (caption, level) in wrong.items()
        for _ in range(count)
    ]


def ideal_losses(batch: dict[str, Tensor]) -> Tensor:
    """The loss of a network that sees nothing but noise and knows the means: v = (x_t - x_0) / sigma."""
    error = batch["x0"] - batch["means"].reshape(-1, 1, 1, 1)
    return error.square().flatten(1).mean(dim=1) / batch["sigmas"].square()


def test_an_ideal_network_shows_the_ideal_rise() -> None:
    found = measure_binding(ideal_losses, make_binding_test(make_contrasts(400), encode, conditioned))
    scale = sum(sigma**-2 for sigma in SIGMAS) / len(SIGMAS)
    for kind, distance in (("near", 1.0), ("far", 9.0)):
        assert found[f"ideal/{kind}"] == pytest.approx(distance * scale, rel=0.05)
        assert found[f"rise/{kind}"] == pytest.approx(distance * scale, rel=0.05)
    assert found["binding/far"] == 1.0 > found["binding/near"] > 0.9


def test_a_network_that_reads_nothing_is_at_chance() -> None:
    def losses(batch: dict[str, Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(int(batch["means"].sum()))
        return torch.rand(len(batch["x0"]), generator=generator)

    found = measure_binding(losses, make_binding_test(make_contrasts(400), encode, conditioned))
    assert found["binding/far"] == pytest.approx(0.5, abs=0.08) and found["rise/far"] == pytest.approx(0, abs=0.05)


def test_scenes_give_contrasts_of_every_category_and_folders_none() -> None:
    source = SceneSource(SceneSettings(resolution=32).validation(4))
    contrasts = source.contrasts(2, alike=3)
    assert isinstance(source, ContrastingSource) and not issubclass(FolderSource, ContrastingSource)
    assert [contrast.kind for contrast in contrasts] == [category for category in CATEGORIES for _ in range(2)]
    for contrast, again in zip(contrasts, source.contrasts(2, alike=3), strict=True):
        assert contrast.right != contrast.wrong and len(contrast.like_right) == len(contrast.like_wrong) == 3
        assert (contrast.right, contrast.wrong) == (again.right, again.wrong)
        np.testing.assert_array_equal(contrast.picture, again.picture)


def test_what_is_alike_differs_in_the_wrong_point_alone() -> None:
    """If the colour is wrong, the same thing stands in the same place on the same background."""
    contrasts = SceneSource(SceneSettings(resolution=64).validation(4)).contrasts(4, alike=2)
    for contrast in contrasts:
        if contrast.kind == "color":
            for right, wrong in zip(contrast.like_right, contrast.like_wrong, strict=True):
                changed = (right != wrong).any(axis=2)
                assert 0 < changed.mean() < 0.9
                np.testing.assert_array_equal(right[~changed], wrong[~changed])


def test_the_flow_stage_measures_it_where_it_can(tiny_model: Path, tmp_path: Path) -> None:
    paths = [f"autoencoder={tiny_model / 'vae'}", f"text={tiny_model}", "cache=null"]

    def measured(*overrides: str) -> dict[str, float]:
        recipe = recipe_of(RECIPES / "debug" / "flow.yaml", *paths, *overrides)
        context = Context(torch.device("cpu"), 0, 1, tmp_path, lambda items, description, total: items)
        stage = FlowStage(recipe, context)
        return stage.metrics(stage.model.eval())

    found = measured()
    assert set(found) == {f"{name}/{kind}" for name in ("binding", "rise", "ideal") for kind in CATEGORIES}
    assert measured("contrasts=0") == {}
