"""Small tokenizers of the usual kinds, made in a moment: bytes in pairs (BPE), SentencePiece's unigrams, WordPiece."""

from __future__ import annotations

import string
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TURNS = ("<|im_start|>", "<|im_end|>")
TEXT = ["the answer is 42 and the thought is this", "so 6 + 6 = 12, and that is the answer"]


def byte_pairs(special: Sequence[str] = TAGS) -> PreTrainedTokenizerBase:
    """Byte-level BPE, as of GPT-2, Llama 3 and Qwen."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    return _wrapped(made, special)


def pieces(special: Sequence[str] = TAGS, scheme: str = "always") -> PreTrainedTokenizerBase:
    """Unigrams with `▁` for a blank, which comes before every text too, as of Llama 2 and T5."""
    letters = [*string.ascii_letters, *string.digits, *".,:;?!+=<>/()|_\n"]
    scores = {"<unk>": -20.0, "▁": -3.0} | dict.fromkeys(letters, -4.0) | {f"▁{each}": -2.0 for each in letters[:62]}
    made = Tokenizer(models.Unigram(list(scores.items()), unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _wrapped(made, special)


def word_pieces(special: Sequence[str] = TAGS) -> PreTrainedTokenizerBase:
    """WordPiece, in lower case, as of BERT: white space is not kept."""
    letters = [*string.ascii_lowercase, *string.digits]
    words = ["[UNK]", *letters, *(f"##{each}" for each in letters), *".,:;?!+=<>/()|_"]
    made = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return _wrapped(made, special)


def characters(special: Sequence[str] = TAGS) -> PreTrainedTokenizerBase:
    """A token a character."""
    made = Tokenizer(models.WordLevel({each: index for index, each in enumerate(string.printable)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return _wrapped(made, special)


KINDS = [byte_pairs, pieces, word_pieces, characters]


def _wrapped(made: Tokenizer, special: Sequence[str]) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token="<pad>", additional_special_tokens=[*TURNS, *special]
    )
