"""What each subset of the paper's three text encoders takes at full size: parameters, memory of the weights, tokens.

    python benchmarks/text_subsets.py

An absent encoder is not loaded (`snapgen generate --encoders`); the UNet and the decoder are the same for all. Counted
from the published shapes, which the tests compare with transformers' own. Writes text_subsets.json and .md to `--out`.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from shared import make_parser, page, write_results

from snapgen.messages import markdown_table
from snapgen.models.presets import create_autoencoder, create_unet
from snapgen.text.encoder import LANGUAGE_MAX_LENGTH
from snapgen.train.cost import BF16, TEXT_MODELS

ENCODERS = {
    "CLIP-L": "openai/clip-vit-large-patch14",
    "CLIP-G": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "Gemma-2-2b": "google/gemma-2-2b",
}


def main() -> None:
    """The table of all seven subsets."""
    options = make_parser(__doc__).parse_args()
    with torch.device("meta"):
        unet, decoder = create_unet("t2i"), create_autoencoder("decoder").decoder
    pictures = sum(parameter.numel() for network in (unet, decoder) for parameter in network.parameters())
    rows: list[dict[str, Any]] = []
    for names in (names for size in (1, 2, 3) for names in combinations(ENCODERS, size)):
        models = [TEXT_MODELS[ENCODERS[name]] for name in names]
        text = sum(model.parameters for model in models)
        spans = {LANGUAGE_MAX_LENGTH if model.tokens is None else model.tokens for model in models}
        rows.append(
            {
                "encoders": names,
                "parameters": text,
                "text_bytes": BF16 * text,
                "all_bytes": BF16 * (text + pictures),
                "read_tokens": sum(spans),  # CLIPs stand side by side
            }
        )
    lines = markdown_table(
        ("text encoders", "parameters", "their weights, bf16", "with UNet and decoder", "tokens read"),
        [
            (
                " + ".join(row["encoders"]),
                f"{row['parameters'] / 1e6:,.0f} M",
                f"{row['text_bytes'] / 1e9:.2f} GB",
                f"{row['all_bytes'] / 1e9:.2f} GB",
                str(row["read_tokens"]),
            )
            for row in rows
        ],
    )
    heading = "# Subsets of the text encoders at full size"
    write_results(options.out / "text_subsets", {"rows": rows}, page(__file__, heading, lines))


if __name__ == "__main__":
    main()
