"""The decoder's recipe (Sec. 3.2): an adversary in turn with the decoder, a borrowed encoder, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from support.recipes import RECIPES, metrics_of, recipe_of, run_recipe

from snapgen.config import RecipeError
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.discriminator import PatchDiscriminator
from snapgen.models.lpips import load_lpips
from snapgen.models.presets import create_autoencoder
from snapgen.train.stage import DISCRIMINATOR, Context
from snapgen.train.stages.autoencoder import AutoencoderStage, take_encoder


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_recipe("autoencoder", tmp_path_factory.mktemp("autoencoder"), "train.steps=1")


def make_stage(run: Path, *overrides: str) -> AutoencoderStage:
    recipe = recipe_of(RECIPES / "debug" / "decoder.yaml", *overrides)
    torch.manual_seed(0)
    return AutoencoderStage(recipe, Context(torch.device("cpu"), 0, 1, run, lambda items, description, total: items))


def sd3_vae(folder: Path, channels: tuple[int, ...] = (8, 8, 16, 16)) -> AutoencoderKL:
    """SD3's autoencoder in the width of the preset `debug`."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=create_autoencoder("debug").config.encoder_layers_per_block,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae.save_pretrained(folder / "vae")
    return vae


@pytest.mark.slow
def test_decoder_and_discriminator_learn_in_turn_and_the_encoder_stays(initial: Path, tmp_path: Path) -> None:
    model = run_recipe("decoder", tmp_path / "run", f"initial={initial}")
    before, after = (SnapGenAutoencoder.from_pretrained(path).state_dict() for path in (initial, model))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    names = {"loss", "mse", "gradient", "adversarial", "discriminator/loss", "discriminator/gap"}
    assert all(names <= line.keys() for line in metrics_of(tmp_path / "run"))


def test_the_losses_written_out(initial: Path, tmp_path: Path) -> None:
    stage = make_stage(tmp_path, f"initial={initial}", "weights={l1: 0, gradient: 0, mse: 2.0, adversarial: 0.3}")
    batch = stage.batch(0)
    with torch.no_grad():
        found, judged = (stage.turn_loss(turn, stage.model, batch) for turn in ("", DISCRIMINATOR))
        posterior = stage.model.autoencoder.encode(batch[0]).latent_dist
        drawn = stage.model.autoencoder.decode(posterior.mean + posterior.std * batch[1]).sample
        fake, real = stage.model.discriminator(drawn), stage.model.discriminator(batch[0])
    assert found["loss"].item() == pytest.approx((2 * (drawn - batch[0]).square().mean() - 0.3 * fake.mean()).item())
    versus = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    assert judged["loss"].item() == pytest.approx(versus.item())


@pytest.mark.slow
def test_lpips_is_added_and_teaches_the_decoder(initial: Path, vgg16: Path, tmp_path: Path) -> None:
    only = "weights={mse: 0, l1: 0, gradient: 0, lpips: 0.5, adversarial: 0}"
    stage = make_stage(tmp_path, f"initial={initial}", only, f"lpips_network={vgg16}")
    batch = stage.batch(0)
    found = stage.loss(stage.model, batch)
    reconstruction = stage.model(*batch)[0]
    expected = load_lpips("vgg", str(vgg16))(reconstruction.clamp(-1, 1), batch[0]).mean()
    assert found["loss"].item() == pytest.approx(0.5 * expected.item()) and found["lpips"] > 0
    found["loss"].backward()
    gradients = [p.grad for p in stage.model.autoencoder.decoder.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert all(p.grad is None for p in stage.lpips.parameters())


def test_each_turn_has_its_own_gradients(initial: Path, tmp_path: Path) -> None:
    stage = make_stage(tmp_path, f"initial={initial}")
    batch = stage.batch(0)
    stage.turn_loss(DISCRIMINATOR, stage.model, batch)["loss"].backward()
    assert all(p.grad is None for p in stage.model.autoencoder.parameters())
    assert all(p.grad is not None for p in stage.learners(DISCRIMINATOR))
    stage.turn_loss("", stage.model, batch)["loss"].backward()
    assert all(p.grad is not None for p in stage.model.autoencoder.decoder.parameters())
    assert all(p.grad is None for p in stage.model.autoencoder.encoder.parameters())


def test_a_logit_judges_a_patch_of_54_px() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator()
    for layer in network:
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = lambda x: x  # statistics of the whole picture reach every logit
    picture = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = network(picture)
    assert logits.shape == (1, 1, 16, 16)
    logits[0, 0, 8, 8].backward()
    rows = picture.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 54


def test_the_encoder_of_stable_diffusion_3_is_borrowed(tmp_path: Path) -> None:
    vae = sd3_vae(tmp_path)
    autoencoder = create_autoencoder("debug")
    take_encoder(autoencoder, str(tmp_path))
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = vae.encode(pictures).latent_dist.mean
        torch.testing.assert_close(autoencoder.encode(pictures).latent_dist.mean, theirs)
        torch.testing.assert_close(autoencoder.normalize(theirs), (theirs - 0.0609) * 1.5305)
    stage = make_stage(tmp_path, "initial=null", f"encoder={tmp_path / 'vae'}")
    assert not any(p.requires_grad for p in stage.model.autoencoder.encoder.parameters())


def test_refusals_are_one_line(initial: Path, tmp_path: Path) -> None:
    def refused(message: str, *overrides: Any) -> None:
        with pytest.raises(RecipeError, match=message) as error:
            make_stage(tmp_path, *overrides)
        assert "\n" not in str(error.value)

    refused("train_encoder: false needs initial or encoder", "initial=null")
    refused("choose one", f"initial={initial}", "encoder=somewhere")
    refused("encoder: .* does not give the encoder", "initial=null", f"encoder={tmp_path}")
    sd3_vae(tmp_path, (8, 16, 16, 16))
    refused("encoder: .* does not give the encoder", "initial=null", f"encoder={tmp_path}")
    # Tests are offline, so the hub has nothing
    missing = "lpips_network: weights.lpips needs VGG-16's weights: `hf download timm/vgg16.tv_in1k model.safetensors"
    refused(missing, f"initial={initial}", "weights.lpips=1")
    refused(
        f"{missing}.*holds no model.safetensors", f"initial={initial}", "weights.lpips=1", f"lpips_network={tmp_path}"
    )
