"""SnapGen's networks beside those of its peers, in one run on one machine: latency, MACs, memory.

    python benchmarks/peers.py [--sizes 512,1024] [--dtype bfloat16] [--device cpu] [--out benchmarks/results]

Every network has its published configuration and random weights, and runs in a process of its own, so that one that
does not fit in memory ends alone and says so. A denoiser is timed on one step of one picture without guidance, under
as much text as its pipeline gives it; a decoder on one picture. All are channels-last in the same precision. On CUDA
also the pictures a second of 28 guided steps and the decoding, at the largest batch that fits.
Writes peers_<device>.json, .md and .png.
"""

from __future__ import annotations

import json
import sys
from argparse import SUPPRESS
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DreamLiteUNetModel,
    HunyuanDiT2DModel,
    PixArtTransformer2DModel,
    PRXTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from matplotlib.figure import Figure
from shared import in_own_process, machine_facts, make_parser, page, write_results
from torch import nn

from snapgen.machine.counting import count
from snapgen.messages import markdown_table
from snapgen.models.presets import create_autoencoder, create_unet
from snapgen.profiling.measure import Conditions, measure, random_network

STEPS = 28
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A network to compare: how to build it, and the inputs of one call for a batch of pictures of `size` pixels."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]  # batch, size in pixels
    decoder: bool = False


def normal(*shape: int) -> torch.Tensor:
    """Noise on the default device."""
    return torch.randn(*shape)


def sana(layers: int, width: int, cross_heads: int, **more: Any) -> SanaTransformer2DModel:
    """Sana's transformer: Efficient-Large-Model/Sana_600M_1024px_diffusers, Sana_1600M_1024px_diffusers."""
    return SanaTransformer2DModel(
        num_layers=layers,
        num_attention_heads=width // 32,
        attention_head_dim=32,
        num_cross_attention_heads=cross_heads,
        cross_attention_head_dim=width // cross_heads,
        cross_attention_dim=width,
        caption_channels=2304,
        sample_size=32,
        **more,
    )


def dreamlite() -> DreamLiteUNetModel:
    """DreamLite's UNet (ByteDance, 2026): carlofkl/DreamLite-mobile, in its repository modules/dreamlite.json.

    Its widths, layers and attention are those of the SnapGen paper.
    """
    return DreamLiteUNetModel(
        sample_size=128,
        block_out_channels=(256, 512, 896),
        transformer_layers_per_block=(1, 2, 4),
        attention_head_dim=(4, 8, 14),  # heads
        cross_attention_dim=2304,
        encoder_hid_dim=2048,
        encoder_hid_dim_type="text_proj_rms",
        ff_mult=3,
        use_linear_projection=True,
        addition_embed_type="time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=512,
    )


