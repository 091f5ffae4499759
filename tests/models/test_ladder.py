"""The rungs of Fig. 2-3: rung (a) against diffusers' own UNet, every step's change against the paper's."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from snapgen.models.presets import RUNGS
from snapgen.models.unet import SnapGenUNet

Tensors = dict[str, torch.Tensor]
STAGES, LAYERS = 3, 2


def thinned_sdxl(widths: tuple[int, int, int], context_width: int, time_width: int) -> UNet2DConditionModel:
    """Diffusers' UNet shaped as SDXL's, with the paper's depths; without SDXL's extra conditions."""
    return UNet2DConditionModel(
        in_channels=16,
        out_channels=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=LAYERS,
        transformer_layers_per_block=[1, 2, 4],
        attention_head_dim=[width // 64 for width in widths],  # diffusers' name for the number of heads
        cross_attention_dim=context_width,
        use_linear_projection=True,
        time_embedding_dim=time_width,
    )


def renamed(theirs: Tensors) -> Tensors:
    """The state dict of `thinned_sdxl` under this package's names; keys and values become one matrix."""
    ours: Tensors = {}

    def copy(source: str, target: str) -> None:
        for kind in ("weight", "bias"):
            if f"{source}.{kind}" in theirs:
                ours[f"{target}.{kind}"] = theirs[f"{source}.{kind}"]

    def residual(source: str, target: str) -> None:
        for name in ("norm1", "conv1", "norm2", "conv2"):
            copy(f"{source}.{name}", f"{target}.{name}")
        copy(f"{source}.time_emb_proj", f"{target}.time_proj")
        copy(f"{source}.conv_shortcut", f"{target}.shortcut")

    def transformer(source: str, target: str) -> None:
        for name in ("norm", "proj_in", "proj_out"):
            copy(f"{source}.{name}", f"{target}.{name}")
        depth = len(
            {key.split(".transformer_blocks.")[1].split(".")[0] for key in theirs if key.startswith(f"{source}.tr")}
        )
        for index in range(depth):
            block, layer = f"{source}.transformer_blocks.{index}", f"{target}.layers.{index}"
            for name in ("norm1", "norm2", "norm3"):
                copy(f"{block}.{name}", f"{layer}.{name}")
            for name in ("attn1", "attn2"):
                copy(f"{block}.{name}.to_q", f"{layer}.{name}.to_q")
                copy(f"{block}.{name}.to_out.0", f"{layer}.{name}.to_out")
                key, value = theirs[f"{block}.{name}.to_k.weight"], theirs[f"{block}.{name}.to_v.weight"]
                ours[f"{layer}.{name}.to_kv.weight"] = torch.cat([key, value])
            copy(f"{block}.ff.net.0.proj", f"{layer}.ffn.proj_in")
            copy(f"{block}.ff.net.2", f"{layer}.ffn.proj_out")

    for name in ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"):
        copy(name, name)
    copy("conv_norm_out", "norm_out")
    for side, count in (("down", LAYERS), ("up", LAYERS + 1)):
        for stage in range(STAGES):
            copy(f"{side}_blocks.{stage}.{side}samplers.0.conv", f"{side}samplers.{stage}.conv")
            for index in range(count):
                residual(f"{side}_blocks.{stage}.resnets.{index}", f"{side}.{stage}.{index}.residual")
                transformer(f"{side}_blocks.{stage}.attentions.{index}", f"{side}.{stage}.{index}.transformer")
    residual("mid_block.resnets.0", "mid.residual")
    transformer("mid_block.attentions.0", "mid.transformer")
    residual("mid_block.resnets.1", "mid_residual")
    return ours


def test_rung_a_is_the_unet_of_diffusers() -> None:
    torch.manual_seed(0)
    widths, context_width, time_width = (64, 64, 128), 48, 64
    theirs = thinned_sdxl(widths, context_width, time_width).eval()
    shape = {"block_out_channels": widths, "cross_attention_dim": context_width, "time_embedding_dim": time_width}
    ours = SnapGenUNet(**(RUNGS["a"] | shape)).eval()
    ours.load_state_dict(renamed(theirs.state_dict()))  # strict: the same parameters, none left over
    x, timestep, states = torch.randn(2, 16, 16, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 7, context_width)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, timestep, states).sample, theirs(x, timestep, states).sample)


def counts(configuration: dict[str, Any]) -> tuple[int, float]:
    """Parameters, and MACs for a 128x128 latent."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet = SnapGenUNet(**configuration)
        unet(torch.empty(1, 16, 128, 128), torch.tensor(1.0), torch.empty(1, 77, configuration["cross_attention_dim"]))
    return sum(parameter.numel() for parameter in unet.parameters()), counter.get_total_flops() / 2


@pytest.fixture(scope="module")
def ladder() -> dict[str, tuple[int, float]]:
    return {name: counts(configuration) for name, configuration in RUNGS.items()}


@pytest.mark.slow
def test_rung_a_at_full_size_has_the_parameters_of_diffusers(ladder: dict[str, tuple[int, float]]) -> None:
    with torch.device("meta"):
        theirs = thinned_sdxl((256, 512, 896), 768, 512)
    assert ladder["a"][0] == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "what", "percent"),
    [
        ("a", "b", "macs", -17),
        ("b", "c0", "parameters", -24),
        ("b", "c", "parameters", -15),
        ("b", "c", "macs", -27),
        ("c", "d", "parameters", -12),
        ("c", "d", "macs", -12),
        ("d", "e1", "parameters", -16),
        ("d", "e1", "macs", -6),
    ],
)
def test_each_step_changes_as_in_the_paper(
    ladder: dict[str, tuple[int, float]], before: str, after: str, what: str, percent: float
) -> None:
    index = ("parameters", "macs").index(what)
    change = 100 * (ladder[after][index] / ladder[before][index] - 1)
    assert change == pytest.approx(percent, abs=2)  # percentage points


@pytest.mark.slow
def test_conditions_from_the_first_stage_do_not_add_parameters(ladder: dict[str, tuple[int, float]]) -> None:
    assert ladder["e"][0] <= ladder["e1"][0]


@pytest.mark.slow
def test_norms_and_rotary_embedding_are_about_free(ladder: dict[str, tuple[int, float]]) -> None:
    assert ladder["f"][0] <= 1.005 * ladder["e"][0]
    assert ladder["f"][1] <= 1.005 * ladder["e"][1]
