"""Make a finished run the model that ships in the package.

    python scripts/bundle.py runs/mini/flow/model [--autoencoder runs/mini/decoder/model]

Writes src/snapgen/bundled/ in half precision: the pipeline's folders, and `provenance.json` with the recipes
and versions of every stage it came from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.pipeline import SnapGenPipeline
from snapgen.weights import atomic_folder

BUNDLED = Path(__file__).parent.parent / "src" / "snapgen" / "bundled"
MINI = "mini"  # how recipes name the bundled model
LARGEST = 40 * 2**20  # bytes, all files together


def stage_provenance(model: Path) -> dict[str, Any]:
    """The provenance of a pipeline folder and, by its recipe's paths, of the stages that it was built on.

    "earlier" lists the runs whose weights it started from, the latest first. "mini" was the model bundled until now,
    whose own provenance holds that of its stages.
    """
    bundled = read_provenance(BUNDLED) if (BUNDLED / "provenance.json").exists() else {}
    own = read_provenance(model)
    stages: dict[str, Any] = {own["recipe"]["stage"]: own, "earlier": []}
    for name in ("autoencoder", "text"):
        source = own["recipe"][name]
        stages[name] = bundled[name] if source == MINI else read_provenance(Path(source))
    if own["recipe"]["autoencoder"] == MINI and "decoder" in bundled:
        stages["decoder"] = bundled["decoder"]
    before = own["recipe"].get("initial")
    while before not in (None, MINI):
        run = read_provenance(Path(before))
        stages["earlier"].append(run)
        before = run["recipe"].get("initial")
    if before == MINI:
        stages["earlier"] += [next(iter(bundled.values())), *bundled["earlier"]]  # its own stage is the first
    return stages


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `snapgen train` wrote beside the model in `folder`."""
    content: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    return content


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
