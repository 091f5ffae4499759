"""The text encoder's promises, kept by small random models of every kind that the paper's system uses."""

import warnings
from collections.abc import Callable

import pytest
import torch
from tokenizers import processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from snapgen.text.encoder import TextStates, TransformersTextEncoder
from snapgen.text.tokenizer import train_tokenizer

LENGTH, WIDTH = 16, 32
PROMPTS = ["a cat", "two red apples on a blue background", ""]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a cat", "two red apples", "on a blue background"], 120, LENGTH)


def clip(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **sizes, **special))


def decoder_only(kind: type, config: type) -> Callable[[PreTrainedTokenizerFast], torch.nn.Module]:
    def make(tokenizer: PreTrainedTokenizerFast) -> torch.nn.Module:
        sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 1}
        return kind(config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes, **heads))

    return make


def t5(tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )


MODELS = {
    "clip": clip,
    "gemma": decoder_only(Gemma2Model, Gemma2Config),
    "llama": decoder_only(LlamaModel, LlamaConfig),
    "t5": t5,
}


@pytest.fixture(scope="module", params=MODELS)
def encoder(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> TransformersTextEncoder:
    torch.manual_seed(0)
    return TransformersTextEncoder(MODELS[request.param](tokenizer).eval(), tokenizer)


def visible(text: TextStates) -> torch.Tensor:
    """The states that may be attended, one after the other."""
    return text.states[text.mask]


def test_shapes(encoder: TransformersTextEncoder) -> None:
    text = encoder(PROMPTS)
    assert (encoder.max_length, encoder.width) == (LENGTH, WIDTH)
    assert text.states.shape == (3, LENGTH, WIDTH)
    assert text.mask.shape == (3, LENGTH) and text.mask.dtype == torch.bool
    assert text.states.isfinite().all()


def test_padding_is_masked_and_zero(encoder: TransformersTextEncoder) -> None:
    text = encoder(PROMPTS)
    counts = [len(ids) for ids in encoder.tokenizer(PROMPTS[:2])["input_ids"]]
    assert text.mask[:2].sum(dim=1).tolist() == counts
    assert (text.mask[:, 1:] <= text.mask[:, :-1]).all()  # padded on the right
    assert text.states[~text.mask].abs().max() == 0
    torch.testing.assert_close(
        visible(TextStates(text.states[:2], text.mask[:2])).square().mean(dim=-1).sqrt(), torch.ones(sum(counts))
    )


def test_padding_does_not_enter_the_states(encoder: TransformersTextEncoder) -> None:
    longer = TransformersTextEncoder(encoder.model, encoder.tokenizer, max_length=24)
    torch.testing.assert_close(visible(longer(PROMPTS[:2])), visible(encoder(PROMPTS[:2])), rtol=1e-4, atol=1e-5)


def test_the_empty_prompt_is_zeros_with_one_visible_token(encoder: TransformersTextEncoder) -> None:
    for empty in ("", "  \n"):
        text = encoder([empty, "a cat"])
        assert text.mask[0].tolist() == [True] + [False] * (LENGTH - 1)
        assert text.states[0].abs().max() == 0
        assert text.states[1].abs().max() > 0


def test_states_do_not_depend_on_the_neighbours(encoder: TransformersTextEncoder) -> None:
    together, alone = encoder(PROMPTS), encoder(PROMPTS[:1])
    assert torch.equal(together.mask[:1], alone.mask)
    torch.testing.assert_close(together.states[:1], alone.states, rtol=1e-4, atol=1e-5)
    nothing = encoder(["", " "])  # read without the model
    assert torch.equal(nothing.states, together.states[2:].repeat(2, 1, 1))
    assert torch.equal(nothing.mask, together.mask[2:].repeat(2, 1))
    others = encoder([PROMPTS[0], "on on on on on on on on", "cat"])
    assert torch.equal(others.states[0], together.states[0])  # in batches of one size to the bit


def test_words_and_their_order_matter(encoder: TransformersTextEncoder) -> None:
    one, other, swapped = (encoder([text]).states for text in ("red cat blue", "red cat two", "blue cat red"))
    assert (one - other).abs().max() > 1e-3
    assert (one - swapped).abs().max() > 1e-3


def test_what_is_too_long_is_cut_with_a_warning(encoder: TransformersTextEncoder) -> None:
    with pytest.warns(UserWarning, match=r"prompt 'red red .*\.\.\.' has 10002 tokens; .* reads the first 16$"):
        text = encoder(["red " * 10_000])
    assert text.mask.all()
    quiet = TransformersTextEncoder(encoder.model, encoder.tokenizer, warn=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(quiet(["red " * 10_000]).states, text.states)
        encoder(PROMPTS)  # nothing to warn of


def test_clip_gives_the_layer_before_the_last(tokenizer: PreTrainedTokenizerFast) -> None:
    """As Stable Diffusion 3 takes it: penultimate, without the final norm."""
    torch.manual_seed(0)
    model = clip(tokenizer).eval()
    tokens = tokenizer(["a cat"], return_tensors="pt")
    layers = []
    for layer in model.get_submodule("encoder.layers" if hasattr(model, "encoder") else "text_model.encoder.layers"):
        layer.register_forward_hook(lambda _, given, out: layers.append(out if torch.is_tensor(out) else out[0]))
    with torch.no_grad():
        model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    expected = torch.nn.functional.rms_norm(layers[1], (WIDTH,))  # of layers 0, 1, 2
    torch.testing.assert_close(visible(TransformersTextEncoder(model, tokenizer)(["a cat"])), expected[0])


def test_a_prefix_instructs_but_does_not_make_a_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    """Its own states are removed: what remains is the first token, which starts every text, and the prompt."""
    torch.manual_seed(0)
    model = MODELS["gemma"](tokenizer).eval()
    plain = TransformersTextEncoder(model, tokenizer, max_length=8)
    instructed = TransformersTextEncoder(model, tokenizer, max_length=6, prefix="two red ")
    found, whole = instructed(["apples"]), plain(["two red apples"])
    kept = [0, 3, 4, 5, 6, 7]
    torch.testing.assert_close(found.states, whole.states[:, kept])
    assert torch.equal(found.mask, whole.mask[:, kept]) and found.mask.sum() == 3  # [BOS] apples [EOS]
    assert (found.states - plain(["apples"]).states[:, :6]).abs().max() > 1e-3
    assert torch.equal(instructed([""]).states, plain([""]).states[:, :6])
    with pytest.warns(UserWarning, match="prompt 'red red red red red' has 7 tokens; .* reads the first 6$"):
        instructed(["red red red red red"])


def test_a_prefix_before_a_text_that_nothing_starts() -> None:
    """T5's tokenizer puts nothing first."""
    tokenizer = train_tokenizer(["two red apples"], 120, LENGTH)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [EOS]", special_tokens=[("[EOS]", 3)]
    )
    encoder = TransformersTextEncoder(t5(tokenizer).eval(), tokenizer, max_length=4, prefix="two ")
    whole = TransformersTextEncoder(encoder.model, tokenizer, max_length=5)(["two red apples"])
    torch.testing.assert_close(encoder(["red apples"]).states, whole.states[:, 1:])


def test_batches_of_states(encoder: TransformersTextEncoder) -> None:
    text = encoder(PROMPTS)
    again = TextStates.cat(text.split(2))
    assert torch.equal(again.states, text.states) and torch.equal(again.mask, text.mask)
    twice = text.repeat(2)
    assert torch.equal(twice.states[[0, 2, 4]], text.states) and torch.equal(twice.mask[[1, 3, 5]], text.mask)


def test_trimming_leaves_what_anything_attends_to() -> None:
    states = torch.arange(10.0).reshape(2, 5, 1)
    mask = torch.tensor([[1, 0, 0, 0, 1], [1, 1, 0, 0, 0]]).bool()
    trimmed = TextStates(states, mask).trimmed()
    assert trimmed.states.flatten().tolist() == [0, 1, 4, 5, 6, 9]
    assert trimmed.mask.tolist() == [[True, False, True], [True, True, False]]
