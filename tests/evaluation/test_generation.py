"""The pictures that suites score: what they are sampled with, and what the report says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import AutoencoderTiny
from PIL import Image

from snapgen.evaluation import EvaluationSettings
from snapgen.evaluation.generation import Request, generate_pictures, identity_of, make_manifest
from snapgen.evaluation.report import origin
from snapgen.pipeline.load import load_pipeline
from snapgen.pipeline.text_to_image import SnapGenPipeline


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> SnapGenPipeline:
    pipeline = load_pipeline(str(tiny_model))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampled(pipeline: SnapGenPipeline, folder: Path, **settings: Any) -> tuple[dict[str, Any], np.ndarray]:
    """The manifest, and one picture."""
    manifest = make_manifest("fid", pipeline, EvaluationSettings(steps=4, **settings), [0], ["a cat"])
    (file,) = generate_pictures(pipeline, [Request("cat", "a cat", 0)], folder, manifest, lambda text: None)
    return manifest, np.asarray(Image.open(file))


def test_a_model_with_an_autoencoder_of_diffusers_is_scored(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = SnapGenPipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    channels = (8,) * 4
    pipeline.vae = AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=channels, decoder_block_out_channels=channels
    )
    manifest, picture = sampled(pipeline, tmp_path)
    assert manifest["side"] == 32 and picture.shape == (32, 32, 3)


def test_guidance_acts_within_its_interval_and_the_report_says_so(pipeline: SnapGenPipeline, tmp_path: Path) -> None:
    without = sampled(pipeline, tmp_path / "plain", guidance=1.0)[1]
    always, guided = sampled(pipeline, tmp_path / "guided", guidance=8.0)
    unguided = sampled(pipeline, tmp_path / "never", guidance=8.0, guidance_interval=(0.0, 0.1))[1]
    partly, between = sampled(pipeline, tmp_path / "partly", guidance=8.0, guidance_interval=(0.1, 0.8))
    assert np.array_equal(unguided, without)  # no step of the four is at so low a level
    assert not np.array_equal(guided, without)
    assert not np.array_equal(between, without) and not np.array_equal(between, guided)

    assert "guidance_interval" not in always
    assert identity_of(always).keys() == {"model_sha256", "steps", "guidance", "side"}  # as in older folders
    assert partly["guidance_interval"] == [0.1, 0.8] and identity_of(partly)["guidance_interval"] == [0.1, 0.8]
    assert origin(partly).startswith("4 steps, guidance 8.0 at noise levels from 0.1 to 0.8, 32 px")
    with pytest.raises(ValueError, match="other settings"):
        sampled(pipeline, tmp_path / "guided", guidance=8.0, guidance_interval=(0.1, 0.8))
    with pytest.raises(ValueError, match="other settings"):
        sampled(pipeline, tmp_path / "partly", guidance=8.0, guidance_interval=(0.1, 0.7))
