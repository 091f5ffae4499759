"""Encoders joined as Stable Diffusion 3 joins its three, at the paper's widths and with small models."""

import json
from itertools import combinations
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model

from snapgen.text.encoder import TextStates
from snapgen.text.join import TEXT_ENCODERS, JointTextEncoder, TextLayout, TextPlace, tokenizer_of
from snapgen.text.tokenizer import train_tokenizer


def random_states(tokens: int, width: int, visible: int) -> TextStates:
    mask = (torch.arange(tokens) < visible).expand(2, tokens)
    return TextStates(torch.randn(2, tokens, width) * mask[..., None], mask)


PAPER = TextLayout(
    {
        "text_encoder": TextPlace((0, 77), (0, 768), pooled=True),
        "text_encoder_2": TextPlace((0, 77), (768, 2048), pooled=True),
        "text_encoder_3": TextPlace((77, 377), (0, 2304), pooled=False),
    }
)


def test_the_papers_three_encoders() -> None:
    """CLIP-L (768) beside CLIP-G (1280), zero-padded to Gemma-2-2b's 2304, Gemma's tokens after them."""
    torch.manual_seed(0)
    clip_l, clip_g, gemma = random_states(77, 768, 5), random_states(77, 1280, 7), random_states(300, 2304, 9)
    clip_g = TextStates(clip_g.states, clip_g.mask, pooled=torch.randn(2, 1280))
    text = PAPER.join(dict(zip(TEXT_ENCODERS, (clip_l, clip_g, gemma), strict=True)), count=2)
    assert text.states.shape == (2, 377, 2304) and (PAPER.length, PAPER.width, PAPER.pooled_width) == (377, 2304, 2048)
    assert torch.equal(text.states[:, :77, :768], clip_l.states)
    assert torch.equal(text.states[:, :77, 768:2048], clip_g.states)
    assert text.states[:, :77, 2048:].abs().max() == 0
    assert torch.equal(text.states[:, 77:], gemma.states)
    assert text.mask[0].nonzero()[:, 0].tolist() == [*range(7), *range(77, 86)]
    assert text.pooled is not None and clip_g.pooled is not None
    assert text.pooled[:, :768].abs().max() == 0 and torch.equal(text.pooled[:, 768:], clip_g.pooled)


def test_a_layout_survives_json() -> None:
    config = json.loads(json.dumps(PAPER.to_config()))
    assert config["text_encoder_2"] == {"tokens": [0, 77], "columns": [768, 2048], "pooled": True}
    assert TextLayout.from_config(config) == PAPER
    place = config["text_encoder"]
    for wrong in ({}, {"unet": place}, {"text_encoder": 3}, {"text_encoder": place | {"tokens": [5, 5]}}, []):
        with pytest.raises(ValueError, match="text_layout is .*, expected the tokens, columns and pooled of some of"):
            TextLayout.from_config(wrong)
    for wrong in ({"columns": [0, 10**12]}, {"tokens": [0, 2**20]}):  # they would fill memory
        with pytest.raises(ValueError, match="text_layout is"):
            TextLayout.from_config({"text_encoder": place | wrong})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("text_encoder_2", {"columns": [700, 1980]}),  # in CLIP-L's columns
        ("text_encoder_2", {"columns": [800, 2080]}),  # a gap
        ("text_encoder_2", {"pooled": False}),  # two language models
        ("text_encoder_3", {"tokens": [70, 370]}),  # over the CLIPs' tokens
        ("text_encoder_3", {"columns": [4, 2308]}),
    ],
)
def test_a_layout_is_one_that_encoders_can_have(name: str, change: dict[str, Any]) -> None:
    config = PAPER.to_config()
    with pytest.raises(ValueError, match="CLIPs side by side, then a language model's tokens"):
        TextLayout.from_config(config | {name: config[name] | change})


@pytest.fixture(scope="module")
def joint() -> JointTextEncoder:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["two red apples"], 100, max_length=8)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"num_hidden_layers": 2, "intermediate_size": 16, "vocab_size": len(tokenizer)}
    clips = [
        CLIPTextModel(
            CLIPTextConfig(hidden_size=width, num_attention_heads=2, max_position_embeddings=8, **sizes, **special)
        )
        for width in (8, 12)
    ]
    gemma = Gemma2Config(hidden_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=8, **sizes)
    models = [model.eval() for model in (*clips, Gemma2Model(gemma))]
    return JointTextEncoder.from_components(components(models, tokenizer), language_max_length=6)


def components(models: list[Any], tokenizer: Any) -> dict[str, Any]:
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")[: len(models)]
    return dict(zip(names, models, strict=True)) | {tokenizer_of(name): tokenizer for name in names}


def test_joint_encoder(joint: JointTextEncoder) -> None:
    assert (joint.width, joint.max_length) == (24, 14)
    text = joint(["two apples", "red"])
    assert text.states.shape == (2, 14, 24)
    assert text.mask.sum(dim=1).tolist() == [8, 6]  # "[BOS] two apples [EOS]" twice, "[BOS] red [EOS]" twice
    assert torch.equal(text.states[:, :8, 8:20], joint.encoders["text_encoder_2"](["two apples", "red"]).states)


NAMED = [names for size in (1, 2, 3) for names in combinations(TEXT_ENCODERS, size)]


