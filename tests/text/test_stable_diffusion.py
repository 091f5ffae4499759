"""Our joined text beside Stable Diffusion 3's (`StableDiffusion3Pipeline.encode_prompt`): alike but for what we say."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from snapgen.text.encoder import TextStates
from snapgen.text.join import TEXT_ENCODERS, JointTextEncoder, tokenizer_of
from snapgen.text.tokenizer import train_tokenizer

PROMPT = "two red apples"
CLIP_TOKENS = 16
COLUMNS = slice(0, 8), slice(8, 20)  # of the CLIPs
VISIBLE = 5  # [BOS] two red apples [EOS]


@pytest.fixture(scope="module")
def theirs() -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([PROMPT], 120, max_length=CLIP_TOKENS)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"vocab_size": len(tokenizer), "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": CLIP_TOKENS} | special
    components: dict[str, Any] = {f"tokenizer{number}": tokenizer for number in ("", "_2", "_3")}
    for number, width in (("", 8), ("_2", 12)):
        config = CLIPTextConfig(hidden_size=width, projection_dim=width, **sizes)
        components[f"text_encoder{number}"] = CLIPTextModelWithProjection(config).eval()
    t5 = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    components["text_encoder_3"] = T5EncoderModel(t5).eval()
    pipeline = StableDiffusion3Pipeline(transformer=None, vae=None, scheduler=None, **components)
    pipeline.tokenizer_max_length = CLIP_TOKENS
    return pipeline


@torch.no_grad()
def both(pipeline: StableDiffusion3Pipeline, prompt: str, t5_tokens: int) -> tuple[TextStates, torch.Tensor, Any]:
    """Ours, and their states and pooled vector."""
    parts = {part: getattr(pipeline, part) for name in TEXT_ENCODERS for part in (name, tokenizer_of(name))}
    for name in TEXT_ENCODERS[:2]:  # without the projection, as the package loads them
        parts[name] = parts[name].text_model
    ours = JointTextEncoder.from_components(parts, language_max_length=t5_tokens)([prompt])
    states, _, pooled, _ = pipeline.encode_prompt(
        prompt, prompt, prompt, do_classifier_free_guidance=False, max_sequence_length=t5_tokens, device="cpu"
    )
    return ours, states, pooled


def test_the_same_layers_at_the_same_places_scaled_to_unit_rms(theirs: StableDiffusion3Pipeline) -> None:
    """CLIPs' penultimate layers side by side, padded with zeros to T5's width, T5's tokens after them."""
    ours, states, _ = both(theirs, PROMPT, t5_tokens=VISIBLE)  # T5 without padding
    assert ours.states.shape == states.shape == (1, CLIP_TOKENS + VISIBLE, 32)
    for columns in COLUMNS:
        expected = F.rms_norm(states[:, :VISIBLE, columns], (columns.stop - columns.start,))
        torch.testing.assert_close(ours.states[:, :VISIBLE, columns], expected)
    assert states[:, :CLIP_TOKENS, 20:].abs().max() == 0 == ours.states[:, :CLIP_TOKENS, 20:].abs().max()
    torch.testing.assert_close(ours.states[:, CLIP_TOKENS:], F.rms_norm(states[:, CLIP_TOKENS:], (32,)))


def test_their_padding_is_text_and_ours_is_masked(theirs: StableDiffusion3Pipeline) -> None:
    ours, states, _ = both(theirs, PROMPT, t5_tokens=CLIP_TOKENS)
    visible = [*range(VISIBLE), *range(CLIP_TOKENS, CLIP_TOKENS + VISIBLE)]
    assert ours.mask[0].nonzero()[:, 0].tolist() == visible
    padding = ~ours.mask[0]
    assert states[0, padding].abs().amax(dim=1).min() > 0 and ours.states[0, padding].abs().max() == 0
    # Their T5 reads its padding, too, and ours does not.
    of_t5 = F.rms_norm(states[0, CLIP_TOKENS:][:VISIBLE], (32,))
    assert (ours.states[0, CLIP_TOKENS:][:VISIBLE] - of_t5).abs().max() > 1e-3


def test_their_empty_prompt_is_text_and_ours_is_zeros(theirs: StableDiffusion3Pipeline) -> None:
    ours, states, pooled = both(theirs, "", t5_tokens=VISIBLE)
    assert states.abs().max() > 0 and pooled.abs().max() > 0
    assert ours.states.abs().max() == 0 and ours.pooled is not None and ours.pooled.abs().max() == 0


def test_their_pooled_vector_is_a_projection_of_ours(theirs: StableDiffusion3Pipeline) -> None:
    ours, _, pooled = both(theirs, PROMPT, t5_tokens=VISIBLE)
    assert ours.pooled is not None and ours.pooled.shape == pooled.shape == (1, 20)
    projected = [
        encoder.text_projection(ours.pooled[:, columns])
        for encoder, columns in zip((theirs.text_encoder, theirs.text_encoder_2), COLUMNS, strict=True)
    ]
    torch.testing.assert_close(pooled, torch.cat(projected, dim=1))
