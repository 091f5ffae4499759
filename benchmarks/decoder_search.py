"""Which decoder of 1.38 M parameters and 224 GMACs: latency and reconstruction at equal training.

    python benchmarks/decoder_search.py [--steps 300] [--out benchmarks/results]

Every candidate has the paper's parameters (within 2 %) and MACs (within 3 %). Its latency is that of one 1024 px
picture, the candidates taking turns. It is then trained behind the bundled miniature's frozen encoder, on the same
64 px patches of scenes in the same order with the same seed, and scored on whole held-out pictures: PSNR, and the
error of a picture's mean colour, which is what leaving out norms is said to cost. Needs the emoji font. Writes
decoder_search.json and .md; at full size the comparison would need SD3's encoder and photographs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snapgen.data.pictures import random_crop, to_tensor
from snapgen.data.scenes import SceneSettings, SceneSource
from snapgen.losses.reconstruction import gradient_loss, psnr
from snapgen.models.autoencoder import SnapGenAutoencoder, TinyBlock, TinyDecoder
from snapgen.pipeline import SnapGenPipeline
from snapgen.profiling.counts import count
from snapgen.profiling.measure import device_name
from snapgen.weights import atomic_file

# name: widths from low to high resolution, blocks at each, expansion, blocks with a GroupNorm
CANDIDATES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, str]] = {
    "wide above, few blocks": ((256, 224, 192, 96), (2, 1, 3, 1), 2, "first"),
    "the same, no norms": ((256, 224, 192, 96), (2, 1, 3, 1), 2, "none"),
    "the same, a norm in every block": ((256, 224, 192, 96), (2, 1, 3, 1), 2, "all"),
    "not expanded, many blocks": ((320, 224, 192, 128), (3, 2, 4, 2), 1, "first"),
    "deep below": ((192, 160, 128, 96), (4, 4, 2, 3), 2, "first"),
    "128 to the top": ((256, 128, 128, 128), (3, 4, 1, 2), 2, "first"),
    "thin at the top": ((192, 192, 192, 64), (4, 1, 3, 3), 2, "first"),
    "expanded by 3, thin at the top": ((192, 160, 160, 48), (2, 2, 3, 3), 3, "first"),
    "expanded by 4": ((192, 160, 128, 64), (2, 1, 3, 2), 4, "first"),
}


def build(name: str) -> TinyDecoder:
    """The candidate `name`, seeded."""
    widths, blocks, expansion, norms = CANDIDATES[name]
    torch.manual_seed(0)
    groups = 16 if any(width % 32 for width in widths) else 32
    decoder = TinyDecoder(16, 3, widths, blocks, expansion, groups)
    for module in decoder.modules():
        if isinstance(module, TinyBlock):
            if norms == "none":
                module.norm = nn.Identity()
            elif norms == "all":
                module.norm = nn.GroupNorm(groups, module.conv2[1].out_channels, eps=1e-6)  # type: ignore[arg-type]
    for parameter in decoder.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return decoder


@torch.no_grad()
def latencies(names: list[str], latent: int, repeats: int) -> dict[str, float]:
    """Median seconds of decoding one latent in bf16, the candidates taking turns; the first turn does not count."""
    decoders = {name: build(name).to(torch.bfloat16).eval() for name in names}
    z = torch.randn(1, 16, latent, latent, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats + 1):
        for name, decoder in decoders.items():
            started = time.perf_counter()
            decoder(z)
            times[name].append(time.perf_counter() - started)
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


def train(decoder: TinyDecoder, data: Data) -> None:
    """AdamW with a linear warm-up and a cosine, on the losses of the miniature's recipe."""
    steps = len(data.batches)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    for latents, target in data.batches:
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
def score(decoder: TinyDecoder, data: Data) -> dict[str, float]:
    """PSNR in dB and the error of the mean colour in 1/255, both means over held-out pictures."""
    latents, target = data.held_out
    picture = torch.cat([decoder(part) for part in latents.split(16)])
    colour = (picture.clamp(-1, 1) - target).mean(dim=(2, 3)).abs().mean().item()
    return {"psnr": psnr(picture, target).mean().item(), "colour_error": 127.5 * colour}


def search(names: list[str], data: Data, latent: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A row of the table for each candidate."""
    seconds = latencies(names, latent, repeats)
    for name in names:
        with torch.device("meta"):
            network, z = build(name), torch.empty(1, 16, 128, 128)
            counts = count(network, lambda: network(z))  # noqa: B023
        decoder = build(name)
        train(decoder, data)
        widths, blocks, expansion, norms = CANDIDATES[name]
        shape = {"widths": widths, "blocks": blocks, "expansion": expansion, "norms": norms}
        row = {"name": name, **shape, "parameters": counts.parameters, "macs": counts.macs, "latency_s": seconds[name]}
        yield row | score(decoder, data)


def table(report: dict[str, Any]) -> str:
    """The rows as Markdown, the best reconstruction first."""
    lines = [
        "<!-- python benchmarks/decoder_search.py -->",
        f"{report['device']}, {report['threads']} threads, bf16; {report['steps']} steps of {report['batch']} patches",
        "",
        "| candidate | widths | blocks | expansion | norms | parameters | GMACs | latency | PSNR | colour error |",
        "|" + "---|" * 10,
    ]
    for row in sorted(report["rows"], key=lambda row: -row["psnr"]):
        cells = [
            row["name"],
            ", ".join(map(str, row["widths"])),
            ", ".join(map(str, row["blocks"])),
            str(row["expansion"]),
            row["norms"],
            f"{row['parameters'] / 1e6:.3f} M",
            f"{row['macs'] / 1e9:.1f}",
            f"{row['latency_s']:.2f} s",
            f"{row['psnr']:.2f} dB",
            f"{row['colour_error']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Search, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    data = Data(SnapGenPipeline.bundled().vae, options.steps, options.batch, 64)
    rows = []
    for row in search(list(CANDIDATES), data, 128, options.repeats):
        rows.append(row)
        print(f"{row['name']:34} {row['latency_s']:.2f} s  {row['psnr']:.2f} dB", file=sys.stderr, flush=True)
    machine = {"device": device_name(torch.device("cpu")), "threads": torch.get_num_threads()}
    report = machine | {"torch": torch.__version__, "steps": options.steps, "batch": options.batch, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(report, indent=1) + "\n"), (".md", table(report))):
        with atomic_file(options.out / f"decoder_search{suffix}") as temporary:
            temporary.write_text(text)
    print(table(report))


if __name__ == "__main__":
    main()
