"""Which decoder of 1.38 M parameters and 224 GMACs: latency and reconstruction at equal training.

    python benchmarks/decoder_search.py [--steps 150] [--out benchmarks/results]

From the plainest reading of Sec. 3.2 (residual blocks of two separable convolutions, SiLU, nearest-neighbour
upsampling before a separable convolution) step by step to the make of this package; decoder_shapes.py asks where its
blocks belong. Every candidate has the paper's parameters (within 2 %) and MACs (within 3 %). Its latency is that of
one 1024 px picture, the candidates taking turns, with TAESD3's decoder for comparison. It is then trained behind the
bundled miniature's frozen encoder, on the same 64 px patches of scenes in the same order with the same seed, and
scored on whole held-out pictures: PSNR, and the error of a picture's mean colour, which is what leaving out norms is
said to cost. Needs the emoji font. Writes decoder_search_STEPS.json and .md; at full size the comparison would need
SD3's encoder and photographs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from shared import machine_facts, make_parser, page, write_results
from torch import Tensor, nn

from snapgen.losses.reconstruction import gradient_loss, psnr
from snapgen.machine.counting import count
from snapgen.machine.memory import keep_freed_memory
from snapgen.messages import markdown_table
from snapgen.models.autoencoder import SnapGenAutoencoder, SubPixelUpsample, TinyDecoder
from snapgen.models.layers import RESIDUAL_GAIN, SeparableConv2d, Upsample, pointwise
from snapgen.models.presets import create_autoencoder
from snapgen.pictures import random_crop, to_tensor
from snapgen.pipeline.text_to_image import SnapGenPipeline
from snapgen.world.source import SceneSettings, SceneSource


@dataclass(frozen=True)
class Candidate:
    """A decoder's shape and make."""

    widths: tuple[int, ...]  # from low to high resolution
    blocks: tuple[int, ...]  # at each
    expansion: int = 2
    depthwise: int = 2  # 3x3 convolutions in a block: before the expansion and, of two, before the projection
    activations: int = 2  # in a block: the first at its start, the last after the expansion
    activation: type[nn.Module] = nn.SiLU
    upsample: str = "nearest"  # or "subpixel", or "alike": the four pixels of a position start alike
    norms: str = "first"  # which blocks of a stage have a GroupNorm: "first", "all" or "none"


CHOSEN = "the package's"  # by benchmarks/decoder_shapes.py
PEER = "TAESD3"
PLAIN = Candidate((256, 224, 192, 96), (2, 1, 3, 1))
TWO = Candidate((256, 160, 224, 64), (1, 1, 3, 1), activations=1, activation=nn.ReLU, upsample="subpixel")
ONE = Candidate((192, 224, 192, 64), (1, 1, 4, 1), depthwise=1, activations=1, activation=nn.ReLU, upsample="subpixel")
CANDIDATES: dict[str, Candidate] = {
    "the plainest": PLAIN,
    "no norms": replace(PLAIN, norms="none"),
    "a norm in every block": replace(PLAIN, norms="all"),
    "thin at the top": Candidate((192, 192, 192, 64), (4, 1, 3, 3)),
    "not expanded: many blocks": Candidate((320, 224, 192, 128), (3, 2, 4, 2), expansion=1),
    "ReLU": replace(PLAIN, activation=nn.ReLU),
    "sub-pixel and one ReLU": TWO,
    "the same: pixels alike at first": replace(TWO, upsample="alike"),
    "one depthwise convolution": ONE,
    "one of them, and pixels alike": replace(ONE, upsample="alike"),
    CHOSEN: replace(ONE, widths=(224, 224, 192, 160), blocks=(2, 1, 1, 1), upsample="alike"),
}


