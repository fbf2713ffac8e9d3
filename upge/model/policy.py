"""The policy in training: a causal language model, its tokenizer, and the special tokens that follow from both."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import GenerationConfig

from upge.errors import ModelError
from upge.model import lora, shards
from upge.model.chat_template import Templater
from upge.model.decoder import Decoder
from upge.model.log_probs import log_probs, reach
from upge.model.padding import PrefixSharing, Tokens
from upge.model.recompute import recomputed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Policy:
    """A transformers causal LM and its tokenizer.

    Dropout stays off: the model is in evaluation mode, where gradients flow too. So a token's log-probability is one
    number, and the trained policy is the sampled one.

    Args:
        model: any transformers causal LM, unwrapped.
        tokenizer: its tokenizer; without a pad token it gets its end-of-sequence token for one, if it has that.
        recompute: whether activations are recomputed in the backward pass and not stored (gradient checkpointing).
        notes: messages for the user about its loading, in sentences.
        files: files beside the weights that are saved with them, by name: settings of an image processor, for example.
        left: the names of what its checkpoint had and the model has no place for, so that a saved model lacks it.

    Attributes:
        stop_ids: the tokens a response ends at: the tokenizer's, the config's and the generation config's, once each,
            but none that the model can't draw.
        pad_id: the padding token. It enters no loss, so any id would do.
        sharing: whether responses to one prompt may share its forward pass.

    Raises:
        ModelError: the tokenizer's vocabulary is larger than the model's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        recompute: bool = False,
        notes: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
        left: Sequence[str] = (),
    ) -> None:
        self.model: PreTrainedModel = model.eval()
        self.notes, self.files, self.left = tuple(notes), dict(files or {}), tuple(left)
        self.tokenizer, self.recompute, self.sharing = tokenizer, recompute, True
        self.stop_ids = tuple(token for token in _stop_ids(model, tokenizer) if token < self.size)
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        self._check_vocabulary()
        pad = tokenizer.pad_token_id
        self.pad_id = pad if isinstance(pad, int) and pad < self.size else 0

    @property
    def context_length(self) -> int | None:
        """The model's number of positions, for prompt and response together; None without a limit."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length else None

    @property
    def lacking(self) -> str | None:
        """The note about tensors that a saved model lacks; None if it lacks none."""
        return (
            f"the trained model lacks {counted(self.left)} that its checkpoint had, for example {self.left[0]}"
            if self.left
            else None
        )

    @property
    def sharded(self) -> bool:
        """Whether the parameters are sharded over ranks, so that every pass needs all ranks."""
        return shards.sharded(self.model)

    @property
    def reach(self) -> PrefixSharing | None:
        """The longest row that several responses to a prompt may share; None if each has a row of its own."""
        return reach(self.model) if self.sharing else None

    def templater(self, template: str | None = None, system: str | None = None) -> Templater:
        """The formatter of this policy's prompts; see `Templater`."""
        return Templater(self.tokenizer, template, system, stop_ids=self.stop_ids, size=self.size)

    @property
    def decoder(self) -> Decoder:
        """The decoder of responses: their text, and where a stop string ends them."""
        return Decoder(self.tokenizer, self.stop_ids)

    def log_probs(
        self,
        sequences: Sequence[tuple[Tokens, Tokens]],
        temperature: Tensor,
        *,
        entropy: bool = False,
        forward: Callable[..., Any] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(T,) log π of each response token and, with `entropy`, (T,) entropies, nats; see `upge.model.log_probs`."""
        with recomputed(self.model) if self.recompute else nullcontext():
            return log_probs(
                self.model,
                sequences,
                temperature,
                entropy=entropy,
                pad_id=self.pad_id,
                forward=forward,
                sharing=self.sharing,
            )

    def vocabulary_fingerprint(self) -> str:
        """A hash of the map from tokens to ids: equal fingerprints mean that token ids are interchangeable."""
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
        return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]

    def save(self, folder: str | Path, *, merge: bool = True, writes: bool = True) -> None:
        """Write model and tokenizer in the Hub's format; `AutoModelForCausalLM.from_pretrained(folder)` opens them,
        of a model for images or sounds too `AutoModelForMultimodalLM`.

        Args:
            merge: an adapter goes into a copy of the weights; False: it alone is written, in peft's format.
            writes: False: nothing is written; where the model is sharded all ranks call this, and one of them writes.
        """
        weights = shards.weights(self.model, keep=writes) if self.sharded else None
        if not writes:
            return
        model = self.model
        if merge and lora.adapted(model):
            model, weights = lora.merged(model, weights), None
        self._write(folder, model, weights)

    def try_saving(self, folder: str | Path, *, merge: bool = True, writes: bool = True) -> None:
        """Test `save` at a bounded cost, so that a failure is found early.

        A model of up to a quarter of a GiB is saved. For a larger one only shapes are merged. All files are written,
        but of the weights only the smallest tensor, or an adapter's own.
        """
        if sum(math.prod(shards.shape(x)) * x.itemsize for x in self.model.parameters()) <= shards.SMALL:
            self.save(folder, merge=merge, writes=writes)
            return
        adapted = lora.adapted(self.model)
        model = lora.merged_outline(self.model) if adapted and merge else self.model
        every = self.model.state_dict(keep_vars=True).items()
        tensors = [(name, x) for name, x in every if ".lora_" in name]
        if merge or not adapted:
            tensors = [min(self.model.named_parameters(), key=lambda item: math.prod(shards.shape(item[1])))]
            tensors = [(lora.plain_name(name), x) for name, x in tensors]
        weights = shards.whole(tensors, keep=writes)
        if writes:
            self._write(folder, model, weights)

    def _write(self, folder: str | Path, model: PreTrainedModel, weights: dict[str, Tensor] | None) -> None:
        with _saveable(model), lora.warned("the trained model"):
            model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)
        for name, content in self.files.items():
            Path(folder, name).write_bytes(content)

    @property
    def size(self) -> int:
        """The number of token ids with an embedding; the model can't take ids beyond."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return shards.shape(weight)[0]  # of a divided model a rank may hold no row itself

    def _check_vocabulary(self) -> None:
        # Some tokenizers carry added tokens that their model has no embedding for, and never needs (Gemma 3's image).
        added = set(self.tokenizer.get_added_vocab())
        ids = [index for token, index in self.tokenizer.get_vocab().items() if token not in added]
        if not ids:
            raise ModelError("the tokenizer has no tokens; set model.tokenizer to a folder or Hub id that has one")
        if max(ids) >= self.size:
            numbers = f"the tokenizer's ids go up to {max(ids)}, the model's embeddings to {self.size - 1}"
            raise ModelError(f"{numbers}: model and tokenizer don't fit together")


def counted(names: Sequence[str]) -> str:
    """How many tensors these are, in words."""
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The end-of-sequence ids that tokenizer, config and generation config name, in that order, once each."""
    named = [tokenizer, model.config, model.config.get_text_config(), model.generation_config]
    stop_ids: dict[int, None] = {}
    for ids in (getattr(place, "eos_token_id", None) for place in named):
        stop_ids.update(dict.fromkeys([] if ids is None else [ids] if isinstance(ids, int) else ids))
    return tuple(stop_ids)


@contextmanager
def _saveable(model: PreTrainedModel) -> Iterator[None]:
    """While open, the model has no generation defaults that would keep it from being saved."""
    kept = model.generation_config
    try:
        # Transformers opens models whose generation defaults contradict each other, but refuses to save them.
        if kept is not None and _contradictory(kept):
            model.generation_config = GenerationConfig(
                bos_token_id=kept.bos_token_id, eos_token_id=kept.eos_token_id, pad_token_id=kept.pad_token_id
            )
        yield
    finally:
        model.generation_config = kept


def _contradictory(settings: GenerationConfig) -> bool:
    try:
        settings.validate(strict=True)
    except ValueError:
        return True
    return False