def dreamlite_inputs(batch: int, size: int) -> Inputs:
    """The inputs of DreamLite: its pipelines put a source picture, or zeros for none, beside the latent."""
    inputs = text_input("sample", 4, 8, 200, 2048, added_cond_kwargs={"time_ids": (2,)})(batch, size)
    inputs["sample"] = normal(batch, 4, size // 8, 2 * (size // 8))
    return inputs


def hunyuan() -> HunyuanDiT2DModel:
    """Hunyuan-DiT's transformer: Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers."""
    return HunyuanDiT2DModel(
        sample_size=128,
        in_channels=4,
        patch_size=2,
        hidden_size=1408,
        num_layers=40,
        num_attention_heads=16,
        attention_head_dim=88,
        mlp_ratio=4.3637,
        use_style_cond_and_image_meta_size=False,
    )


def hunyuan_inputs(batch: int, size: int) -> Inputs:
    """The inputs of Hunyuan-DiT: states of two text encoders with their masks, and rotary embeddings."""
    tokens = (size // 16) ** 2
    more = {
        "text_embedding_mask": (77,),
        "encoder_hidden_states_t5": (256, 2048),
        "text_embedding_mask_t5": (256,),
    }
    rotary = (normal(tokens, 88), normal(tokens, 88))
    return text_input("hidden_states", 4, 8, 77, 1024, **more)(batch, size) | {"image_rotary_emb": rotary}


def kl_decoder(latent_channels: int) -> nn.Module:
    """The decoder of SD3's (16 latent channels) or SDXL's (4) autoencoder."""
    return AutoencoderKL(
        latent_channels=latent_channels,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).decoder


def dc_decoder() -> nn.Module:
    """The decoder of Sana's autoencoder, mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers."""
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    scales = ((),) * 3 + ((5,),) * 3
    widths = (128, 256, 512, 512, 1024, 1024)
    return AutoencoderDC(
        latent_channels=32,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        decoder_layers_per_block=(3,) * 6,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    ).decoder


def latent_input(name: str, channels: int, factor: int) -> Callable[[int, int], Inputs]:
    """The input of a decoder."""
    return lambda batch, size: {name: normal(batch, channels, size // factor, size // factor)}


def text_input(name: str, channels: int, factor: int, tokens: int, width: int, **more: Any) -> Callable[..., Inputs]:
    """The inputs of a denoiser: the latent called `name`, the timestep, text states, and `more`.

    `more` holds shapes without the batch, None, or dictionaries of these.
    """

    def filled(value: Any, batch: int) -> Any:
        if isinstance(value, dict):
            return {key: filled(part, batch) for key, part in value.items()}
        return value if value is None else normal(batch, *value)

    def inputs(batch: int, size: int) -> Inputs:
        latent = normal(batch, channels, size // factor, size // factor)
        states, timestep = normal(batch, tokens, width), torch.full((batch,), 500.0)
        return {name: latent, "timestep": timestep, "encoder_hidden_states": states} | filled(more, batch)

    return inputs


# Text tokens as each pipeline makes them: CLIP 77; SD3 and Hunyuan-DiT 77 + 256 of T5; PixArt-Sigma and Sana 300; PRX
# 256; DreamLite at most 200; ours 77 + 300.
PEERS = {
    "SnapGen": Peer(lambda: create_unet("t2i"), text_input("sample", 16, 8, 377, 2304)),
    # The pipeline leaves out what no prompt attends to: a prompt of twenty words has this many tokens in all.
    "SnapGen (48 tokens)": Peer(lambda: create_unet("t2i"), text_input("sample", 16, 8, 48, 2304)),
    "SD-1.5": Peer(
        lambda: UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
        ),
        text_input("sample", 4, 8, 77, 768),
    ),
    "SDXL": Peer(
        lambda: UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        ),
        text_input("sample", 4, 8, 77, 2048, added_cond_kwargs={"text_embeds": (1280,), "time_ids": (6,)}),
    ),
    "SD3-Medium": Peer(
        lambda: SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        ),
        text_input("hidden_states", 16, 8, 333, 4096, pooled_projections=(2048,)),
    ),
    "PixArt-Sigma": Peer(
        lambda: PixArtTransformer2DModel(caption_channels=4096, interpolation_scale=2, use_additional_conditions=False),
        text_input("hidden_states", 4, 8, 300, 4096, added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    ),
    "Sana-0.6B": Peer(lambda: sana(28, 1152, 16), text_input("hidden_states", 32, 32, 300, 2304)),
    "Sana-1.6B": Peer(lambda: sana(20, 2240, 20), text_input("hidden_states", 32, 32, 300, 2304)),
    "Sana-Sprint-0.6B": Peer(  # Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers
        lambda: sana(28, 1152, 16, guidance_embeds=True, qk_norm="rms_norm_across_heads"),
        text_input("hidden_states", 32, 32, 300, 2304, guidance=()),
    ),
    "DreamLite": Peer(dreamlite, dreamlite_inputs),
    "PRX": Peer(  # Photoroom/prx-512-t2i: the class's defaults, as in diffusers' scripts/convert_prx_to_diffusers.py
        PRXTransformer2DModel, text_input("hidden_states", 16, 8, 256, 2304)
    ),
    "Hunyuan-DiT": Peer(hunyuan, hunyuan_inputs),
    "SnapGen decoder": Peer(lambda: create_autoencoder("decoder").decoder, latent_input("latent", 16, 8), True),
    "SD3 decoder": Peer(lambda: kl_decoder(16), latent_input("sample", 16, 8), True),
    "SDXL decoder": Peer(lambda: kl_decoder(4), latent_input("sample", 4, 8), True),
    "Sana DC-AE decoder": Peer(dc_decoder, latent_input("hidden_states", 32, 32), True),
    "TAESD3 decoder": Peer(lambda: AutoencoderTiny(latent_channels=16).decoder, latent_input("x", 16, 8), True),
}
THROUGHPUT = {  # denoiser: the decoder that completes it
    "SnapGen": "SnapGen decoder",
    "Sana-0.6B": "Sana DC-AE decoder",
    "Sana-1.6B": "Sana DC-AE decoder",
    "SDXL": "SDXL decoder",
}


def place(inputs: Inputs, conditions: Conditions) -> Inputs:
    """`inputs` where and in the precision that `conditions` say, maps channels-last."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: move(part) for name, part in value.items()}
        if isinstance(value, tuple):
            return tuple(move(part) for part in value)
        if value is None:
            return None
        value = value.to(conditions.device, conditions.dtype)
        return value.to(memory_format=torch.channels_last) if value.dim() == 4 else value

    return {name: move(value) for name, value in inputs.items()}


def measure_peer(name: str, size: int, conditions: Conditions, peers: dict[str, Peer] = PEERS) -> dict[str, Any]:
    """Counts and measurement of one call of `name` for one picture."""
    peer = peers[name]
    with torch.device("meta"):
        counted, inputs = peer.build(), peer.inputs(1, size)
        counts = count(counted, lambda: counted(**inputs))
    network, given = random_network(peer.build, conditions), place(peer.inputs(1, size), conditions)
    if conditions.device == "cuda":
        network.compile(dynamic=False)
    measured = measure(network, lambda: network(**given), conditions)
    return {"parameters": counts.parameters, "macs": counts.macs} | measured.model_dump()


def throughput(name: str, size: int, conditions: Conditions, peers: dict[str, Peer] = PEERS) -> dict[str, Any]:
    """Pictures a second of 28 guided steps and the decoding, at the largest power-of-two batch that fits."""
    conditions = replace(conditions, repeats=max(3, conditions.repeats))
    best: dict[str, Any] = {}
    batch = 1
    while batch <= 256:
        try:
            seconds = 0.0
            for part, calls, copies in ((name, STEPS, 2), (THROUGHPUT[name], 1, 1)):
                network = random_network(peers[part].build, conditions)
                network.compile(dynamic=False)
                given = place(peers[part].inputs(copies * batch, size), conditions)
                seconds += calls * measure(network, lambda: network(**given), conditions).median_s  # noqa: B023
        except torch.OutOfMemoryError:
            break
        best = {"batch": batch, "images_per_second": batch / seconds}
        batch *= 2
    return best


def main() -> None:
    """Measure each network in a process of its own; write the results."""
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", default="512,1024", help="pixels a side, multiples of 32")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--inside", help=SUPPRESS)  # the network that this process measures
    options = parser.parse_args()
    conditions = Conditions(options.device, getattr(torch, options.dtype), options.repeats)
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.inside:
        result = measure_peer(options.inside, sizes[0], conditions)
        if options.device == "cuda" and options.inside in THROUGHPUT and sizes[0] == 1024:
            result |= throughput(options.inside, sizes[0], conditions)
        print(json.dumps(result))
        return
    names = options.only.split(",") if options.only else list(PEERS)
    results = [outside(name, size, sys.argv[1:]) for size in sizes for name in names]
    report = machine_facts(options.device) | {"dtype": options.dtype, "results": results}
    write_results(options.out / f"peers_{options.device}", report, table(report), plot(report))


def outside(name: str, size: int, arguments: list[str]) -> dict[str, Any]:
    """`measure_peer` in a process that the system ends first when memory is short; its result or its failure."""
    result: dict[str, Any] = {"name": name, "size": size, "decoder": PEERS[name].decoder}
    result |= in_own_process(__file__, *arguments, "--inside", name, "--sizes", str(size))
    shown = result.get("failure") or f"{result['median_s']:8.2f} s"
    print(f"{size} px  {name:20} {shown}", file=sys.stderr, flush=True)
    return result


def table(report: dict[str, Any]) -> str:
    """The results as Markdown, ours first, with each one's latency relative to ours."""
    heading = (
        f"{report['device']}, {report['threads']} CPU threads, {report['dtype']}, torch {report['versions']['torch']}"
    )
    lines: list[str] = []
    for decoder in (False, True):
        kind = "decoder" if decoder else "denoiser, one step without guidance"
        columns = (kind, "pixels", "parameters", "MACs", "latency", "to ours", "activations", "images/s (batch)")
        rows = [result for result in report["results"] if result["decoder"] == decoder]
        name = "SnapGen decoder" if decoder else "SnapGen"
        ours = {row["size"]: row.get("median_s") for row in rows if row["name"] == name}
        cells = []
        for row in rows:
            start = [row["name"], str(row["size"])]
            if "failure" in row:
                cells.append([*start, row["failure"], *[""] * (len(columns) - 3)])
                continue
            ratio = f"{row['median_s'] / ours[row['size']]:.2f}x" if ours.get(row["size"]) else ""
            rate = f"{row['images_per_second']:.2f} ({row['batch']})" if "batch" in row else ""
            measured = [
                f"{row['parameters'] / 1e6:.1f} M",
                f"{row['macs'] / 1e9:.0f} G",
                f"{row['median_s']:.2f} s",
                ratio,
                f"{row['activation_bytes'] / 2**20:.0f} MiB",
                rate,
            ]
            cells.append([*start, *measured])
        lines += ["", *markdown_table(columns, cells)]
    return page(__file__, heading, lines[1:])


def plot(report: dict[str, Any]) -> Figure:
    """Latency of every network, a panel a size and kind, ours in colour."""
    sizes = sorted({row["size"] for row in report["results"]})
    figure = Figure(figsize=(10, 2.6 * len(sizes)), dpi=130, layout="constrained")
    grid = figure.subplots(len(sizes), 2, squeeze=False)
    for axes_row, size in zip(grid, sizes, strict=True):
        for axes, decoder in zip(axes_row, (False, True), strict=True):
            rows = [
                row
                for row in report["results"]
                if row["size"] == size and row["decoder"] == decoder and "median_s" in row
            ][::-1]
            colours = ["tab:orange" if row["name"].startswith("SnapGen") else "tab:blue" for row in rows]
            bars = axes.barh([row["name"] for row in rows], [row["median_s"] for row in rows], color=colours)
            axes.bar_label(bars, fmt="{:.2f} s", fontsize=7)
            axes.set_title(f"{'decoding' if decoder else 'one step'}, {size} px", fontsize=9)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report['device']}, {report['threads']} CPU threads, {report['dtype']}", fontsize=9)
    return figure


if __name__ == "__main__":
    main()
