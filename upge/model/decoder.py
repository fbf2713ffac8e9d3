"""The text of a response, and where a stop string ends it: one rule for rollouts and demonstrations, and any engine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Decoder:
    """Reads responses.

    Only end-of-sequence and padding tokens have no text. Any other special token does: `<think>` is one in some
    tokenizers, and a reward must see it, whether the policy or a demonstrator wrote it.

    Args:
        tokenizer: the policy's.
        stop_ids: the tokens that the model stops at. One that the tokenizer doesn't count among its special tokens has
            a text, as a line break has.
        turn_end: the one of them that the chat template writes after a turn. It has no text if it is an added token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], turn_end: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
        # Some tokenizers forget to call `<|im_end|>` special; a line break that ends turns is a word like any other.
        turn = {turn_end} & added.keys()
        self._silent = frozenset(ends | turn | (special & set(stop_ids)))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of response tokens."""
        spoken = [token for token in tokens if token not in self._silent]
        # Nothing is cleaned up: "a ." would become "a.", and other tokens have that text.
        return str(self._tokenizer.decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def contains(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether one of the strings is in the text of these tokens."""
        text = self.text(tokens) if stop else ""
        return any(string in text for string in stop)

    def end(self, tokens: Sequence[int], stop: Sequence[str]) -> int | None:
        """How many tokens a response has that ends once its text contains a stop string; None where it never does.

        The token that completes the string is the last one; its text beyond the string is kept.
        """
        if not self.contains(tokens, stop):
            return None
        # Once a prefix contains the string, all longer ones do, so a binary search finds the first.
        lengths = range(1, len(tokens) + 1)
        return 1 + bisect_left(lengths, True, key=lambda length: self.contains(tokens[:length], stop))
