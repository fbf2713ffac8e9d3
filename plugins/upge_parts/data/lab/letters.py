"""Makes the lab's tokenizer: one token a character, and no merges.

python -m upge_parts.data.lab.letters FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from upge_parts.data.lab.task import CHARACTERS

SPECIAL = ("<pad>", "<eos>", "<unk>")


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the lab's characters."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=256
    )


if __name__ == "__main__":
    tokenizer().save_pretrained(Path(sys.argv[1]))
