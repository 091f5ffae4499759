"""LPIPS: its formula, its cut points, the names of the published files, and the linear layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchmetrics.functional.image.lpips as reference
from safetensors.torch import save_file
from torch import Tensor

from snapgen.models import lpips
from snapgen.models.lpips import BACKBONES, Lpips, linear_layers, load_lpips
from snapgen.weights import load_file

# Convolutions between two cut points: index in torchvision's `features`, channels, kernel, stride, padding.
VGG16 = [
    [(0, 64), (2, 64)],
    [(5, 128), (7, 128)],
    [(10, 256), (12, 256), (14, 256)],
    [(17, 512), (19, 512), (21, 512)],
    [(24, 512), (26, 512), (28, 512)],
]
ALEXNET = [[(0, 64)], [(3, 192)], [(6, 384)], [(8, 256)], [(10, 256)]]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pictures in [0, 1]


def randomized(name: str) -> Lpips:
    torch.manual_seed(0)
    network = Lpips(name)
    for key, tensor in network.state_dict().items():
        if key.startswith("lin"):
            tensor.uniform_(0, 1)  # the published ones are not negative either
    return network


def features_written_out(name: str, weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """float64 features at the five cut points, layer by layer from the two papers."""
    found = []
    for depth, convolutions in enumerate(VGG16 if name == "vgg" else ALEXNET):
        if name == "vgg" and depth:
            x = F.max_pool2d(x, 2, 2)
        if name == "alex" and depth in (1, 2):
            x = F.max_pool2d(x, 3, 2)
        for index, channels in convolutions:
            kernel = weights[f"features.{index}.weight"]
            assert kernel.shape[:2] == (channels, x.shape[1])
            stride, padding = (4, 2) if kernel.shape[-1] == 11 else (1, kernel.shape[-1] // 2)
            x = F.conv2d(x, kernel, weights[f"features.{index}.bias"], stride, padding).clamp(min=0)
        found.append(x)
    return found


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_the_formula_written_out(name: str) -> None:
    network = randomized(name)
    pictures = 2 * torch.rand(2, 2, 3, 48, 64, dtype=torch.float64) - 1
    weights = {key: tensor.double() for key, tensor in network.state_dict().items()}
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    one, other = (features_written_out(name, weights, ((batch + 1) / 2 - mean) / std) for batch in pictures)
    expected = torch.zeros(2, dtype=torch.float64)
    for index, (a, b) in enumerate(zip(one, other, strict=True)):
        a, b = (x / x.square().sum(dim=1, keepdim=True).sqrt() for x in (a, b))
        linear = weights[f"lin{index}.model.1.weight"].flatten()
        expected += torch.einsum("bchw,c->bhw", (a - b) ** 2, linear).mean(dim=(1, 2))
    with torch.no_grad():
        found = network(*pictures.float())
    assert found.shape == (2,) and (expected > 0.01).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_it_is_torchmetrics_with_its_linear_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference takes its backbone from torchvision, which is not here: it gets ours."""
    network = randomized(name)
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda net, pretrained=False: network.features)
    theirs = reference._LPIPS(pretrained=True, net=name, pnet_rand=True)
    network.load_state_dict(linear_layers(name), strict=False)
    one, other = 2 * torch.rand(2, 2, 3, 64, 64) - 1
    with torch.no_grad():
        torch.testing.assert_close(network(one, other), theirs(one, other).flatten(), rtol=1e-5, atol=1e-7)


def test_names_are_those_of_the_published_files() -> None:
    convolutions = {name: [index for group in table for index, _ in group] for name, table in TABLES.items()}
    for name, indices in convolutions.items():
        expected = {f"features.{index}.{part}" for index in indices for part in ("weight", "bias")}
        expected |= {f"lin{index}.model.1.weight" for index in range(5)}
        assert Lpips(name).state_dict().keys() == expected
        assert linear_layers(name).keys() == {key for key in expected if key.startswith("lin")}
    assert sum(parameter.numel() for parameter in Lpips("vgg").features.parameters()) == 14_714_688
    assert sum(parameter.numel() for parameter in Lpips("alex").features.parameters()) == 2_469_696


