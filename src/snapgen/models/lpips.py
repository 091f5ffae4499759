"""LPIPS, how different two pictures look (Zhang et al. 2018, arXiv 1801.03924, version 0.1), in plain torch.

The features of a classifier are taken at five depths, normalised over the channels, subtracted and squared; linear
weights, which were fitted to people's judgements, sum the channels; then the mean over positions and the sum over
depths. The classifiers are torchvision's AlexNet and VGG-16 without their last, fully connected layers.

The linear weights (11 kB) are those that torchmetrics brings. The classifier's are downloaded: a safetensors file with
torchvision's names, `features.0.weight` and so on; docs/evaluation.md says where from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from snapgen.files import sha256
from snapgen.messages import one_line
from snapgen.weights import load_file

VGG16 = "timm/vgg16.tv_in1k"  # torchvision's weights (vgg16-397923af) on the hub, as timm publishes them
WEIGHTS_FILE = "model.safetensors"  # in folders and on the hub
# SHA-256 of torchmetrics' files with the linear layers of LPIPS 0.1. They are pickles: no other file is read.
LINEAR = {
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}


def alexnet_features() -> nn.Sequential:
    """AlexNet's layers up to the last ReLU (Krizhevsky 2014, arXiv 1404.5997), numbered as torchvision's."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def vgg16_features() -> nn.Sequential:
    """VGG-16's layers up to the last ReLU (Simonyan and Zisserman 2014, configuration D), numbered as torchvision's."""
    layers: list[nn.Module] = []
    width = 3
    for following, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(depth):
            layers += [nn.Conv2d(width, following, 3, padding=1), nn.ReLU(inplace=True)]
            width = following
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Backbone:
    """A classifier whose features are compared."""

    title: str
    features: Callable[[], nn.Sequential]
    taps: tuple[int, ...]  # the layers whose outputs are compared
    widths: tuple[int, ...]  # their channels


BACKBONES = {  # by LPIPS's names for them
    "alex": Backbone("AlexNet", alexnet_features, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),  # all ReLUs
    # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    "vgg": Backbone("VGG-16", vgg16_features, (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)),
}


class LinearLayer(nn.Module):
    """A weight per channel, under the names of the published files: `lin0.model.1.weight`."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """B C H W -> B 1 H W."""
        return self.model(x)


class Lpips(nn.Module):
    """LPIPS of pictures in [-1, 1]. Frozen, and always in evaluation mode; gradients reach the pictures."""

    shift: Tensor
    scale: Tensor

    def __init__(self, name: str):
        """`name`: "alex" to score pictures, "vgg" as a loss, as the authors advise."""
        super().__init__()
        self.backbone = BACKBONES[name]
        self.features = self.backbone.features()
        for index, width in enumerate(self.backbone.widths):
            self.add_module(f"lin{index}", LinearLayer(width))
        # ImageNet's means and deviations, for pictures in [-1, 1], as the published LPIPS rounds them.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Lpips:
        """Stays in evaluation mode."""
        return super().train(False)

    def _unit_features(self, pictures: Tensor) -> list[Tensor]:
        """The features at the five depths, each B C h w, of length 1 at each position.

        What is added to the squared length, as torchmetrics does, keeps the gradient finite where all are zero.
        """
        x, found = (pictures - self.shift) / self.scale, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.backbone.taps:
                found.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt())
        return found

    def forward(self, pictures: Tensor, references: Tensor) -> Tensor:
        """The distance of each of `pictures` from its reference, both B 3 H W; shape B."""
        distance = pictures.new_zeros(len(pictures))
        pairs = zip(self._unit_features(pictures), self._unit_features(references), strict=True)
        for index, (one, other) in enumerate(pairs):
            weighted = self.get_submodule(f"lin{index}")((one - other).square())
            distance = distance + weighted.mean(dim=(1, 2, 3))
        return distance


def load_lpips(name: str, place: str) -> Lpips:
    """LPIPS with the weights in `place`: a safetensors file, a folder with `model.safetensors`, or a hub name.

    Of a whole classifier only the `features.` are read. The linear layers are torchmetrics', unless `place` has its
    own. ValueError if there is no such file, or if it lacks a tensor or holds one of another shape.
    """
    network, file = Lpips(name), find_weights(place)
    found = {key: tensor for key, tensor in load_file(file).items() if key.startswith(("features.", "lin"))}
    tensors = found if any(key.startswith("lin") for key in found) else found | linear_layers(name)
    title = network.backbone.title
    for key, expected in network.state_dict().items():
        if key not in tensors:
            raise ValueError(f"{file} lacks {key}, expected torchvision's {title}")
        if tensors[key].shape != expected.shape:
            shapes = f"{list(tensors[key].shape)}, expected {list(expected.shape)}"
            raise ValueError(f"{file}: {key} has shape {shapes} as in torchvision's {title}")
    network.load_state_dict({key: tensors[key] for key in network.state_dict()})
    return network


def linear_layers(name: str) -> dict[str, Tensor]:
    """The linear layers of "alex" or "vgg"; ValueError unless torchmetrics is installed with the published file."""
    package = find_spec("torchmetrics")
    if package is None or package.origin is None:
        raise ValueError("LPIPS needs torchmetrics, which brings its linear layers: pip install 'snapgen[train]'")
    file = Path(package.origin).parent / "functional" / "image" / "lpips_models" / f"{name}.pth"
    if not file.is_file() or sha256(file) != LINEAR[name]:
        raise ValueError(f"{file} is not the published file of LPIPS 0.1: install torchmetrics anew")
    layers: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return layers


def find_weights(place: str) -> Path:
    """The safetensors file that `place` names, downloaded if it is a hub name; one-line ValueError if there is none."""
    path = Path(place)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            raise ValueError(f"folder {path} holds no {WEIGHTS_FILE}")
        return path / WEIGHTS_FILE
    try:
        return Path(hf_hub_download(place, WEIGHTS_FILE))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{place} is no file or folder here, and the hub does not provide it ({one_line(error, 200)})"
        ) from None