@pytest.mark.parametrize("names", NAMED, ids=" ".join)
def test_an_absent_encoder_gives_exactly_what_a_dropped_one_gives(
    joint: JointTextEncoder, names: tuple[str, ...]
) -> None:
    """All seven subsets: dropped for a prompt, or not there at all."""
    some = JointTextEncoder({name: joint.encoders[name] for name in names}, joint.layout)
    prompts = ["two apples", "", "red"]
    dropped = joint(prompts, torch.tensor([[name not in names for name in joint.encoders]]))
    absent = some(prompts)
    for part in ("states", "mask", "pooled"):
        here, there = getattr(absent, part), getattr(dropped, part)
        assert torch.equal(here, there) and here.dtype == there.dtype
    assert (absent.states[0] != joint(prompts).states[0]).any() == (len(names) < 3)
    # An encoder that is left may be dropped too; with none left it is the empty prompt.
    nothing = some(prompts, torch.ones(1, len(names), dtype=torch.bool))
    assert torch.equal(nothing.states, joint([""] * 3).states) and torch.equal(nothing.mask, joint([""] * 3).mask)


def test_columns_of_another_model_must_be_the_same(joint: JointTextEncoder) -> None:
    config = joint.layout.to_config()
    longer = config | {"text_encoder_3": config["text_encoder_3"] | {"tokens": [8, 308]}}
    for same in (None, config, longer):
        joint.layout.check_columns(same)
    shifted = config | {
        "text_encoder": config["text_encoder"] | {"columns": [0, 12]},
        "text_encoder_2": config["text_encoder_2"] | {"columns": [12, 20]},
    }
    with pytest.raises(ValueError, match="it reads .*text_encoder_2 in columns 12 to 20, .*, not .* columns 8 to 20"):
        joint.layout.check_columns(shifted)


def test_an_encoder_must_have_its_place(joint: JointTextEncoder) -> None:
    two = TextLayout({name: joint.layout.places[name] for name in TEXT_ENCODERS[:2]})
    with pytest.raises(ValueError, match="text_encoder_3 has no place .*: text_encoder, text_encoder_2 do"):
        JointTextEncoder(joint.encoders, two)
    with pytest.raises(ValueError, match="text_encoder gives 8 states of width 8, .* has 77 of width 768 for it"):
        JointTextEncoder(joint.encoders, PAPER)


SUBSETS = [set(), {0}, {1}, {2}, {0, 1}, {1, 2}, {0, 1, 2}]


def test_every_prompt_does_without_its_own_encoders(joint: JointTextEncoder) -> None:
    """One batch in which each sample lacks others: what is left is the full text's, what is dropped the empty one's."""
    prompts = ["two apples", "red"] * len(SUBSETS)
    dropped = torch.tensor([[index in subset for index in range(3)] for subset in SUBSETS for _ in range(2)])
    text, full, empty = joint(prompts, dropped), joint(prompts), joint([""] * len(prompts))
    columns = [slice(0, 8), slice(8, 20)]
    for row, subset in enumerate(subset for subset in SUBSETS for _ in range(2)):
        for index, part in enumerate(columns):
            expected = empty if index in subset else full
            assert torch.equal(text.states[row, :8, part], expected.states[row, :8, part])
        for start, end, lacking in ((0, 8, {0, 1}), (8, 14, {2})):
            expected = empty if lacking <= subset else full
            assert torch.equal(text.mask[row, start:end], expected.mask[row, start:end])
        assert torch.equal(text.states[row, 8:], (empty if 2 in subset else full).states[row, 8:])
    assert torch.equal(text.states[-2:], empty.states[-2:])  # the unconditional branch
    assert torch.equal(text.mask[-2:], empty.mask[-2:])
    same = joint(["red"] * 3, torch.tensor([[True, False, False]]))  # one row is for all
    assert torch.equal(same.states, joint(["red"] * 3, torch.tensor([[True, False, False]] * 3)).states)


def test_an_encoder_that_nobody_reads_is_not_run(joint: JointTextEncoder) -> None:
    calls: list[int] = []
    hook = joint.encoders["text_encoder_3"].model.register_forward_hook(lambda *_: calls.append(1))
    joint(["red"], torch.tensor([[False, False, True]]))
    assert not calls
    joint(["red"])
    hook.remove()
    assert calls


def test_encoders_that_cannot_be_joined(joint: JointTextEncoder) -> None:
    clip_l, clip_g, gemma = (encoder.model for encoder in joint.encoders.values())
    tokenizer = joint.encoders["text_encoder"].tokenizer
    for order in ([gemma, clip_l], [clip_l, gemma, gemma]):
        with pytest.raises(ValueError, match="text encoders .*Gemma2Model.*: CLIPs first, then at most one language"):
            JointTextEncoder.from_components(components(order, tokenizer))
    parts = components([clip_l, clip_g], tokenizer)
    parts["tokenizer_2"] = train_tokenizer(["two red apples"], 100, max_length=7)
    with pytest.raises(ValueError, match=r"CLIP text encoders of \[8, 7\] tokens: equal lengths expected"):
        JointTextEncoder.from_components(parts)
    alone = JointTextEncoder.from_components(components([gemma], tokenizer) | {"text_encoder_2": None})
    assert (alone.layout.pooled_width, alone.width, alone.max_length) == (0, 24, 8)
    with pytest.raises(ValueError, match="text_encoder_2 is given without its tokenizer_2"):
        JointTextEncoder.from_components(components([clip_l, clip_g], tokenizer) | {"tokenizer_2": None})


def test_no_encoder_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no text encoder: at least one expected"):
        JointTextEncoder({})
