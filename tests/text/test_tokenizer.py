"""The tokenizer that is trained on captions."""

from pathlib import Path

from transformers import AutoTokenizer

from snapgen.text.tokenizer import SPECIAL_TOKENS, train_tokenizer

CAPTIONS = ["a cat", "two red apples", "a dog on a blue background"] * 3


def test_known_words_are_one_token_and_others_are_spelled() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 200, max_length=16)
    assert tokenizer.tokenize("Two RED apples") == ["two", "red", "apples"]
    assert tokenizer.tokenize("zebra 7") == ["z", "##e", "##b", "##r", "##a", "7"]
    assert tokenizer.tokenize("café") == tokenizer.tokenize("cafe")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a cat")["input_ids"]) == ["[BOS]", "a", "cat", "[EOS]"]
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == [0, 1, 2, 3]


def test_any_text_survives(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CAPTIONS, 200, max_length=16)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == 16
    for text in ("", "🍎", "¿qué?\x00\ud7ff", "a  cat\n", "[PAD] [EOS]", "x" * 500):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert tokenizer(text)["input_ids"][0] == 2


def test_the_same_captions_give_the_same_tokens() -> None:
    """A resumed run and its other processes make the tokenizer anew."""
    one, same = (train_tokenizer(iter(CAPTIONS), 200, max_length=16).get_vocab() for _ in range(2))
    assert one == same
    assert train_tokenizer(reversed(CAPTIONS), 200, max_length=16).get_vocab() == one


def test_the_vocabulary_keeps_the_most_frequent_words() -> None:
    captions = ["owl owl owl", "bear bear", "fox fox", "yak"]
    small = train_tokenizer(captions, 78, max_length=16)  # 4 special tokens, 36 characters twice, 2 words
    assert len(small) == 78
    assert small.tokenize("owl bear") == ["owl", "bear"]
    assert small.tokenize("fox") == ["f", "##o", "##x"]
