"""Encoders joined as Stable Diffusion 3 joins its three, at the paper's widths and with small models."""

from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model

from snapgen.text.encoder import TextStates
from snapgen.text.join import JointTextEncoder, join, tokenizer_of
from snapgen.text.tokenizer import train_tokenizer


def random_states(tokens: int, width: int, visible: int) -> TextStates:
    mask = (torch.arange(tokens) < visible).expand(2, tokens)
    return TextStates(torch.randn(2, tokens, width) * mask[..., None], mask)


def test_the_papers_three_encoders() -> None:
    """CLIP-L (768) beside CLIP-G (1280), zero-padded to Gemma-2-2b's 2304, Gemma's tokens after them."""
    torch.manual_seed(0)
    clip_l, clip_g, gemma = random_states(77, 768, 5), random_states(77, 1280, 7), random_states(300, 2304, 9)
    text = join([clip_l, clip_g], gemma)
    assert text.states.shape == (2, 377, 2304)
    assert torch.equal(text.states[:, :77, :768], clip_l.states)
    assert torch.equal(text.states[:, :77, 768:2048], clip_g.states)
    assert text.states[:, :77, 2048:].abs().max() == 0
    assert torch.equal(text.states[:, 77:], gemma.states)
    assert text.mask[0].nonzero()[:, 0].tolist() == [*range(7), *range(77, 86)]


def test_one_kind_alone() -> None:
    clip, gemma = random_states(4, 8, 3), random_states(6, 16, 2)
    assert join([clip]).states.shape == (2, 4, 8)
    assert torch.equal(join([], gemma).states, gemma.states)
    with pytest.raises(ValueError, match="no text states to join"):
        join([])
    with pytest.raises(ValueError, match=r"CLIP states of \[4, 6\] tokens side by side"):
        join([clip, gemma])


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
    assert torch.equal(text.states[:, :8, 8:20], joint.clips[1](["two apples", "red"]).states)


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
    assert joint.language is not None
    hook = joint.encoders[2].model.register_forward_hook(lambda *_: calls.append(1))
    joint(["red"], torch.tensor([[False, False, True]]))
    assert not calls
    joint(["red"])
    hook.remove()
    assert calls


def test_encoders_that_cannot_be_joined(joint: JointTextEncoder) -> None:
    clip_l, clip_g, gemma = (encoder.model for encoder in joint.encoders)
    tokenizer = joint.encoders[0].tokenizer
    for order in ([gemma, clip_l], [clip_l, gemma, gemma]):
        with pytest.raises(ValueError, match="text encoders .*Gemma2Model.*: CLIPs first, then at most one language"):
            JointTextEncoder.from_components(components(order, tokenizer))
    parts = components([clip_l, clip_g], tokenizer)
    parts["tokenizer_2"] = train_tokenizer(["two red apples"], 100, max_length=7)
    with pytest.raises(ValueError, match=r"CLIP text encoders of \[8, 7\] tokens: equal lengths expected"):
        JointTextEncoder.from_components(parts)
    alone = JointTextEncoder.from_components(components([gemma], tokenizer) | {"text_encoder_2": None})
    assert (alone.clips, alone.width, alone.max_length) == ([], 24, 8)


def test_no_encoder_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no text encoder: at least one expected"):
        JointTextEncoder([])