TABLES = {"vgg": VGG16, "alex": ALEXNET}


def test_features_are_cut_behind_a_relu() -> None:
    for name, backbone in BACKBONES.items():
        layers = Lpips(name).features
        assert all(isinstance(layers[tap], torch.nn.ReLU) for tap in backbone.taps)
        assert backbone.taps[-1] == len(layers) - 1
    # relu1_2 to relu5_3: the last of each resolution
    assert [isinstance(Lpips("vgg").features[tap + 1], torch.nn.MaxPool2d) for tap in (3, 8, 15, 22)] == [True] * 4


def test_it_is_frozen_and_its_gradient_is_finite_everywhere() -> None:
    network = randomized("alex")
    assert not network.train().training and not any(p.requires_grad for p in network.parameters())
    for key, tensor in network.state_dict().items():
        if key.endswith("bias"):
            tensor.fill_(-100.0)  # nothing passes a ReLU: all features are zero
    picture = torch.zeros(1, 3, 64, 64, requires_grad=True)
    network(picture, torch.ones(1, 3, 64, 64)).sum().backward()
    assert picture.grad is not None and picture.grad.isfinite().all()

    network = randomized("alex")
    network(picture, torch.ones(1, 3, 64, 64)).sum().backward()
    assert picture.grad.abs().max() > 0
    assert network(picture, picture).item() == 0


def classifier(name: str, folder: Path) -> Path:
    """A file like torchvision's, of a whole classifier in half precision."""
    network = randomized(name)
    tensors = {key: tensor.half() for key, tensor in network.state_dict().items() if key.startswith("features.")}
    file = folder / "model.safetensors"
    save_file(tensors | {"classifier.6.weight": torch.ones(1000, 4)}, file)
    return file


def test_weights_are_read_from_a_file_a_folder_or_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = classifier("alex", tmp_path)
    monkeypatch.setattr(
        lpips, "hf_hub_download", lambda repo, name: {("some/one", "model.safetensors"): file}[repo, name]
    )
    expected = load_file(file)["features.0.weight"].float()
    for place in (file, tmp_path, "some/one"):
        network = load_lpips("alex", str(place))
        assert torch.equal(network.features[0].weight, expected)
        assert network.state_dict()["lin4.model.1.weight"].max() > 0.4  # the published: .413
    own = load_file(file) | {f"lin{index}.model.1.weight": torch.ones(1, width, 1, 1) for index, width in WIDTHS}
    save_file(own, tmp_path / "with_linear.safetensors")
    network = load_lpips("alex", str(tmp_path / "with_linear.safetensors"))
    assert network.state_dict()["lin4.model.1.weight"].unique().tolist() == [1.0]


WIDTHS = tuple(enumerate((64, 192, 384, 256, 256)))


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repo: str, name: str) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(lpips, "hf_hub_download", offline)
    file = classifier("alex", tmp_path)
    save_file({"classifier.0.weight": torch.ones(1)}, tmp_path / "headless.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    for name, place, message in (
        ("vgg", "some/one", r"some/one is no file or folder here, and the hub does not provide it \(no network\)"),
        ("vgg", str(tmp_path / "empty"), "empty holds no model.safetensors"),
        ("vgg", str(file), r"features.0.weight has shape \[64, 3, 11, 11\], expected \[64, 3, 3, 3\]"),
        ("alex", str(tmp_path / "headless.safetensors"), "lacks features.0.weight, expected torchvision's AlexNet"),
        ("alex", str(tmp_path / "noise.safetensors"), "damaged or no safetensors file"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load_lpips(name, place)
        assert "\n" not in str(error.value)


def test_linear_layers_are_those_published_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a pickle, which only its hash makes safe."""
    monkeypatch.setitem(lpips.LINEAR, "alex", "0" * 64)
    with pytest.raises(ValueError, match="alex.pth is not the published file of LPIPS 0.1: install torchmetrics anew"):
        linear_layers("alex")
    monkeypatch.setattr(lpips, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"LPIPS needs torchmetrics, .*: pip install 'snapgen\[train\]'"):
        linear_layers("alex")
