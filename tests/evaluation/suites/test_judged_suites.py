"""CLIP score, ImageReward and DPG-Bench on tiny judges, against independent references."""

import csv
import json
import os
import re
import shutil
import signal
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.judges import TEXT, VISION, save_clip, save_vqa
from torch import nn
from torchmetrics.functional.multimodal import clip_score
from transformers import BertConfig, BertModel, CLIPModel, CLIPProcessor

from snapgen.cli.main import run
from snapgen.evaluation import generation
from snapgen.evaluation.generation import Request, generate_pictures
from snapgen.evaluation.statistics import interval_of_values
from snapgen.evaluation.suites import dpg, imagereward
from snapgen.pipeline.load import load_pipeline


def test_clip_score_from_end_to_end_agrees_with_torchmetrics(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, prompts = save_clip(tmp_path / "clip"), tmp_path / "prompts.txt"
    command = ["evaluate", str(tiny_model), "--suite", "clip", "--steps", "1", "--out", str(tmp_path / "out")]
    assert run([*command, "--weights", str(folder)]) == 1
    assert "clip needs --prompts FILE" in capfd.readouterr().err
    command += ["--prompts", str(prompts)]
    prompts.write_text("\n")
    assert run(command) == 1
    assert "prompts.txt holds no prompts" in capfd.readouterr().err
    prompts.write_text("a red cat\n\na dog\n")
    assert run(command) == 1
    assert "hf download openai/clip-vit-large-patch14" in capfd.readouterr().err
    assert run([*command, "--count", "2"]) == 1
    assert "clip: --count does not apply here" in capfd.readouterr().err
    assert run([*command, "--weights", f"clip={folder}", "--seeds", "0,5", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    lines = json.loads((tmp_path / "out" / "clip" / "report.json").read_text())["pictures"]
    assert [(line["prompt"], line["seed"]) for line in lines] == [
        ("a red cat", 0),
        ("a red cat", 5),
        ("a dog", 0),
        ("a dog", 5),
    ]

    class OldClip(CLIPModel):
        """As torchmetrics knows it: features are tensors."""

        def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().get_image_features(pixels).pooler_output

        def get_text_features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return super().get_text_features(tokens, mask).pooler_output

    judge = OldClip.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    for line in lines:
        pixels = torch.from_numpy(np.array(Image.open(tmp_path / "out" / "clip" / line["file"]))).permute(2, 0, 1)
        expected = float(clip_score(pixels, line["prompt"], lambda: judge).detach()) / 100
        assert line["score"] == pytest.approx(expected, abs=1e-5)
    assert report["score"] == pytest.approx(np.mean([line["score"] for line in lines]))
    assert report["by_seed"]["5"] == pytest.approx((lines[1]["score"] + lines[3]["score"]) / 2)


def test_pictures_that_fail_are_named_and_there_is_no_score(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(str(tiny_model))
    pipeline.vae.decoder.conv_out[1].bias.data.fill_(float("nan"))
    manifest = {"model_sha256": "", "steps": 1, "guidance": 1.0, "side": 32}
    with pytest.raises(ValueError, match=r"no score: 1 of 1 pictures failed.*'a cat' \(seed 7\).*not finite"):
        generate_pictures(pipeline, [Request("a", "a cat", 7)], tmp_path, manifest, print)
    assert json.loads((tmp_path / "failed.json").read_text())[0]["prompt"] == "a cat"
    assert not (tmp_path / "a.png").exists()


def test_neither_batches_nor_devices_change_a_picture(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(str(tiny_model))
    manifest = {"model_sha256": "", "steps": 2, "guidance": 3.0, "side": 32}
    requests = [Request(f"{i}", text, i) for i, text in enumerate(["a cat", "a dog", "", "two red apples", "a cat"])]

    def pictures(folder: str) -> list[bytes]:
        progress: list[str] = []
        files = generate_pictures(pipeline, requests, tmp_path / folder, manifest, progress.append)
        assert progress[-1] == "pictures: 5 of 5"
        return [np.asarray(Image.open(file)).tobytes() for file in files]

    together = pictures("together")
    assert len(set(together)) == 5
    monkeypatch.setattr(generation, "BATCH", 2)
    assert pictures("batches") == together
    drawn: list[int] = []
    copies = [deepcopy(pipeline) for _ in range(2)]
    for number, copy in enumerate(copies):
        copy.unet.register_forward_hook(lambda *_, number=number: drawn.append(number))
    monkeypatch.setattr(generation, "replicas", lambda pipeline, most: copies)
    assert pictures("devices") == together
    assert set(drawn) == {0, 1}


def test_an_interrupt_ends_the_work_at_the_next_step(tiny_model: Path, tmp_path: Path) -> None:
    """Not at the end of the batch, which may take minutes."""
    pipeline, steps = load_pipeline(str(tiny_model)), []

    def interrupt(*arguments: object) -> None:
        steps.append(None)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)  # the main thread gets it, wherever it waits

    pipeline.unet.register_forward_hook(interrupt)
    manifest = {"model_sha256": "", "steps": 1000, "guidance": 1.0, "side": 32}
    with pytest.raises(KeyboardInterrupt):
        generate_pictures(pipeline, [Request("a", "a cat", 7)], tmp_path, manifest, print)
    assert len(steps) < 500
    assert not (tmp_path / "a.png").exists()


def test_the_interval_of_values_is_students() -> None:
    low, high = interval_of_values([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))  # t of 2 degrees of freedom
    assert interval_of_values([1.0]) is None


def question(*parents: int) -> dpg.Question:
    return dpg.Question("is it?", "entity", parents)


def test_questions_count_only_if_those_they_depend_on_do() -> None:
    questions = {1: question(), 2: question(1), 3: question(2), 4: question(1, 5), 5: question()}
    yes = dict.fromkeys(questions, "yes")
    assert dpg.score_picture(questions, yes) == 1
    assert dpg.score_picture(questions, yes | {3: "no"}) == 4 / 5
    assert dpg.score_picture(questions, yes | {2: "maybe"}) == 3 / 5  # 2, and 3 with it
    assert dpg.score_picture(questions, yes | {1: "no"}) == 1 / 5  # 2, 3 through 2, and 4
    assert dpg.score_picture(questions, yes | {5: "no"}) == 3 / 5


def test_dpg_from_end_to_end(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts").mkdir()
    with (tmp_path / "dpg_bench.csv").open("w", newline="") as file:
        columns = ["item_id", "proposition_id", "dependency", "tuple", "question_natural_language"]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerow(dict.fromkeys(columns, "heading"))
        for name in ("7", "cats"):
            (tmp_path / "prompts" / f"{name}.txt").write_text(f"a dog and {name}\n")
            for number, dependency, kind in ((1, "0", "entity - whole"), (2, "1", "attribute - color")):
                row = (name, number, dependency, f"{kind} (dog)", "is there a dog?")
                writer.writerow(dict(zip(columns, row, strict=True)))
    vqa = save_vqa(tmp_path / "vqa")
    command = ["evaluate", str(tiny_model), "--suite", "dpg", "--prompts", str(tmp_path), "--steps", "1"]
    command += ["--weights", str(vqa), "--out", str(tmp_path / "out"), "--json"]
    assert run(command) == 1
    assert "holds 2 prompts: DPG-Bench has 1065" in capfd.readouterr().err
    monkeypatch.setattr(dpg, "PROMPTS", 2)
    weights = load_file(vqa / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if "bias" not in name}, vqa / "model.safetensors")
    assert run(command) == 1
    assert re.search(r"vqa lacks \d+ tensors of its BlipForQuestionAnswering", capfd.readouterr().err)
    save_file(weights, vqa / "model.safetensors", {"format": "pt"})
    assert run(command) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["count"] == 8
    assert set(report["categories"]) == {"entity", "attribute"}
    lines = json.loads((tmp_path / "out" / "dpg" / "report.json").read_text())["pictures"]
    assert all(set(line["answers"]) == {"1", "2"} for line in lines)
    grid = np.asarray(Image.open(tmp_path / "out" / "dpg" / "grids" / "cats.png"))
    last = np.asarray(Image.open(tmp_path / "out" / "dpg" / "pictures" / "cats-3.png"))
    assert np.array_equal(grid[32:, 32:], last)
    (tmp_path / "prompts" / "cats.txt").unlink()
    assert run(command) == 1
    assert "1 prompts lack their text or questions, such as cats" in capfd.readouterr().err


class PublishedBlock(nn.Module):
    """A block of the vision tower that ImageReward was published with (timm's)."""

    def __init__(self, width: int, inner: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        x = x + self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class PublishedTower(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, patch: int, positions: int):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, positions, width))
        self.blocks = nn.ModuleList([PublishedBlock(width, inner, heads)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed["proj"](x).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks[0](x))


def test_imagereward_reads_weights_of_the_published_layout(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": 12, "encoder_hidden_size": 16, "max_position_embeddings": 40, "is_decoder": True}
    configuration = {"vision_config": VISION | {"layer_norm_eps": 1e-6}, "text_config": text}
    tower = PublishedTower(16, 16, 2, 16, 5)
    # Its text encoder kept BERT's names, with cross-attention.
    bert = BertModel(
        BertConfig(**TEXT, vocab_size=12, max_position_embeddings=40, is_decoder=True, add_cross_attention=True),
        add_pooling_layer=False,
    )
    state = {f"blip.visual_encoder.{name}": tensor for name, tensor in tower.state_dict().items()}
    # BLIP's has no token types.
    text_state = {name: tensor for name, tensor in bert.state_dict().items() if "token_type" not in name}
    state |= {f"blip.text_encoder.{name}": tensor for name, tensor in text_state.items()}
    state |= {
        "blip.vision_proj.weight": torch.zeros(1),
        "blip.text_encoder.embeddings.position_ids": torch.zeros(1, 40),
    }
    width = 16
    for number, following in zip((0, 2, 4, 6, 7), imagereward.MLP_WIDTHS, strict=True):
        state[f"mlp.layers.{number}.weight"] = torch.randn(following, width) / width**0.5
        state[f"mlp.layers.{number}.bias"] = torch.randn(following)
        width = following

    network = imagereward.ImageReward(configuration).eval()
    network.load_state_dict(imagereward.rename(state))  # strict: every name is there and none is left
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        seen = network.blip["vision_model"](pixels).last_hidden_state
        assert torch.allclose(seen, tower(pixels), atol=1e-5)
        tokens, mask = torch.tensor([[2, 5, 3], [2, 6, 3]]), torch.ones(2, 3, dtype=torch.long)
        rewards = network(pixels, tokens, mask)
        # What the MLP is without its idle dropouts, on BLIP's first text state.
        blip = network.blip["text_encoder"]
        hidden = blip(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(2, 5, dtype=torch.long),
        ).last_hidden_state[:, 0]
        for number in (0, 2, 4, 6, 7):
            hidden = hidden @ state[f"mlp.layers.{number}.weight"].T + state[f"mlp.layers.{number}.bias"]
    assert torch.allclose(rewards, (hidden[:, 0] - 0.16717362830052426) / 1.0333394966054072, atol=1e-5)
    assert not torch.allclose(rewards[0], rewards[1])

    folder, prompts = tmp_path / "weights", tmp_path / "prompts.txt"
    folder.mkdir()
    prompts.write_text("cat\ndog\n")
    command = ["evaluate", str(tiny_model), "--suite", "imagereward", "--prompts", str(prompts), "--steps", "1"]
    command += ["--weights", str(folder), "--out", str(tmp_path / "out"), "--json"]
    assert run(command) == 1
    assert "hf download THUDM/ImageReward ImageReward.pt" in capfd.readouterr().err
    torch.save(state, folder / "ImageReward.pt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "a", "b", "c", "d", "e"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    monkeypatch.setattr(imagereward.load_imagereward, "__defaults__", (configuration,))
    assert run(command) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["count"] == 2
    assert np.isfinite(report["score"])
    del state["mlp.layers.7.bias"]
    torch.save(state, folder / "ImageReward.pt")
    shutil.rmtree(tmp_path / "out")
    assert run(command) == 1
    assert "does not fit" in capfd.readouterr().err
