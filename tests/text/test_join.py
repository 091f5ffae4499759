"""Encoders joined as Stable Diffusion 3 joins its three, at the paper's widths and with small models."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model

from snapgen.text.encoder import TextStates, TransformersTextEncoder
from snapgen.text.join import JointTextEncoder, absent, join
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
    encoders = [TransformersTextEncoder(model.eval(), tokenizer) for model in (*clips, Gemma2Model(gemma))]
    return JointTextEncoder(encoders[:2], encoders[2])


def test_joint_encoder(joint: JointTextEncoder) -> None:
    assert (joint.width, joint.max_length) == (24, 16)
    text = joint(["two apples", "red"])
    assert text.states.shape == (2, 16, 24)
    assert text.mask.sum(dim=1).tolist() == [8, 6]  # "[BOS] two apples [EOS]" twice, "[BOS] red [EOS]" twice
    assert torch.equal(text.states[:, :8, 8:20], joint.clips[1](["two apples", "red"]).states)


@pytest.mark.parametrize("dropped", [{0}, {1}, {2}, {0, 1}, {0, 1, 2}])
def test_an_absent_encoder_gives_what_the_empty_prompt_gives(joint: JointTextEncoder, dropped: set[int]) -> None:
    prompts = ["two apples", "red"]
    text, full, empty = joint(prompts, frozenset(dropped)), joint(prompts), joint(["", ""])
    assert joint.language is not None
    columns = [slice(0, 8), slice(8, 20)]
    for index, part in enumerate(columns):
        expected = empty if index in dropped else full
        assert torch.equal(text.states[:, :8, part], expected.states[:, :8, part])
    assert torch.equal(text.states[:, 8:], (empty if 2 in dropped else full).states[:, 8:])
    assert torch.equal(text.mask[:, 8:], (empty if 2 in dropped else full).mask[:, 8:])
    assert torch.equal(text.mask[:, :8], (empty if {0, 1} <= dropped else full).mask[:, :8])
    if dropped == {0, 1, 2}:  # the unconditional branch
        assert torch.equal(text.states, empty.states) and torch.equal(text.mask, empty.mask)


def test_absent_states() -> None:
    text = absent(2, 3, 4, torch.device("cpu"), torch.float16)
    assert text.states.shape == (2, 3, 4) and text.states.dtype == torch.float16 and text.states.abs().max() == 0
    assert text.mask.tolist() == [[True, False, False]] * 2


def test_no_encoder_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no text encoder: at least one expected"):
        JointTextEncoder([])