class Block(nn.Sequential):
    """The residual block of a candidate."""

    def __init__(self, channels: int, shape: Candidate, groups: int | None):
        hidden = shape.expansion * channels
        last = (SeparableConv2d if shape.depthwise == 2 else pointwise)(hidden, channels, gain=RESIDUAL_GAIN)
        super().__init__(
            nn.GroupNorm(groups, channels, eps=1e-6) if groups else nn.Identity(),
            shape.activation() if shape.activations == 2 else nn.Identity(),
            SeparableConv2d(channels, hidden),
            shape.activation(inplace=True),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """B C H W -> B C H W."""
        return super().forward(x).add_(x)


def upsample(channels: int, next_channels: int, kind: str) -> nn.Module:
    """The layer between two stages."""
    if kind == "nearest":
        return Upsample(channels, next_channels)
    if kind == "alike":
        return SubPixelUpsample(channels, next_channels)
    return nn.Sequential(SeparableConv2d(channels, 4 * next_channels), nn.PixelShuffle(2))


def build(name: str) -> nn.Sequential | TinyDecoder:
    """The candidate `name`, seeded."""
    torch.manual_seed(0)
    if name == CHOSEN:
        return create_autoencoder("decoder").decoder
    return assemble(CANDIDATES[name])


def assemble(shape: Candidate) -> nn.Sequential:
    """A decoder of that shape and make."""
    layers: list[nn.Module] = [SeparableConv2d(16, shape.widths[0])]
    for width, following, blocks in zip(shape.widths, (*shape.widths[1:], None), shape.blocks, strict=True):
        normed = {"first": 1, "all": blocks, "none": 0}[shape.norms]
        layers += [Block(width, shape, 32 if index < normed else None) for index in range(blocks)]
        if following:
            layers.append(upsample(width, following, shape.upsample))
    return nn.Sequential(*layers, shape.activation(), SeparableConv2d(shape.widths[-1], 3))


def channels_last(network: nn.Module) -> nn.Module:
    """`network` in evaluation mode with its kernels channels-last."""
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def latencies(names: list[str], latent: int, repeats: int) -> dict[str, float]:
    """Median seconds of decoding one latent, of the candidates and the peer."""
    decoders: dict[str, nn.Module] = {name: build(name) for name in names}
    decoders[PEER] = AutoencoderTiny(latent_channels=16).decoder
    return time_in_turn(decoders, latent, repeats)


@torch.no_grad()
def time_in_turn(
    networks: dict[str, nn.Module], latent: int, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of decoding one latent in bf16, the networks taking turns; the first turn does not count."""
    decoders = {name: channels_last(network).bfloat16() for name, network in networks.items()}
    z = torch.randn(1, 16, latent, latent, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in decoders}
    keep_freed_memory()
    for _ in range(repeats + 1):
        for name, decoder in decoders.items():
            started = clock()
            decoder(z)
            times[name].append(clock() - started)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


class Data:
    """Patches and their latents, the same for every candidate, and held-out pictures."""

    def __init__(self, vae: SnapGenAutoencoder, steps: int, batch: int, held_out: int) -> None:
        source = SceneSource(SceneSettings(split="all", count=steps * batch + held_out))
        pictures = (source.image(index) for index in range(steps * batch + held_out))
        patches = [random_crop(next(pictures), 64, (0, index)) for index in range(steps * batch)]
        self.batches = [self._pair(vae, patches[i : i + batch]) for i in range(0, len(patches), batch)]
        self.held_out = self._pair(vae, list(pictures))

    @staticmethod
    @torch.no_grad()
    def _pair(vae: SnapGenAutoencoder, pictures: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        target = to_tensor(pictures)
        latents = [vae.encode(part, return_dict=False)[0].mode() for part in target.split(16)]
        return vae.normalize(torch.cat(latents)).contiguous(memory_format=torch.channels_last), target


def train(decoder: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """AdamW with a linear warm-up and a cosine, on the losses of the miniature's recipe."""
    steps = len(batches)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    for latents, target in batches:
        with torch.autocast("cpu", torch.bfloat16):
            picture = decoder(latents)
        picture = picture.float()
        loss = F.mse_loss(picture, target) + 0.5 * F.l1_loss(picture, target) + 0.5 * gradient_loss(picture, target)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def score(decoder: nn.Module, data: Data) -> dict[str, float]:
    """PSNR in dB and the error of the mean colour in 1/255, both means over held-out pictures."""
    latents, target = data.held_out
    picture = torch.cat([decoder(part) for part in latents.split(16)])
    colour = (picture.clamp(-1, 1) - target).mean(dim=(2, 3)).abs().mean().item()
    return {"psnr": psnr(picture, target).mean().item(), "colour_error": 127.5 * colour}


def search(names: list[str], data: Data, seconds: dict[str, float]) -> Iterator[dict[str, Any]]:
    """A row of the table for each candidate."""
    for name in names:
        with torch.device("meta"):
            network, z = build(name), torch.empty(1, 16, 128, 128)
            counts = count(network, lambda: network(z))  # noqa: B023
        decoder = channels_last(build(name)).train()
        train(decoder, data.batches)
        shape = asdict(CANDIDATES[name]) | {"activation": CANDIDATES[name].activation.__name__}
        row = {"name": name, **shape, "parameters": counts.parameters, "macs": counts.macs, "latency_s": seconds[name]}
        yield row | score(decoder, data)


def table(report: dict[str, Any]) -> str:
    """The rows as Markdown."""
    heads = ("candidate", "widths", "blocks", "expansion", "depthwise", "activations", "upsampling", "norms")
    measured = ("parameters", "GMACs", "latency", "PSNR", "colour error")
    heading = (
        f"{report['device']}, {report['threads']} threads, bf16; {report['steps']} steps of {report['batch']} patches; "
        f"TAESD3's decoder takes {report['peer_latency_s']:.2f} s"
    )
    cells = [
        [
            row["name"],
            ", ".join(map(str, row["widths"])),
            ", ".join(map(str, row["blocks"])),
            str(row["expansion"]),
            str(row["depthwise"]),
            f"{row['activations']} {row['activation']}",
            row["upsample"],
            row["norms"],
            f"{row['parameters'] / 1e6:.3f} M",
            f"{row['macs'] / 1e9:.1f}",
            f"{row['latency_s']:.2f} s",
            f"{row['psnr']:.2f} dB",
            f"{row['colour_error']:.2f}",
        ]
        for row in report["rows"]
    ]
    return page(__file__, heading, markdown_table((*heads, *measured), cells))


def main() -> None:
    """Search, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="names of candidates, separated by commas")
    parser.add_argument("--training-threads", type=int, help="where others work beside; latency always takes all")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(CANDIDATES)
    seconds = latencies(names, 128, options.repeats)
    print("  ".join(f"{name} {value:.2f} s" for name, value in seconds.items()), file=sys.stderr, flush=True)
    data = Data(SnapGenPipeline.bundled().vae, options.steps, options.batch, 64)
    machine = machine_facts()
    if options.training_threads:
        torch.set_num_threads(options.training_threads)
    rows = []
    for row in search(names, data, seconds):
        rows.append(row)
        print(f"{row['name']:34} {row['latency_s']:.2f} s  {row['psnr']:.2f} dB", file=sys.stderr, flush=True)
    report = machine | {"steps": options.steps, "batch": options.batch, "rows": rows}
    report["peer_latency_s"] = seconds[PEER]
    write_results(options.out / f"decoder_search_{options.steps}", report, table(report))


if __name__ == "__main__":
    main()
