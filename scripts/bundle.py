"""Make a finished run the model that ships in the package.

    python scripts/bundle.py runs/mini/flow/model [--autoencoder runs/mini/decoder/model]

Writes src/snapgen/bundled/ in half precision: the pipeline's folders, and `provenance.json` with the recipes
and versions of every stage it came from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.pipeline import SnapGenPipeline
from snapgen.weights import atomic_folder

BUNDLED = Path(__file__).parent.parent / "src" / "snapgen" / "bundled"
LARGEST = 40 * 2**20  # bytes, all files together


def stage_provenance(model: Path) -> dict[str, object]:
    """The provenance of a pipeline folder and, by its recipe's paths, of the stages that it was built on.

    "earlier" lists the runs whose weights it started from, the latest first.
    """
    own = json.loads((model / "provenance.json").read_text())
    stages = {own["recipe"]["stage"]: own, "earlier": []}
    for name in ("autoencoder", "text"):
        stages[name] = json.loads((Path(own["recipe"][name]) / "provenance.json").read_text())
    before = own["recipe"].get("initial")
    while before is not None:
        run = json.loads((Path(before) / "provenance.json").read_text())
        stages["earlier"].append(run)
        before = run["recipe"].get("initial")
    return stages


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="pipeline folder of the flow stage")
    parser.add_argument("--autoencoder", type=Path, help="take the autoencoder from here (same encoder and scale)")
    options = parser.parse_args()

    pipeline = SnapGenPipeline.from_pretrained(options.model, dtype=torch.float16)
    provenance = stage_provenance(options.model)
    if options.autoencoder is not None:
        autoencoder = SnapGenAutoencoder.from_pretrained(options.autoencoder, dtype=torch.float16)
        for key, tensor in pipeline.vae.encoder.state_dict().items():
            if not torch.equal(tensor, autoencoder.encoder.state_dict()[key]):
                raise SystemExit(f"{options.autoencoder}: encoder weight {key} differs: its latents are others")
        pipeline.register_modules(vae=autoencoder)
        provenance["decoder"] = json.loads((options.autoencoder / "provenance.json").read_text())
    card = (BUNDLED / "README.md").read_bytes() if (BUNDLED / "README.md").exists() else None
    with atomic_folder(BUNDLED) as folder:
        pipeline.save_pretrained(folder)
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=1))
        if card is not None:
            (folder / "README.md").write_bytes(card)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > LARGEST:
            raise SystemExit(f"the weights take {size / 2**20:.1f} MiB, at most {LARGEST / 2**20:.0f} may ship")
    print(f"{BUNDLED}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
