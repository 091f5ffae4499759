"""Networks that turn a picture into a feature vector, for distances between sets of pictures.

- inception: the TensorFlow evaluator's InceptionV3 (torch-fidelity's port), pool3, 2048 numbers: the features that
  define FID. Needs torch-fidelity (and its torchvision), and the weights, downloaded or given by path.
- scene-classifier: the scene benchmark's second judge, its last features averaged over the picture, 128 numbers. Needs
  no download. It is made for the embedded world and only sees which things are there, and in which colours.
- mini-encoder: the encoder of the bundled autoencoder, the output of its last block averaged over the picture: colours
  and textures. Blobs in the right colours can score closer to renders than other renders do, so it separates only
  models that differ a lot (`benchmarks/results/distillation_steps.md` was measured with it).
- a folder or hub name of a CLIP (transformers): its image embedding, of unit length.

Only the distance with inception is FID; with any other network, call it a Frechet distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from snapgen.evaluation.networks import Clip
from snapgen.files import sha256
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.pictures import resize_square, to_tensor
from snapgen.pipeline.bundled import bundled_folder
from snapgen.registry import load_attribute
from snapgen.weights import load_network, network_hash

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # its first digits, as in torch.hub's file names
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
NETWORKS = {  # by name: module:function that takes a device and returns (hash of the weights, feature extractor)
    "scene-classifier": "snapgen.world.judge.reader:picture_features",
    "mini-encoder": "snapgen.evaluation.features:encoder_features",
}
SIDE = 128  # px; the size that the bundled autoencoder was trained at
OTHERS = "or choose --features scene-classifier or a CLIP"


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature extractor with its name and the hash of its weights."""

    name: str
    sha256: str  # of its weights
    extract: Callable[[np.ndarray], np.ndarray]  # uint8 H W 3 -> float64 D


def load_features(name: str, weights: str | None, device: torch.device) -> FeatureNetwork:
    """The network called `name`; `weights` is Inception's file. Raises ValueError saying what is missing."""
    if name == "inception":
        return _inception(weights, device)
    if weights is not None:
        raise ValueError(f"--weights {weights} is for --features inception; {name} has its own")
    if name in NETWORKS:
        return FeatureNetwork(name, *load_attribute(NETWORKS[name])(device))
    if "/" not in name and not Path(name).exists():
        raise ValueError(
            f"--features {name} is not known: expected inception, {', '.join(NETWORKS)}, or the folder or hub name of "
            "a CLIP"
        )
    return _clip(name, device)


def encoder_features(device: torch.device) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The bundled encoder's hash and its features, the last block's mean over a picture: uint8 H W 3 -> float64 D."""
    network = load_network(SnapGenAutoencoder, str(bundled_folder() / "vae"), dtype=torch.float32)
    network = network.to(device).eval()
    seen: list[torch.Tensor] = []
    network.encoder.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output))

    @torch.no_grad()
    def extract(picture: np.ndarray) -> np.ndarray:
        network.encoder(to_tensor([resize_square(picture, SIDE)]).to(device))
        return np.asarray(seen.pop().mean(dim=(2, 3))[0].double().cpu())

    return network_hash({"encoder": network.encoder}), extract


def _clip(name: str, device: torch.device) -> FeatureNetwork:
    clip = Clip(name, device)

    def extract(picture: np.ndarray) -> np.ndarray:
        return np.asarray(clip.picture(Image.fromarray(picture)).double().cpu())

    return FeatureNetwork(name, network_hash({"clip": clip.network}), extract)


def _inception(weights: str | None, device: torch.device) -> FeatureNetwork:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        missing = f"FID's Inception needs torch-fidelity ({error.name} is not installed)"
        raise ValueError(f"{missing}: pip install torch-fidelity, {OTHERS}") from None
    file = Path(weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE)
    found = inception_sha256(file)
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file)).to(device)

    @torch.no_grad()
    def extract(picture: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].to(device)
        return np.asarray(network(pixels)[0][0].double().cpu())

    return FeatureNetwork("inception", found, extract)


def inception_sha256(file: Path) -> str:
    """The hash of `file`; ValueError unless it is the published file, because torch-fidelity unpickles it."""
    if not file.is_file():
        raise ValueError(f"FID's Inception: fetch {INCEPTION_URL} to {file} (--weights names another place), {OTHERS}")
    if not (found := sha256(file)).startswith(INCEPTION_SHA256):
        raise ValueError(f"{file} is not FID's Inception: its SHA-256 is {found[:12]}..., not {INCEPTION_SHA256}...")
    return found
