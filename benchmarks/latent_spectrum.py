"""How unevenly an autoencoder's latents spread: the standard deviations of their principal components.

    python benchmarks/latent_spectrum.py [--model FOLDER] [--count 256]

A component of spread s stands out of the noise, as (1 - sigma) s against sigma, below sigma = s / (1 + s): where
that is far from where training draws its noise levels, it is learned late. Needs the emoji font.
"""

from __future__ import annotations

import argparse

import torch

from snapgen.pictures import to_tensor
from snapgen.pipeline.load import load_pipeline
from snapgen.world.source import SceneSettings, SceneSource


@torch.no_grad()
def main() -> None:
    """Print a line a component, the widest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--count", type=int, default=256, help="scenes")
    options = parser.parse_args()
    vae = load_pipeline(options.model).vae
    source = SceneSource(SceneSettings(count=options.count, split="all"))
    pictures = to_tensor([source.image(index) for index in range(options.count)]).to(vae.device)
    latents = torch.cat([vae.normalize(vae.encode(part).latent_dist.mode()) for part in pictures.split(32)])
    spreads = torch.linalg.eigvalsh(torch.cov(latents.transpose(0, 1).flatten(1).double())).clamp(min=0).sqrt()
    for index, spread in enumerate(spreads.flip(0).tolist()):
        print(
            f"component {index:2}  standard deviation {spread:6.3f}  stands out below sigma {spread / (1 + spread):.2f}"
        )


if __name__ == "__main__":
    main()
