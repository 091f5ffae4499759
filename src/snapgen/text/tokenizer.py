"""Makes a small tokenizer from captions: lower-cased WordPiece in which every known word is one token."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# The end token must not be 2: transformers' CLIP treats that number as a legacy case.
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
CHARACTERS = string.ascii_lowercase + string.digits


def train_tokenizer(captions: Iterable[str], vocabulary_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary_size` tokens: single characters, and the most frequent words of `captions`.

    Other words are spelled out, so that any text in letters and digits can be encoded. The same captions give the same
    tokens in the same order, in every process and after every resume; the trainers of `tokenizers` do not ensure that.
    """
    normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *CHARACTERS, *(f"##{character}" for character in CHARACTERS), *words])
    vocabulary = {token: index for index, token in enumerate(list(tokens)[:vocabulary_size])}

    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
    )
